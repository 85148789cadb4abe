"""Where commands start: a directory below /workspace is made, any other must be there, in every runtime."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.files_service import FileRoom, file_room, slug
from tests.contract.kinds import Kind


async def ended(room: FileRoom, sandbox: str, *command: str, **body: Any) -> tuple[dict[str, Any], str]:
    """The exit, and what was printed."""
    answer = await room.client.post(f"/sandboxes/{sandbox}/run", json={"command": list(command), **body})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    return said["exit"], said["stdout"]


async def test_workdir_below_workspace_is_made_and_belongs_to_the_sandbox(kind: Kind) -> None:
    async with file_room(kind) as room:
        created = await room.client.post("/sandboxes", json={"workdir": "/workspace/a/b"})
        assert created.status_code == 201, created.text
        sandbox = created.json()["id"]
        given = {"path": "a/b/own", "content": "x"}
        exit_, printed = await ended(room, sandbox, *kind.programs.pwd(), files=[given])
        assert (exit_["code"], printed) == (0, "/workspace/a/b\n")
        exit_, printed = await ended(room, sandbox, *kind.programs.pwd(), workdir="/workspace/c/d")
        assert (exit_["code"], printed) == (0, "/workspace/c/d\n")
        exit_, printed = await ended(room, sandbox, *kind.programs.fifo("/workspace/c/d/mine"))
        assert exit_["code"] == 0


@pytest.mark.parametrize("workdir", ["/nowhere", "/tmp/nowhere", "/dev/null"])
async def test_workdir_that_is_not_there_refuses_the_create_and_leaves_nothing(kind: Kind, workdir: str) -> None:
    async with file_room(kind) as room:
        before = len((await room.client.get("/sandboxes")).json()["items"])
        refused = await room.client.post("/sandboxes", json={"workdir": workdir})
        assert (refused.status_code, slug(refused)) == (422, "invalid_request")
        assert [error["pointer"] for error in refused.json()["errors"]] == ["/workdir"]
        assert len((await room.client.get("/sandboxes")).json()["items"]) == before
        run = await room.client.post("/run", json={"command": list(kind.programs.pwd()), "workdir": workdir})
        assert (run.status_code, slug(run)) == (422, "invalid_request")


async def test_workdir_of_an_execution_that_cannot_be_entered_fails_the_start(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("file")
        for workdir in ("/nowhere", "/workspace/file/below"):
            exit_, printed = await ended(room, room.id, *kind.programs.pwd(), workdir=workdir)
            assert (exit_["reason"], printed) == ("start_failed", ""), workdir
            assert workdir in exit_["detail"]
