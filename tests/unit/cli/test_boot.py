"""A sandbox that takes its time to boot, and one that does not come up at all."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.cli.fake_service import BASE, SANDBOX, FakeService, Program, answer, fake_service, problem
from tests.unit.cli.screen import screen
from tests.unit.cli.test_run import WHOLE_LIFE, ending
from tests.unit.cli.typed import begin, bulkhead

CREATE, LOOK, DESTROY = "POST /sandboxes", f"GET {BASE}", f"DELETE {BASE}"
SANDBOX_ANSWER: dict[str, Any] = {"id": SANDBOX, "runtime": "boxlite", "state": "creating"}
RUNS = SANDBOX_ANSWER | {"state": "running", "runtime_reason": "the cheapest that has: images"}
FAILED = SANDBOX_ANSWER | {"state": "failed", "state_reason": "the box did not boot: timed out after 30s"}


@asynccontextmanager
async def booting(*programs: Program) -> AsyncIterator[FakeService]:
    """What each look at the sandbox shows is in `looks`; `looked_at` says that one has come."""
    async with fake_service(*programs) as service:
        service.answers[CREATE] = answer(201, SANDBOX_ANSWER)
        yield service


async def test_slow_boot_is_waited_for() -> None:
    async with booting(ending(code=7)) as service:
        service.looks.put_nowait(SANDBOX_ANSWER)
        service.looks.put_nowait(RUNS)
        ended = await bulkhead(service.url, "run", "cmd")
        service.looks.put_nowait(RUNS)
        made = await bulkhead(service.url, "create", "--json")
    assert (ended.status, ended.stderr) == (7, "")
    assert service.asked()[: len(WHOLE_LIFE) + 2] == [CREATE, LOOK, LOOK, *WHOLE_LIFE[1:]]
    assert [r.query for r in service.requests if str(r) == LOOK] == [{"wait_seconds": "60"}] * 3
    assert int(service.requests[0].query["wait_seconds"]) <= 5  # soon enough for a Ctrl-C to know what is to go
    assert (made.status, json.loads(made.stdout)) == (0, RUNS)
    assert service.asked()[-1] == LOOK


@pytest.mark.parametrize("words", [["run", "cmd"], ["run", "--keep", "cmd"], ["create"]])
async def test_boot_that_fails_says_why_and_leaves_nothing(words: list[str]) -> None:
    async with booting() as service:
        service.looks.put_nowait(FAILED)
        ended = await bulkhead(service.url, *words)
    said = f"bulkhead: the sandbox {SANDBOX} failed: the box did not boot: timed out after 30s\n"
    assert (ended.status, ended.stdout, ended.stderr) == (125, b"", said)
    assert service.asked() == [CREATE, LOOK, DESTROY]


async def test_sandbox_that_somebody_destroyed_meanwhile_is_told() -> None:
    async with booting() as service:
        service.looks.put_nowait(SANDBOX_ANSWER | {"state": "destroyed"})
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stderr) == (125, f"bulkhead: the sandbox {SANDBOX} was destroyed\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("words", [["run", "cmd"], ["create"]])
async def test_signal_during_the_boot_deletes_it_at_once(words: list[str], number: signal.Signals, status: int) -> None:
    async with booting() as service:
        process = await begin(service.url, *words)
        await service.looked_at.wait()
        process.send_signal(number)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (status, b"", b"")
    assert service.asked() == [CREATE, LOOK, DESTROY]


async def test_person_at_a_terminal_is_told_that_it_boots() -> None:
    async with screen() as terminal, booting(ending(code=3)) as service:
        process = await terminal.begin(service.url, "run", "-i", "cmd")
        await terminal.until("booting …\r\n".encode())
        service.looks.put_nowait(RUNS)
        assert await process.wait() == 3
    assert terminal.shown == "bulkhead: booting …\r\n".encode()


@pytest.mark.parametrize(
    ("status", "slug", "more", "said"),
    [
        (
            502,
            "backend_error",
            {
                "detail": "the box could not be made",
                "runtime": "boxlite",
                "upstream_status": 500,
                "upstream_code": "storage_error",
            },
            "Title: the box could not be made: runtime boxlite: its server answered 500 storage_error",
        ),
        (
            502,
            "backend_error",
            {
                "detail": "the BoxLite server answers 500 storage_error: no such image",
                "runtime": "boxlite",
                "upstream_status": 500,
                "upstream_code": "storage_error",
            },
            "Title: the BoxLite server answers 500 storage_error: no such image",
        ),
        (
            503,
            "backend_unavailable",
            {"detail": "nobody answers for the runtime 'boxlite'", "runtime": "boxlite"},
            "Title: nobody answers for the runtime 'boxlite'",
        ),
        (
            504,
            "backend_timeout",
            {"detail": "no answer in 30 s", "runtime": "boxlite", "upstream_status": None},
            "Title: no answer in 30 s: runtime boxlite",
        ),
        (
            422,
            "unknown_image",
            {"detail": "there is no image 'x'", "known": ["busybox", "python"]},
            "Title: there is no image 'x': known: busybox, python",
        ),
        (
            422,
            "unknown_image",
            {"detail": "there is no image 'x'; known: busybox, python", "known": ["busybox", "python"]},
            "Title: there is no image 'x'; known: busybox, python",
        ),
        (
            422,
            "capability_missing",
            {"detail": "no runtime meets the request: boxlite lacks usage", "runtime": "auto", "missing": ["usage"]},
            "Title: no runtime meets the request: boxlite lacks usage",
        ),
        (422, "unknown_image", {"detail": "there is no image 'x'", "known": []}, "Title: there is no image 'x'"),
    ],
)  # fmt: skip - rows
async def test_what_the_runtimes_server_said_is_told(status: int, slug: str, more: dict[str, Any], said: str) -> None:
    async with booting() as service:
        service.answers[CREATE] = problem(status, slug, "Title", **more)
        ended = await bulkhead(service.url, "run", "--runtime", "boxlite", "cmd")
    assert (ended.status, ended.stderr) == (125, f"bulkhead: {said}\n")
