from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from app.api.context import BODY_LIMIT, RUN_BODY_LIMIT
from app.api.schemas.run_answers import text_pieces
from app.api.schemas.runs import RunResult
from app.core.capabilities import Capability
from app.core.limits import Limits
from app.core.running import Captured
from app.settings import load_settings
from tests.null_backend import CAPABILITIES, Gate, NullBackend, pattern
from tests.unit.api.service import Service, call, kernel, vm
from tests.unit.core.support import until

MIB = 1024 * 1024


async def run(client: httpx.AsyncClient, *command: str, **body: Any) -> dict[str, Any]:
    answer = await client.post("/run", json={"command": list(command), **body})
    assert answer.status_code == 200, answer.text
    RunResult.model_validate_json(answer.content)
    found: dict[str, Any] = answer.json()
    return found


async def refused(service: Service, status: int, slug: str, **body: Any) -> dict[str, Any]:
    """Nothing was created."""
    async with service.client() as client:
        answer = await client.post("/run", json={"command": ["exit", "0"], **body})
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
        assert [b.created for b in service.backends] == [[] for _ in service.backends]
        problem: dict[str, Any] = answer.json()
        return problem


async def test_a_run_answers_with_exit_and_text_and_its_sandbox_is_gone() -> None:
    service = Service()
    async with service.client() as client:
        said = await run(client, "echo", "héllo")
        assert said | {"sandbox_id": "", "exit": {}} == {
            "sandbox_id": "",
            "runtime": "process",
            "exit": {},
            "stdout": "héllo\n",
            "stderr": "",
            "output_mode": "exact",
            "stdout_truncated": False,
            "stderr_truncated": False,
            "network": {"refused": []},
            "encoding": "utf-8",
            "collected": [],
        }
        assert (said["exit"]["reason"], said["exit"]["code"]) == ("exited", 0)
        assert service.backend.alive == []
        assert (await client.get(f"/sandboxes/{said['sandbox_id']}")).status_code == 404
        assert (await client.get("/sandboxes")).json()["items"] == []


async def test_a_command_that_cannot_be_started_is_an_exit() -> None:
    async with Service().client() as client:
        assert (await run(client, "missing"))["exit"]["reason"] == "start_failed"


async def test_fields_of_the_sandbox_and_of_the_execution_are_taken() -> None:
    service = Service()
    async with service.client() as client:
        said = await run(client, "env", runtime="kernel", env={"A": "1"}, labels={"a": "b"}, limits={"memory_mib": 64})
        assert said["stdout"] == "A=1\n"
        assert (await run(client, "pwd", workdir="/tmp"))["stdout"] == "/tmp\n"
        said = await run(client, "sleep", timeout_seconds=0.01)
        assert said["exit"]["reason"] == "timeout"
        said = await run(client, "spew", limits={"output_bytes": 800}, on_output_limit="kill")
        assert (said["stdout"], said["stdout_truncated"]) == (pattern(800).decode(), True)
        assert said["exit"]["reason"] == "output_limit"


async def test_stdin_comes_as_text_or_as_bytes() -> None:
    async with Service().client() as client:
        assert (await run(client, "cat", stdin="ü"))["stdout"] == "ü"
        raw = base64.b64encode(b"\xff\x00").decode()
        said = await run(client, "cat", stdin_base64=raw)
        assert (said["stdout"], said["stderr"], said["encoding"]) == (raw, "", "base64")
        assert (await run(client, "cat", stdin=""))["stdout"] == ""


@pytest.mark.parametrize(
    ("asked", "size"), [(True, (24, 80)), ({"rows": 1, "cols": 10_000}, (1, 10_000)), (False, None)], ids=repr
)
async def test_a_run_on_a_terminal_has_its_size_and_an_end_of_stdin(asked: Any, size: tuple[int, int] | None) -> None:
    service = Service()
    async with service.client() as client:
        said = await run(client, "cat", tty=asked)  # cat ends when its stdin does
    (command,) = service.backend.commands
    assert (said["stdout"], said["exit"]["code"]) == ("", 0)
    assert (command.tty and (command.tty.rows, command.tty.cols)) == size


async def test_what_a_run_types_is_its_stdin() -> None:
    async with Service().client() as client:
        assert (await run(client, "cat", tty=True, stdin="typed\n"))["stdout"] == "typed\n"
    problem = await refused(Service([kernel(lacks=[Capability.PTY])]), 422, "capability_missing", tty=True)
    assert problem["missing"] == ["pty"]


