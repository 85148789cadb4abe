"""`POST /sandboxes/{id}/run` and `collect` through the whole service, for every runtime with FILES."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx

from app.api.schemas.runs import RunInSandboxResult
from app.core.capabilities import Capability
from tests.callbacks import own_work
from tests.contract.files_service import MIB, FileRoom, file_room, slug
from tests.contract.kinds import Kind
from tests.null_backend import pattern


async def run(room: FileRoom, command: tuple[str, ...], **body: Any) -> dict[str, Any]:
    answer = await asked(room, command, **body)
    assert answer.status_code == 200, answer.text
    with own_work():
        RunInSandboxResult.model_validate_json(answer.content)
        found: dict[str, Any] = answer.json()
    return found


async def asked(room: FileRoom, command: tuple[str, ...], **body: Any) -> httpx.Response:
    return await room.client.post(f"/sandboxes/{room.id}/run", json={"command": list(command), **body})


async def collected(room: FileRoom, *patterns: str) -> dict[str, bytes | str]:
    """By path: bytes, or the sentence why there are none."""
    said = await run(room, room.kind.programs.exit(0), collect=list(patterns))
    return {
        file["path"]: file["error"] if "error" in file else base64.b64decode(file["content_base64"])
        for file in said["collected"]
    }


async def test_run_puts_files_feeds_stdin_and_brings_output_and_files_back(kind: Kind) -> None:
    async with file_room(kind) as room:
        given = {"path": "out/a.txt", "content": "hello"}
        said = await run(room, kind.programs.cat(), files=[given], stdin="12\n", collect=["out/*.txt", "none"])
        assert (said["stdout"], said["exit"]["code"], said["sandbox_id"]) == ("12\n", 0, room.id)
        found, missing = said["collected"]
        assert found == {"path": "out/a.txt", "content_base64": base64.b64encode(b"hello").decode()}
        assert (missing["path"], set(missing)) == ("none", {"path", "error"})
        record = (await room.client.get(f"/sandboxes/{room.id}/executions/{said['execution_id']}")).json()
        assert (record["state"], record["exit"]) == ("ended", said["exit"])
        again = await run(room, kind.programs.show("/workspace/out/a.txt"))
        assert again["stdout"] == "hello"


async def test_files_are_collected_however_the_command_ended(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("left", b"behind")
        for command, reason in (
            (kind.programs.exit(3), "exited"),
            (kind.programs.sleep(), "timeout"),
            (kind.programs.missing(), "start_failed"),
        ):
            seconds = 0.3 if reason == "timeout" else 60
            said = await run(room, command, timeout_seconds=seconds, collect=["left"])
            assert said["exit"]["reason"] == reason
            assert base64.b64decode(said["collected"][0]["content_base64"]) == b"behind"


async def test_patterns_match_as_in_a_shell(kind: Kind) -> None:
    async with file_room(kind) as room:
        for path in ("a1.c", "a2.c", "ab.c", ".a.c", "[x]", "d/one/x", "d/two/x", "d/two/y"):
            await room.have(path, path.encode())
        found = await collected(room, "a[0-9].c", "?b.c", "d/*/x", "[[]x]", ".*.c", "d/t*/[!x]", "a1.c", "*.h")
        assert list(found) == ["a1.c", "a2.c", "ab.c", "d/one/x", "d/two/x", "[x]", ".a.c", "d/two/y", "*.h"]
        assert all(content == path.encode() for path, content in found.items() if path != "*.h")
        assert list(await collected(room, "*.c")) == ["a1.c", "a2.c", "ab.c"]


async def test_what_is_no_regular_file_is_told_for_its_path(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.fifo("pipe")
        await room.have("folder/file")
        await room.have("there", b"by a link")
        await room.link("there", "good")
        await room.link("nowhere", "dangling")
        await room.link("circle", "circle")
        found = await collected(room, "*", "pipe", "folder")
        assert found.pop("good") == found.pop("there") == b"by a link"
        assert list(found) == ["circle", "folder", "pipe"]  # a link to nothing is no file, as in a shell's test -e
        assert "directory" in str(found["folder"])
        assert "FIFO" in str(found["pipe"])
        alone = await collected(room, "dangling", "circle", "folder/file/x", "pipe")
        assert list(alone) == ["dangling", "circle", "folder/file/x", "pipe"]
        assert alone["dangling"] == "does not exist"
        assert not any("query/path" in str(error) or f"'{path}'" in str(error) for path, error in alone.items())


async def test_what_does_not_fit_is_told_and_the_rest_comes(kind: Kind) -> None:
    async with file_room(kind) as room:
        await room.have("a", pattern(5 * MIB))
        await room.have("b", pattern(4 * MIB))
        await room.have("c", pattern(3 * MIB))
        await room.have("d", b"x")
        found = await collected(room, "[a-d]")
        assert found["a"] == pattern(5 * MIB)
        assert found["c"] == pattern(3 * MIB)
        assert found["b"] == f"has {4 * MIB} bytes; collected files have {8 * MIB} bytes in all at most; " + (
            f"the files before it have {5 * MIB}"
        )
        assert f"the files before it have {8 * MIB}" in str(found["d"])


async def test_patterns_that_lead_out_are_refused_and_nothing_is_begun(kind: Kind) -> None:
    async with file_room(kind) as room:
        wrong = ["/etc/passwd", "../etc/passwd", "a/../../b", "", ".", "a/", "**/x", "a\0b", "n" * 256, "a/" * 64 + "b"]
        answer = await asked(room, kind.programs.echo("x"), collect=wrong)
        assert (answer.status_code, slug(answer)) == (422, "invalid_request")
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/collect/{n}" for n in range(len(wrong))]
        assert (await room.client.get(f"/sandboxes/{room.id}/executions")).json()["items"] == []


async def test_sandbox_that_is_deleted_meanwhile_is_a_killed_run(kind: Kind) -> None:
    async with file_room(kind) as room:
        path = f"/sandboxes/{room.id}"
        running = asyncio.create_task(run(room, kind.programs.trap_usr1(), collect=["a"]))
        printed = 0
        while not printed:
            items = (await room.client.get(f"{path}/executions")).json()["items"]
            printed = items[0]["output"]["stdout"]["bytes"] if items else 0
        assert (await room.client.delete(path)).status_code == 204
        said = await running
        assert (said["exit"]["reason"], said["stdout"]) == ("killed", "ready\n")
        assert said["collected"][0]["error"]


async def test_stderr_comes_in_the_pipe_of_stdout_where_it_is_asked_for(kind: Kind) -> None:
    async with file_room(kind) as room:
        body = {"command": list(kind.programs.both(80_000)), "stderr": "stdout"}
        answers = [
            await room.client.post(path, json=body)
            for path in (f"/sandboxes/{room.id}/run", f"/sandboxes/{room.id}/executions?wait_seconds=30", "/run")
        ]
        if Capability.MERGED_OUTPUT not in room.backend.info.capabilities:
            assert {answer.json()["missing"][0] for answer in answers} == {"merged_output"}
            return
        assert [answer.status_code for answer in answers] == [200, 201, 200]
        for said in (answers[0].json(), answers[2].json()):
            assert (len(said["stdout"]), said["stderr"]) == (160_000, "")
        counts = answers[1].json()["output"]
        assert (counts["stdout"]["bytes"], counts["stderr"]["bytes"]) == (160_000, 0)


async def test_limits_of_an_execution_are_taken_or_refused_by_name(kind: Kind) -> None:
    async with file_room(kind) as room:
        one = {"cpu_seconds": 5, "stack_mib": 4, "open_files": 64, "file_mib": 1}
        paths = {f"/sandboxes/{room.id}/run": {**one, "memory_mib": 32}, "/run": one}
        for path, limits in paths.items():
            answer = await room.client.post(path, json={"command": list(kind.programs.echo("x")), "limits": limits})
            if Capability.EXECUTION_LIMITS in room.backend.info.capabilities:
                assert (answer.status_code, answer.json()["stdout"]) == (200, "x\n"), answer.text
            else:
                assert (answer.status_code, slug(answer)) == (422, "policy_not_supported")
                assert answer.json()["pointer"] == "/limits/cpu_seconds"


async def test_limits_of_each_process_are_taken_or_refused_by_name(kind: Kind) -> None:
    async with file_room(kind) as room:
        limits = {"stack_mib": 4, "open_files": 64, "file_mib": 1}
        body = {"command": list(kind.programs.echo("x")), "limits": limits}
        for path in (f"/sandboxes/{room.id}/run", "/run"):
            answer = await room.client.post(path, json=body)
            if Capability.EXECUTION_RLIMITS in room.backend.info.capabilities:
                assert (answer.status_code, answer.json()["stdout"]) == (200, "x\n"), answer.text
            else:
                assert (answer.status_code, slug(answer)) == (422, "policy_not_supported")
                assert answer.json()["pointer"] == "/limits/stack_mib"
