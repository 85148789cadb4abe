"""Every generated client drives a live service: tests/clients/drive compiles and runs the driver of its language."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.served import KEY, SERVICES
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("python", "typescript", "go", "java")
pytestmark = pytest.mark.timeout(300)  # a compiler's first run is slow where others run beside it


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=SERVICES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "process":
        require("root", os.geteuid() == 0, "the runtime `process` needs root")
    with SERVICES[request.param](tmp_path_factory.mktemp("data")) as found:
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
    assert too_high["field"] == "limits.memory_mib"
    assert isinstance(too_high["ceiling"], int | float)
    assert wrong == {"status": 422, "type": "/problems/invalid_request", "pointers": ["/ttl_seconds"]}
    assert nobody == {"status": 404, "type": "/problems/not_found"}
    assert stranger == {"status": 401, "type": "/problems/unauthenticated"}
    assert (report["deleted"], report["state"]) == (204, "destroyed")
