"""The one-shot route: create, execute, collect, destroy in one call."""

from __future__ import annotations

import binascii
import contextlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from app.api.context import Edge, edge_of, held, visitor_of
from app.api.http.bodies import read_json
from app.api.http.disconnect import until_disconnect
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import json_body, problems
from app.api.routes.sandboxes import OF_A_CREATE
from app.api.schemas.runs import Run, RunFile, RunResult
from app.api.schemas.specs import DEFAULT_TTL_SECONDS, sandbox_spec, terminal_of, timeout_of
from app.api.schemas.views import Body, exit_body
from app.core.backend import Capability
from app.core.errors import InvalidRequest
from app.core.limits import LimitRange
from app.core.models import Command, SandboxSpec, Stdin
from app.core.oneshot import Captured, OneShot, Outcome, run_once
from app.core.placing import PlacedFile
from app.core.timeslices import TimeSlices

router = APIRouter(tags=["executions"], route_class=StrictRoute)

# Both channels are held in memory as a whole, and travel as one JSON document.
OUTPUT_DEFAULT, OUTPUT_CEILING = 1024 * 1024, 8 * 1024 * 1024
_CONTINUATION = 3  # bytes that a UTF-8 character has at most behind its first


@router.post(
    "/run",
    operation_id="run_once",
    summary="Run one command in a sandbox of its own",
    response_model=RunResult,
    responses=problems(
        *OF_A_CREATE, "unsupported_by_runtime", "wrong_state", "wrong_type", "access_denied", "disk_full"
    ),
    openapi_extra=json_body(Run),
)
async def run(request: Request) -> Response:
    """Creates a sandbox, puts `files` into it, runs the command with `stdin`, and destroys the sandbox. The sandbox is
    gone when the answer comes, and no record of it is kept. A command that fails, or cannot be started, is a 200 whose
    `exit` says so. If the client disconnects, the run ends, unless the client sent an Idempotency-Key."""
    edge = edge_of(request)
    asked = await read_json(request, Run)
    await TimeSlices.of_loop().next()  # 8 MiB were parsed; to decode them takes as long once more
    shot = await _shot(asked, edge)
    client = visitor_of(request).client
    with held(request), edge.shares.bodies.taking(client) as take:
        take(len(shot.stdin) + sum(len(file.content) for file in shot.files))
        outcome = await until_disconnect(request.receive, run_once(edge.sandboxes, shot, client))
    return await response_of(outcome, shot.spec.runtime)


async def _shot(asked: Run, edge: Edge) -> OneShot:
    stdin = _bytes(asked.stdin, asked.stdin_base64, "/stdin_base64", "stdin")
    files = [_file(file, f"/files/{number}") for number, file in enumerate(asked.files)]
    needs = {Capability.STDIN} if stdin else set()
    needs |= {Capability.FILES} if files else set()
    needs |= {Capability.PTY} if asked.tty is not None else set()
    spec = await sandbox_spec(asked, _with_output_range(edge), more=frozenset(needs))
    timeout = timeout_of(asked.timeout_seconds, spec, edge)
    if asked.ttl_seconds is None:
        spec = replace(spec, ttl_seconds=min(timeout + DEFAULT_TTL_SECONDS, edge.ttl_ceiling_seconds))
    return OneShot(spec, _command(asked, spec, timeout, has_stdin=bool(stdin)), files, stdin)


def _with_output_range(edge: Edge) -> Edge:
    operators = edge.ranges["output_bytes"]
    ceiling = min(OUTPUT_CEILING, operators.ceiling)
    return replace(edge, ranges={**edge.ranges, "output_bytes": LimitRange(min(OUTPUT_DEFAULT, ceiling), ceiling)})


def _command(asked: Run, spec: SandboxSpec, timeout: float, *, has_stdin: bool) -> Command:
    return Command(
        argv=tuple(asked.command),
        workdir=spec.workdir,
        timeout_seconds=timeout,
        stdin=Stdin.OPEN if has_stdin or asked.tty is not None else Stdin.NONE,
        on_output_limit=asked.on_output_limit,
        tty=terminal_of(asked.tty),
    )


def _file(file: RunFile, pointer: str) -> PlacedFile:
    if file.content is None and file.content_base64 is None:
        raise InvalidRequest.at(pointer, "needs content or content_base64")
    content = _bytes(file.content, file.content_base64, f"{pointer}/content_base64", "content")
    return PlacedFile(file.path, content, int(file.mode, 8))


def _bytes(text: str | None, encoded: str | None, pointer: str, beside: str) -> bytes:
    if encoded is None:
        return b"" if text is None else text.encode()
    if text is not None:
        raise InvalidRequest.at(pointer, f"is there beside {beside}; send one of the two, not both")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:  # not ASCII, or not base64
        raise InvalidRequest.at(pointer, f"is not base64: {error}") from None


# --- the answer

_PIECE = 48 * 1024  # a multiple of three, as base64 wants
# Bytes of JSON. A control character becomes six; what is longer is shorter as base64, which is at most 22 MiB.
_TEXT_MOST = 24 * 1024 * 1024


async def response_of(outcome: Outcome, runtime: str) -> Response:
    """Made piece by piece: two texts of 8 MiB would hold the event loop for too long."""
    slices = TimeSlices.of_loop()
    channels = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    encoding, pieces = "utf-8", None
    with contextlib.suppress(UnicodeDecodeError):
        texts: dict[str, Iterator[bytes]] = {}
        for name, channel in channels.items():
            texts[name] = _json_pieces(text_of(channel))
            await slices.next()
        pieces = await _members(texts, _TEXT_MOST)
    if pieces is None:
        encoding = "base64"
        pieces = await _members({name: _base64_pieces(channel.data) for name, channel in channels.items()})
    body: Body = {
        "sandbox_id": outcome.sandbox_id,
        "runtime": runtime,
        "exit": exit_body(outcome.exit),
        "stdout_truncated": outcome.stdout.truncated,
        "stderr_truncated": outcome.stderr.truncated,
        "encoding": encoding,
    }
    return Response(b"".join([to_json(body)[:-1], *(pieces or ()), b"}"]), media_type="application/json")


def _json_pieces(text: str) -> Iterator[bytes]:
    return (to_json(text[at : at + _PIECE])[1:-1] for at in range(0, len(text), _PIECE))


def _base64_pieces(data: bytes) -> Iterator[bytes]:
    return (b64encode(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))


async def _members(texts: Mapping[str, Iterator[bytes]], most: int | None = None) -> list[bytes] | None:
    """Further members of a JSON object. None when they would have more bytes than allowed."""
    slices = TimeSlices.of_loop()
    pieces: list[bytes] = []
    size = 0
    for name, text in texts.items():
        pieces.append(b',"%b":"' % name.encode())
        for piece in text:
            pieces.append(piece)
            size += len(piece)
            if most is not None and size > most:
                return None
            if slices.over:
                await slices.next()
        pieces.append(b'"')
    return pieces


def text_of(channel: Captured) -> str:
    """Raises UnicodeDecodeError for bytes that are not UTF-8. A character that the output limit cut in two is left out.
    Otherwise every second text over the limit would come as base64."""
    data = channel.data
    if channel.cut_begin:
        whole = next((at for at in range(min(_CONTINUATION, len(data))) if not 0x80 <= data[at] < 0xC0), _CONTINUATION)
        data = data[whole:]
    if not channel.cut_end:
        return data.decode()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return data[: error.start].decode()
