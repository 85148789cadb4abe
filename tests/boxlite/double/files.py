"""Uploads and downloads as the server does them; they happen inside the box, so nothing leads out of it.

The real download follows links of the box on the server's host. This one does not, but it is recorded like every
other request, so that a test can say that it never happened.
"""

from __future__ import annotations

import asyncio
import os

from tests.boxlite.double.engine import Engine
from tests.boxlite.double.faults import Route
from tests.boxlite.double.http import Failure, Request, Response, Unframed
from tests.boxlite.double.machine import Program
from tests.boxlite.double.routes import NO_CONTENT, does
from tests.boxlite.double.run import Run

MOUNTS = ("/tmp", "/dev/shm", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
UNPACK = 'mkdir -p "$1/extracted" && tar -xf - -C "$1/extracted" --exclude="*..*"'  # what the server names it
PACK = 'cd "$(dirname "$1")" && [ -e "$1" ] && tar -cf - -- "$(basename "$1")"'


async def carry_out(run: Run, program: Program, stdin: bytes) -> tuple[int, bytes]:
    """Not an execution: its output is bytes, and nobody can ask for it."""
    process = await run.machine.spawn(program)
    loop = asyncio.get_running_loop()
    os.set_blocking(process.stdin, True)
    output = asyncio.StreamReader()
    pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(process.outputs[0], "rb", 0)
    )
    try:

        def write() -> None:
            with os.fdopen(process.stdin, "wb") as file:
                file.write(stdin)

        await asyncio.to_thread(write)
        return await process.exited, await output.read()
    finally:
        pipe.close()
        os.close(process.outputs[1])


def destination(request: Request) -> str:
    path = request.query.get("path")
    if path is None:
        raise Unframed(400, "Failed to deserialize query string: missing field `path`")
    if not path:
        raise Failure("config_error", "configuration error: destination path cannot be empty")
    if ".." in path.split("/"):
        raise Failure("invalid_argument", "invalid argument: path must not contain ..")
    whole = path if path.startswith("/") else f"/{path}"
    for mount in MOUNTS:
        if whole == mount or whole.startswith(f"{mount}/"):
            text = f"{path} is under the container's '{mount}' mount, which file transfer cannot reach"
            raise Failure("unsupported", f"unsupported: {text}")
    return whole


@does(Route.UPLOAD)
async def upload(engine: Engine, request: Request, args: list[str]) -> Response:
    if request.too_large:
        raise Unframed(413, "Failed to buffer the request body: length limit exceeded")
    box = engine.box(args[0])
    box.touch()
    run = await box.wake("copy into")
    program = box.program(["sh", "-c", UNPACK, "upload", destination(request)], {}, "/", tty=False)
    code, _ = await carry_out(run, program, request.body)
    if code and request.body:
        raise Failure("invalid_argument", "failed to extract tar: failed to iterate over archive")
    return NO_CONTENT


@does(Route.DOWNLOAD)
async def download(engine: Engine, request: Request, args: list[str]) -> Response:
    path = destination(request)
    box = engine.box(args[0])
    box.touch()
    run = await box.wake("copy out")
    code, archive = await carry_out(run, box.program(["sh", "-c", PACK, "download", path], {}, "/", tty=False), b"")
    if code:
        raise Failure("not_found", f"not found: {path}")
    return Response(200, archive, "application/x-tar")
