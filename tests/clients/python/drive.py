"""Drives a service with the generated Python client; prints what it saw as JSON. docs/clients.md quotes it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from typing import TypeVar

from bulkhead_client import AuthenticatedClient, Client
from bulkhead_client.api.executions import create_execution, get_execution, get_output, run_once
from bulkhead_client.api.files import list_directory, make_directory, read_archive, read_file, write_archive, write_file
from bulkhead_client.api.sandboxes import create_sandbox, delete_sandbox, get_sandbox, update_sandbox
from bulkhead_client.models import (
    CreateExecution,
    CreateSandbox,
    CreateSandboxLabels,
    Execution,
    LimitsRequest,
    Problem,
    Run,
    RunFile,
    Sandbox,
    Stdin,
    StreamExit,
    StreamStart,
    StreamStdinEof,
    UpdateSandbox,
)
from bulkhead_client.types import File
from websockets.asyncio.client import connect

URL, KEY = os.environ["BULKHEAD_CLIENT_URL"], os.environ["BULKHEAD_CLIENT_KEY"]
T = TypeVar("T")


# [problem]
def taken(answer: T | Problem | None) -> T:
    """Every call returns what was asked for, or a Problem."""
    if isinstance(answer, Problem):
        raise RuntimeError(f"{answer.type_}: {answer.detail}")
    assert answer is not None, "an answer that openapi.yaml does not have"
    return answer


# [end]
def refused(answer: object) -> dict[str, object]:
    assert isinstance(answer, Problem), answer
    told = {"status": answer.status, "type": answer.type_}
    if answer.pointer:
        told |= {"pointer": answer.pointer, "ceiling": answer.ceiling}
    if answer.errors:
        told["pointers"] = [wrong.pointer for wrong in answer.errors]
    return told


def labels(**texts: str) -> CreateSandboxLabels:
    found = CreateSandboxLabels()
    found.additional_properties.update(texts)
    return found


# [stream]
async def talk(sandbox: str, execution: str, text: bytes) -> tuple[bytes, StreamExit]:
    """Sends the text to the program's stdin and returns its stdout, checked, and its exit."""
    url = f"{URL.replace('http', 'ws', 1)}/sandboxes/{sandbox}/executions/{execution}/stream?stdin=true"
    stdout = b""
    async with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        StreamStart.from_dict(json.loads(await socket.recv()))
        await socket.send(text)
        await socket.send(json.dumps(StreamStdinEof(type_="stdin_eof").to_dict()))
        async for frame in socket:
            if isinstance(frame, bytes):  # the first byte is the channel: 1 stdout, 2 stderr
                stdout += frame[1:] if frame[0] == 1 else b""
            elif json.loads(frame)["type"] == "exit":
                ended = StreamExit.from_dict(json.loads(frame))
                assert ended.stdout.sha256 == hashlib.sha256(stdout).hexdigest()
                return stdout, ended
    raise RuntimeError("the stream ended without an exit")


# [end]
def keep_files(client: AuthenticatedClient, sandbox: str) -> list[object]:
    data = bytes(range(256)) * 1024
    # [files]
    write_file.sync_detailed(sandbox, client=client, path="notes/data", body=File(payload=io.BytesIO(data)))
    back = taken(read_file.sync(sandbox, client=client, path="notes/data")).payload.read()
    names = [entry.name for entry in taken(list_directory.sync(sandbox, client=client, path="notes")).items]
    archive = taken(read_archive.sync(sandbox, client=client, path="notes"))
    write_archive.sync_detailed(sandbox, client=client, path="copy", body=archive)
    # [end]
    copy = taken(read_file.sync(sandbox, client=client, path="copy/data")).payload.read()
    made = make_directory.sync_detailed(sandbox, client=client, path="empty").status_code
    wrong = read_file.sync(sandbox, client=client, path="notes")
    assert isinstance(wrong, Problem)
    return [back == data, names, copy == data, made, wrong.type_, wrong.found]


def run_at_once(client: AuthenticatedClient) -> list[object]:
    # [run]
    request = Run(command=["cat"], stdin="hello\n", files=[RunFile(path="data.txt", content="beside it")])
    result = taken(run_once.sync(client=client, body=request, idempotency_key="run-1-of-python"))
    print(result.exit_.reason, result.stdout)
    # [end]
    again = taken(run_once.sync(client=client, body=request, idempotency_key="run-1-of-python"))
    request.stdin = "something else"
    other = run_once.sync(client=client, body=request, idempotency_key="run-1-of-python")
    return [result.stdout, again.sandbox_id == result.sandbox_id, refused(other)]


def main() -> None:
    report: dict[str, object] = {}
    # [use]
    with AuthenticatedClient(base_url=URL, token=KEY) as client:
        request = CreateSandbox(id="build-python", labels=labels(team="ci"), limits=LimitsRequest(memory_mib=64))
        sandbox: Sandbox = taken(create_sandbox.sync(client=client, body=request))
        execution_request = CreateExecution(command=["echo", "hello"], timeout_seconds=10)
        started = create_execution.sync(sandbox.id, client=client, body=execution_request, wait_seconds=30)
        execution: Execution = taken(started)
        output: File = taken(get_output.sync(sandbox.id, execution.id, client=client))
        print(execution.exit_.reason, execution.exit_.code, output.payload.read())
        # [end]
        output.payload.seek(0)
        report["sandbox"] = [sandbox.id, sandbox.state, sandbox.labels.additional_properties, sandbox.limits.memory_mib]
        report["again"] = create_sandbox.sync_detailed(client=client, body=request).status_code
        report["output"] = [execution.exit_.code, output.payload.read().decode()]
        execution_request = CreateExecution(command=["missing"])
        missing = taken(create_execution.sync(sandbox.id, client=client, body=execution_request))
        missing = taken(get_execution.sync(sandbox.id, missing.id, client=client, wait_seconds=30))
        report["missing"] = missing.exit_.reason
        report["idle"] = [
            taken(update_sandbox.sync(sandbox.id, client=client, body=UpdateSandbox(idle_seconds=idle))).idle_seconds
            for idle in (60, None)
        ]
        cat = taken(
            create_execution.sync(sandbox.id, client=client, body=CreateExecution(command=["cat"], stdin=Stdin.OPEN))
        )
        stdout, ended = asyncio.run(talk(sandbox.id, cat.id, b"over the wire\n"))
        report["stream"] = [stdout.decode(), ended.exit_code, ended.exit_.reason]
        report["files"] = keep_files(client, sandbox.id)
        report["run"] = run_at_once(client)
        too_high = CreateSandbox(limits=LimitsRequest(memory_mib=2**40))
        report["problems"] = [
            refused(create_sandbox.sync(client=client, body=too_high)),
            refused(create_sandbox.sync(client=client, body=CreateSandbox(ttl_seconds=-1))),
            refused(get_sandbox.sync("nobody", client=client)),
            refused(get_sandbox.sync(sandbox.id, client=Client(base_url=URL))),
        ]
        report["deleted"] = delete_sandbox.sync_detailed(sandbox.id, client=client).status_code
        report["state"] = taken(get_sandbox.sync(sandbox.id, client=client)).state
    print(json.dumps(report))


main()
