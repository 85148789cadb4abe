"""`run --collect` writes what came back below one folder; `usage` shows figures; options become fields."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.fake_service import BASE, FakeService, answer, fake_service
from tests.unit.cli.test_run import EXECUTIONS, ending
from tests.unit.cli.typed import Ended, bulkhead

RUN, DESTROY = f"POST {BASE}/run", f"DELETE {BASE}"


def file(path: str, content: bytes, **more: str) -> dict[str, str]:
    return {"path": path, "content_base64": base64.b64encode(content).decode(), **more}


async def collected(
    tmp_path: Path, *files: dict[str, str], patterns: tuple[str, ...] = ("*",), code: int = 0
) -> tuple[Ended, FakeService]:
    async with fake_service(ending(code=code)) as service:
        service.answers[RUN] = answer(200, {"collected": list(files)})
        options = [word for pattern in patterns for word in ("--collect", pattern)]
        ended = await bulkhead(service.url, "run", *options, "--into", str(tmp_path / "here"), "cmd")
    return ended, service


def everything(folder: Path) -> list[Path]:
    """Also what stands where a path that leads out would."""
    return [*folder.rglob("*"), *folder.parent.glob("out-of-it"), *Path("/").glob("out-of-it")]


async def test_files_are_written_before_the_sandbox_goes(tmp_path: Path) -> None:
    files = [file("a", b"one"), file("out/b", b"two"), file("\ufffd", b"three", path_base64="6Q==")]
    ended, service = await collected(tmp_path, *files, patterns=("a", "out/*"), code=3)
    assert (ended.status, ended.stderr) == (3, "")
    assert service.asked()[-2:] == [RUN, DESTROY]
    assert service.body_of(RUN)["collect"] == ["a", "out/*"]
    here = tmp_path / "here"
    assert [(here / name).read_bytes() for name in ("a", "out/b", "\udce9")] == [b"one", b"two", b"three"]


async def test_only_a_file_that_was_named_replaces_another(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("named", "Makefile"):
        (here / name).write_text("mine")
    (here / "link").symlink_to("elsewhere")
    files = [file("named", b"new"), file("Makefile", b"new"), file("link", b"new"), file("more", b"new")]
    ended, _ = await collected(tmp_path, *files, patterns=("named", "*", "link"))
    assert ended.status == 125
    assert [line.split()[1] for line in ended.stderr.splitlines()] == ["Makefile:", "link:"]
    assert {path.name: path.read_text() for path in here.iterdir() if not path.is_symlink()} == {
        "named": "new",
        "Makefile": "mine",
        "more": "new",
    }
    assert not (here / "elsewhere").exists()


async def test_name_may_be_typed_in_any_form(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "a").mkdir(parents=True)
    (here / "out.txt").write_text("old")
    (here / "a" / "b").write_text("old")
    files = [file("out.txt", b"new"), file("a/b", b"new")]
    ended, _ = await collected(tmp_path, *files, patterns=("./out.txt", "a//./b"))
    assert (ended.status, ended.stderr) == (0, "")
    assert ((here / "out.txt").read_text(), (here / "a" / "b").read_text()) == ("new", "new")


async def test_pattern_that_is_the_name_of_what_it_matched_replaces_nothing(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a[b]*").write_text("mine")
    ended, _ = await collected(tmp_path, file("a[b]*", b"new"), patterns=("a[b]*",))
    assert (ended.status, (here / "a[b]*").read_text()) == (125, "mine")


async def test_json_has_the_files_and_what_is_wrong_with_each(tmp_path: Path) -> None:
    missing = {"path": "missing", "error": "does not exist"}
    async with fake_service(ending()) as service:
        service.answers[RUN] = answer(200, {"collected": [file("a", b"1"), missing]})
        words = ["--collect", "a", "--collect", "missing", "--into", str(tmp_path)]
        ended = await bulkhead(service.url, "run", "--json", *words, "cmd")
        without = await bulkhead(service.url, "run", "--json", "cmd")
    assert (ended.status, ended.stderr) == (125, "bulkhead: missing: does not exist\n")
    assert json.loads(ended.stdout)["collected"] == [{"path": "a"}, missing]
    assert "collected" not in json.loads(without.stdout)


async def test_file_that_is_too_large_is_told_with_the_way_to_get_it(tmp_path: Path) -> None:
    error = "has 20000000 bytes; collected files have 8388608 bytes in all at most"
    ended, _ = await collected(tmp_path, {"path": "big", "error": error}, patterns=("big",))
    first, second = ended.stderr.splitlines()
    assert first == f"bulkhead: big: {error}"
    assert second == "bulkhead: a sandbox that is kept (--keep) gives larger files by GET /sandboxes/ID/archive"


@pytest.mark.parametrize("path", ["/out-of-it", "../out-of-it", "a/../../out-of-it"])
async def test_service_that_lies_writes_nothing_outside(tmp_path: Path, path: str) -> None:
    ended, _ = await collected(tmp_path, file(path, b"x"), patterns=(path,))
    assert ended.status == 125
    assert "cannot be written" in ended.stderr
    assert {place.name for place in await asyncio.to_thread(everything, tmp_path)} <= {"here"}


async def test_what_is_missing_is_told_on_one_line(tmp_path: Path) -> None:
    ended, _ = await collected(tmp_path, {"path": "a\n\x1b[31m", "error": "is a FIFO"})
    assert (ended.status, ended.stderr) == (125, "bulkhead: a \\x1b[31m: is a FIFO\n")


async def test_usage_shows_figures_and_what_nobody_knows() -> None:
    figures: dict[str, Any] = {
        "memory_bytes": 61_370_368,
        "memory_peak_bytes": 1_572_864,
        "cpu_seconds": 0.078089201,
        "processes": 2,
        "disk_bytes": None,
        "open_files": 17,
    }
    async with fake_service() as service:
        service.answers[f"GET {BASE}/usage"] = answer(200, figures)
        service.answers[f"GET {EXECUTIONS}/e/usage"] = answer(200, figures)
        shown = await bulkhead(service.url, "usage", "sbx_1")
        told = await bulkhead(service.url, "usage", "sbx_1", "e", "--json")
    assert shown.stdout.decode().splitlines() == [
        "memory         59 MiB, peak 1.5 MiB",
        "processor time 0.08 s",
        "processes      2",
        "disk           -",
        "open files     17",
    ]
    assert json.loads(told.stdout) == figures
    assert service.asked() == [f"GET {BASE}/usage", f"GET {EXECUTIONS}/e/usage"]


async def test_options_of_an_execution_become_its_fields() -> None:
    words = ["--cpu-seconds", "1.5", "--stack-mib", "8", "--open-files", "64", "--file-mib", "2", "--stderr", "stdout"]
    limits = {"cpu_seconds": 1.5, "stack_mib": 8, "open_files": 64, "file_mib": 2}
    async with fake_service(ending()) as service:
        ended = await bulkhead(service.url, "exec", *words, "--memory-mib", "32", "sbx_1", "cmd")
        assert ended.status == 0, ended.stderr
        body = service.body_of(f"POST {EXECUTIONS}")
        assert (body["limits"], body["stderr"]) == ({**limits, "memory_mib": 32}, "stdout")
        service.requests.clear()
        await bulkhead(service.url, "run", *words, "--memory-mib", "64", "--idle-counts", "processes", "cmd")
        assert service.body_of(f"POST {EXECUTIONS}")["limits"] == limits
        made = service.body_of("POST /sandboxes")
        assert (made["limits"], made["idle_counts"]) == ({"memory_mib": 64}, "processes")
