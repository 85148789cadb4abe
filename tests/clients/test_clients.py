"""Every generated client drives a live service: tests/clients/drive compiles and runs the driver of its language."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.served import KEY, null_service, real_service
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("python", "typescript", "go", "java")
pytestmark = pytest.mark.timeout(300)  # a compiler's first run is slow where others run beside it


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    served = real_service if os.geteuid() == 0 else null_service
    with served(tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> str:
    """The language, whose client is made from the openapi.yaml of now."""
    language: str = request.param
    check = run("scripts/clients", "--check", language)
    require("clients", check.returncode == 0, f"{check.stdout.strip()}; `make clients` installs it")
    made = run("scripts/clients", language)
    assert made.returncode == 0, made.stderr
    return language


def drive(language: str, url: str) -> dict[str, Any]:
    done = run("tests/clients/drive", language, BULKHEAD_CLIENT_URL=url, BULKHEAD_CLIENT_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    said, report = done.stdout.strip().rsplit("\n", 1)
    assert "hello" in said
    return dict(json.loads(report))


@pytest.mark.parametrize("client", LANGUAGES, indirect=True)
def test_generated_client_drives_the_service(client: str, url: str) -> None:
    report = drive(client, url)
    assert report["sandbox"] == [f"build-{client}", "running", {"team": "ci"}, 64]
    assert report["again"] == 200, "the same id and body are the same sandbox"
    assert report["output"] == [0, "hello\n"]
    assert report["missing"] == "start_failed"
    assert report["idle"] == [60, None], "null removes the idle time, which is another thing than no word of it"
    assert report["stream"] == ["over the wire\n", 0, "exited"]
    assert report["files"] == [True, ["data"], True, 201, "/problems/wrong_type", "directory"]
    stdout, same, mismatch = report["run"]
    assert (stdout, same) == ("hello\n", True), "the same key and body are the same run"
    assert mismatch == {"status": 422, "type": "/problems/idempotency_mismatch"}
    too_high, wrong, nobody, stranger = report["problems"]
    assert (too_high["status"], too_high["type"]) == (422, "/problems/limit_too_high")
    assert too_high["pointer"] == "/limits/memory_mib"
    assert isinstance(too_high["ceiling"], int | float)
    assert wrong == {"status": 422, "type": "/problems/invalid_request", "pointers": ["/ttl_seconds"]}
    assert nobody == {"status": 404, "type": "/problems/not_found"}
    assert stranger == {"status": 401, "type": "/problems/unauthenticated"}
    assert (report["deleted"], report["state"]) == (204, "destroyed")


def test_client_of_the_package_follows_an_execution(url: str) -> None:
    follow = "from tests.clients.python.follow import follow"
    program = f"import asyncio; {follow}; print(asyncio.run(follow(['cat'], b'followed')))"
    done = run(sys.executable, "-c", program, BULKHEAD_CLIENT_URL=url, BULKHEAD_CLIENT_KEY=KEY)
    assert (done.stdout, done.returncode) == ("(b'followed', 0)\n", 0), done.stderr


def test_linter_has_nothing_to_say_about_the_document() -> None:
    check = run("scripts/clients", "--check", "typescript")
    require("clients", check.returncode == 0, f"{check.stdout.strip()}; `make clients` installs it")
    linted = run("scripts/clients", "--lint")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    """A rule file that names nothing would find nothing."""
    check = run("scripts/clients", "--check", "typescript")
    require("clients", check.returncode == 0, f"{check.stdout.strip()}; `make clients` installs it")
    document = (ROOT / "openapi.yaml").read_text()
    broken = tmp_path / "openapi.yaml"
    broken.write_text(document.replace("#/components/schemas/Exit'", "#/components/schemas/Nothing'"))
    linted = run("scripts/clients", "--lint", BULKHEAD_TEST_OPENAPI=str(broken))
    assert linted.returncode == 1
    assert "invalid-ref" in linted.stdout


def test_examples_of_the_document_are_what_the_drivers_run() -> None:
    text = (ROOT / "docs/clients.md").read_text()
    drivers = {"python": "python/*.py", "ts": "typescript/*.ts", "go": "go/*.go", "java": "java/*.java"}
    examples = re.findall(r"^```(python|ts|go|java)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in examples} == set(drivers)
    for language, example in examples:
        sources = [path.read_text() for path in (ROOT / "tests/clients").glob(drivers[language])]
        assert any(_lines(example) in _lines(source) for source in sources), example


def _lines(text: str) -> str:
    """Without indentation and empty lines: an example stands at the margin."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