async def test_files_are_put_below_workspace_or_where_their_path_says() -> None:
    service = Service()
    gate = service.backend.execute_gate = Gate()
    async with service.client() as client:
        files = [
            {"path": "main.py", "content": "ü"},
            {"path": "bin/x", "content_base64": "/wA=", "mode": "0755"},
            {"path": "/tmp/y", "content": "", "mode": "600"},
        ]
        running = asyncio.ensure_future(run(client, "read-file", "/workspace/main.py", files=files))
        await gate.reached.wait()
        (room,) = service.backend.sandboxes.values()
        found = [room.files.tree.at(path) for path in (b"/workspace/main.py", b"/workspace/bin/x", b"/tmp/y")]
        assert [(node.mode, bytes(node.content)) for node in found] == [
            (0o644, "ü".encode()),
            (0o755, b"\xff\x00"),
            (0o600, b""),
        ]
        gate.open()
        assert (await running)["stdout"] == "ü"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"id": "mine"}, "/id"),
        ({"command": []}, "/command"),
        ({"command": None}, "/command"),
        ({"stdin": "a", "stdin_base64": "YQ=="}, "/stdin_base64"),
        ({"stdin_base64": "a"}, "/stdin_base64"),
        ({"stdin_base64": "YQ==YQ=="}, "/stdin_base64"),
        ({"stdin_base64": "ü"}, "/stdin_base64"),
        ({"files": [{"path": "a"}]}, "/files/0"),
        ({"files": [{"path": "a", "content": "", "content_base64": ""}]}, "/files/0/content_base64"),
        ({"files": [{"path": "a", "content_base64": "_"}]}, "/files/0/content_base64"),
        ({"files": [{"path": "a", "content": "", "mode": 493}]}, "/files/0/mode"),
        ({"files": [{"path": "a", "content": "", "mode": "4755"}]}, "/files/0/mode"),
        ({"files": [{"path": "a", "content": "", "mode": "0999"}]}, "/files/0/mode"),
        ({"files": [{"path": "a", "content": "", "owner": 1}]}, "/files/0/owner"),
        ({"files": [{"content": ""}]}, "/files/0/path"),
        ({"files": [{"path": "a", "content": ""}, {"path": "../b", "content": ""}]}, "/files/1/path"),
        ({"files": [{"path": f"{n}", "content": ""} for n in range(1025)]}, "/files"),
        ({"tty": {"rows": 0, "cols": 1}}, "/tty/rows"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named_and_nothing_is_created(body: dict[str, Any], pointer: str) -> None:
    problem = await refused(Service(), 422, "invalid_request", **body)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_output_is_bounded_by_8_mib_and_by_the_operator() -> None:
    problem = await refused(Service(), 422, "limit_too_high", limits={"output_bytes": 8 * MIB + 1})
    assert (problem["pointer"], problem["ceiling"]) == ("/limits/output_bytes", 8 * MIB)
    small = load_settings(limits={"output_bytes": {"default": 1000, "ceiling": 2000}})
    problem = await refused(Service(settings=small), 422, "limit_too_high", limits={"output_bytes": 2001})
    assert problem["ceiling"] == 2000
    async with Service(settings=small).client() as client:
        assert len((await run(client, "print", "5000"))["stdout"]) == 2000


async def test_other_ceilings_are_those_of_an_execution() -> None:
    problem = await refused(Service(), 422, "limit_too_high", limits={"wall_seconds": 5}, timeout_seconds=6)
    assert (problem["pointer"], problem["ceiling"]) == ("/timeout_seconds", 5)


async def test_what_the_runtime_lacks_is_refused() -> None:
    without = [NullBackend(capabilities=CAPABILITIES - {Capability.FILES, Capability.STDIN})]
    await refused(Service(without), 409, "unsupported_by_runtime", files=[{"path": "a", "content": ""}])
    problem = await refused(Service(without), 422, "capability_missing", stdin="a")
    assert problem["missing"] == ["stdin"]


async def test_auto_looks_for_a_runtime_that_takes_the_files() -> None:
    without = NullBackend(capabilities=CAPABILITIES - {Capability.FILES})
    async with Service([without, vm(Capability.FILES)], default="auto").client() as client:
        assert (await run(client, "exit", "0"))["runtime"] == "process"
        assert (await run(client, "exit", "0", files=[{"path": "a", "content": ""}]))["runtime"] == "boxlite"


async def test_an_error_of_a_file_names_it_and_leaves_nothing() -> None:
    service = Service()
    async with service.client() as client:
        files = [{"path": "a", "content": ""}, {"path": "b", "content": "x" * (2 * MIB)}]
        body = {"command": ["exit", "0"], "files": files, "limits": {"disk_mib": 1}}
        answer = await client.post("/run", json=body)
        assert (answer.status_code, answer.json()["limit"]) == (507, MIB)
        assert answer.json()["detail"].startswith("/files/1: ")
        answer = await client.post("/run", json={**body, "files": [{"path": "/usr/a", "content": ""}]})
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/access_denied")
        assert answer.json()["detail"].startswith("/files/0: ")
        assert service.backend.alive == []


async def test_a_body_may_have_8_mib_here_and_no_more() -> None:
    async with Service().client() as client:
        head, tail = b'{"command":["cat"],"limits":{"output_bytes":1000},"stdin":"', b'"}'
        content = head + b"x" * (RUN_BODY_LIMIT - len(head) - len(tail)) + tail
        json_type = {"content-type": "application/json"}
        answer = await client.post("/run", content=content, headers=json_type)
        assert (answer.status_code, answer.json()["stdout"]) == (200, "x" * 1000)
        answer = await client.post("/run", content=content + b" ", headers=json_type)
        assert (answer.status_code, answer.json()["limit"]) == (413, RUN_BODY_LIMIT)
        answer = await client.post("/sandboxes", content=content, headers=json_type)
        assert (answer.status_code, answer.json()["limit"]) == (413, BODY_LIMIT)


async def test_a_client_that_disconnects_ends_its_run() -> None:
    service = Service()
    left = asyncio.Event()
    body = json.dumps({"command": ["sleep"]}).encode()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(call(service.app, "POST", "/run", [], receive=receive))
    await until(lambda: any(room.executions for room in service.backend.sandboxes.values()))
    left.set()
    assert await running == []
    assert service.backend.alive == []
    assert list(service.sandboxes) == []
    assert service.logged[-1]["status"] == 499


async def test_its_life_outlasts_its_timeout() -> None:
    service = Service(settings=load_settings(limits={"wall_seconds": {"default": 7200}}))
    async with service.client() as client:
        running = asyncio.ensure_future(run(client, "sleep"))
        await until(lambda: any(room.executions for room in service.backend.sandboxes.values()))
        (sandbox,) = service.sandboxes
        assert sandbox.spec.ttl_seconds == 7200 + 3600
        await sandbox.destroy()
        assert (await running)["exit"]["reason"] == "killed"
        assert sandbox.spec.limits == Limits(output_bytes=MIB, wall_seconds=7200)


@pytest.mark.parametrize(
    ("data", "cut_begin", "cut_end", "text"),
    [
        ("aü".encode(), False, False, "aü"),
        ("ü€😀".encode()[1:], True, False, "€😀"),
        ("😀a".encode()[1:], True, False, "a"),
        ("a😀".encode()[:-1], False, True, "a"),
        ("a😀".encode()[:-3], False, True, "a"),
        (b"\x80", True, False, ""),
        (b"", True, True, ""),
    ],
)
def test_a_character_that_the_limit_cut_is_left_out(data: bytes, cut_begin: bool, cut_end: bool, text: str) -> None:
    assert "".join(text_pieces(Captured(data, cut_begin, cut_end, has_gap=False))) == text


@pytest.mark.parametrize(
    ("data", "cut_begin", "cut_end"),
    [
        ("ü".encode()[1:], False, False),
        ("a😀".encode()[:-1], False, False),
        (b"\x80\x80\x80\x80a", True, False),
        (b"\xffa", True, True),
        (b"a\xff", False, True),
        (b"\xffa", False, True),
    ],
)
def test_what_is_no_text_is_not_made_one(data: bytes, cut_begin: bool, cut_end: bool) -> None:
    with pytest.raises(UnicodeDecodeError):
        list(text_pieces(Captured(data, cut_begin, cut_end, has_gap=False)))
