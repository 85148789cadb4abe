"""What a refusal says beside the fact: how to ask for what was probably meant."""

from __future__ import annotations

import errno
from datetime import datetime
from typing import Any

import pytest

from app.api.schemas.strict import ONE_TEXT
from app.core.commands import hint_for
from app.core.models import now
from tests.unit.api.service import Service, create, kernel, vm


async def problem_of(service: Service, path: str, body: Any, status: int = 422) -> dict[str, Any]:
    async with service.client() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == status, answer.text
        problem: dict[str, Any] = answer.json()
        return problem


async def test_command_that_is_one_text_is_told_to_be_a_list() -> None:
    problem = await problem_of(Service(), "/run", {"command": "ls -la"})
    assert problem["errors"] == [{"pointer": "/command", "detail": ONE_TEXT}]


def test_program_with_a_space_is_told_to_be_a_list() -> None:
    assert 'a line for a shell is ["sh", "-c", "…"]' in hint_for("ls -la", errno.ENOENT)
    assert hint_for("ls", errno.ENOENT) == hint_for(" ls", errno.ENOENT) == ""


@pytest.mark.parametrize(
    ("program", "refusal", "said"),
    [
        ("./main.py", errno.EACCES, "needs the mode 0755 to be executed, or its interpreter before it"),
        ("./main.py", errno.ENOENT, "the interpreter in its first line (#!) or the loader of the program does not"),
        ("./main.py", errno.ENOEXEC, "its first line does not begin with #!"),
        ("main.py", errno.ENOENT, "it was searched in PATH; for a file in the working directory write ./main.py"),
        ("cd", errno.ENOENT, "it is a command of the shell: run sh -c 'cd …'"),
    ],
)
def test_program_that_cannot_be_started_is_answered_with_the_cure(program: str, refusal: int, said: str) -> None:
    assert said in hint_for(program, refusal)
    assert hint_for(program, errno.EAGAIN) == ""


@pytest.mark.parametrize(
    ("file", "detail"),
    [
        ({"content": "a", "content_base64": "YQ=="}, "must not be sent together with content; send one of the two"),
        ({}, "needs content or content_base64"),
    ],
)
async def test_file_has_one_content(file: dict[str, str], detail: str) -> None:
    problem = await problem_of(Service(), "/run", {"command": ["true"], "files": [{"path": "a", **file}]})
    assert problem["errors"][0]["detail"] == detail


@pytest.mark.parametrize("runtime", ["boxlite", "nope"])
async def test_runtime_that_is_not_enabled_is_not_offered_and_auto_is(runtime: str) -> None:
    problem = await problem_of(Service([kernel(), vm()], disabled=("boxlite",)), "/sandboxes", {"runtime": runtime})
    assert problem["known"] == ["auto", "kernel", "linux", "process"]


async def test_id_of_a_destroyed_sandbox_says_when_it_is_free() -> None:
    service = Service()
    async with service.client() as client:
        await create(client, id="demo")
        assert (await client.delete("/sandboxes/demo")).status_code == 204
        answer = await client.post("/sandboxes", json={"id": "demo"})
        assert answer.status_code == 409
        words = answer.json()["detail"].partition("the id becomes free at ")[2]
        seconds = (datetime.fromisoformat(words) - now()).total_seconds()
        assert 3000 < seconds <= 3600


async def test_ended_sandbox_says_once_why() -> None:
    async with Service().client() as client:
        await create(client, id="demo")
        assert (await client.delete("/sandboxes/demo")).status_code == 204
        answer = await client.post("/sandboxes/demo/executions", json={"command": ["true"]})
        assert (answer.status_code, answer.json()["detail"]) == (409, "the sandbox has ended: it was deleted")


async def test_network_that_a_runtime_cannot_have_says_why() -> None:
    body = {"policy": {"network": {"mode": "direct", "allow": ["files.example.org"]}}}
    problem = await problem_of(Service(), "/sandboxes", body)
    assert problem["detail"] == "the runtime 'process' has no network of the mode direct"


async def test_null_is_the_default_lifetime_also_in_a_patch() -> None:
    service = Service()
    async with service.client() as client:
        await create(client, id="demo", ttl_seconds=500)
        answer = await client.patch("/sandboxes/demo", json={"ttl_seconds": None})
        assert answer.status_code == 200, answer.text
        seconds = (datetime.fromisoformat(answer.json()["expires_at"]) - now()).total_seconds()
        assert 3000 < seconds <= 3600
