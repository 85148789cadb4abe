"""The frames of a stream: their schemas, building the server's and parsing the client's.

Binary frames have no schema. From the server byte 0 is the channel (1 stdout, 2 stderr) and the rest is at most 64 KiB
of output. From the client they are stdin.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json

from app.api.http.problems import problem_of
from app.api.http.validation import invalid_request, refuse_doubled_keys
from app.api.schemas.answers import AnswerSchema, Exit
from app.api.schemas.problem_schema import Problem
from app.api.schemas.requests import Terminal
from app.api.schemas.strict import Strict
from app.api.schemas.views import exit_body
from app.core.commands import number_of_signal, signal_number
from app.core.errors import InvalidRequest, PayloadTooLarge
from app.core.executions import Execution
from app.core.follow import OutputGap
from app.core.models import Channel, ExecutionState, exit_code_for_shells
from app.core.models import Terminal as Size
from app.core.output import OutputLog

TEXT_LIMIT = 64 * 1024
CHANNEL_BYTE = {Channel.STDOUT: b"\x01", Channel.STDERR: b"\x02"}
F = TypeVar("F", bound=Strict)
_REALTIME = re.compile(r"SIGRTMIN\+(\d+)")


class StreamStart(AnswerSchema):
    """The first frame."""

    type: Literal["start"]
    stdout_offset: int
    stderr_offset: int
    stdin_bytes: int = Field(
        description="bytes of stdin accepted so far; a writer resumes here after a broken connection"
    )
    state: ExecutionState


class StreamGap(AnswerSchema):
    """Bytes that are no longer stored. If `to` is null, the runtime lost bytes at `from`. Nobody knows how many, and
    offsets go on at `from`."""

    type: Literal["gap"]
    channel: Channel
    from_: int = Field(alias="from")
    to: int | None = Field(description="the first byte after the gap")


class StreamOutput(AnswerSchema):
    """Output as a Server-Sent Event. Over a WebSocket output comes as binary frames."""

    channel: Channel
    offset: int = Field(description="offset of the first byte")
    base64: str = Field(description="at most 64 KiB of output")


class StreamDigest(AnswerSchema):
    bytes: int
    dropped_bytes: int | None
    sha256: str = Field(description="digest of all bytes of the channel, dropped ones included")


class StreamExit(AnswerSchema):
    """The last frame. Then the server closes with 1000."""

    type: Literal["exit"]
    exit_code: int = Field(
        description="the exit code; or minus the signal's number; 127: not found; 126: any other start_failed; -1: lost"
    )
    exit: Exit
    stdout: StreamDigest
    stderr: StreamDigest


class StreamProblem(AnswerSchema):
    """Something that the client sent was refused, or the stream cannot go on (then close 1011)."""

    type: Literal["problem"]
    problem: Problem


class StreamStdinEof(Strict):
    type: Literal["stdin_eof"]


class StreamSignal(Strict):
    """A signal, as in POST …/signal. `type` may be left out."""

    type: Literal["signal"] = "signal"
    signal: str = Field(description="a name such as SIGINT or INT")


class StreamResize(Terminal):
    """The terminal's new size, for an execution that was started with one."""

    type: Literal["resize"]


FRAMES: tuple[type[BaseModel], ...] = (
    StreamStart,
    StreamOutput,
    StreamGap,
    StreamExit,
    StreamProblem,
    StreamStdinEof,
    StreamSignal,
    StreamResize,
)


class StdinEof:
    """The client asks for the end of stdin."""


# --- ours


def _text(frame: dict[str, Any]) -> str:
    return to_json(frame).decode()


def start_frame(execution: Execution, offsets: dict[Channel, int]) -> str:
    return _text(
        {
            "type": "start",
            "stdout_offset": offsets[Channel.STDOUT],
            "stderr_offset": offsets[Channel.STDERR],
            "stdin_bytes": execution.stdin_bytes,
            "state": execution.state,
        }
    )


def gap_frame(gap: OutputGap) -> str:
    return _text({"type": "gap", "channel": gap.channel, "from": gap.begin, "to": gap.end})


def exit_frame(execution: Execution) -> str:
    exit_ = execution.exit
    if exit_ is None:  # the core closes the logs after it set the exit
        raise RuntimeError("the output ended before the execution did")
    return _text(
        {
            "type": "exit",
            "exit_code": exit_code_for_shells(exit_, number_of(exit_.signal)),
            "exit": exit_body(exit_),
            **{str(channel): _digest(log) for channel, log in execution.logs.items()},
        }
    )


def _digest(log: OutputLog) -> dict[str, Any]:
    return {"bytes": log.total, "dropped_bytes": log.dropped, "sha256": log.sha256}


def number_of(name: str | None) -> int | None:
    """The number of the signal that ended a program, real-time signals included."""
    if name is None:
        return None
    realtime = _REALTIME.fullmatch(name)
    return 34 + int(realtime[1]) if realtime else signal_number(name)


def problem_frame(error: Exception, request_id: str) -> str:
    return _text({"type": "problem", "problem": problem_of(error).body(request_id)})


# --- the client's


def understand(text: str) -> StdinEof | Size | int:
    """Returns a signal's number, a terminal's new size, or the end of stdin. Raises InvalidRequest or
    PayloadTooLarge."""
    if len(text) > TEXT_LIMIT or len(text.encode()) > TEXT_LIMIT:
        raise PayloadTooLarge(TEXT_LIMIT, "the text frame")
    try:
        frame = from_json(text)
    except ValueError as error:
        raise InvalidRequest.at("", f"the frame is not JSON: {error}") from None
    if not isinstance(frame, dict):
        raise InvalidRequest.at("", "a text frame must be a JSON object")
    refuse_doubled_keys(text)
    match frame.get("type", "signal" if "signal" in frame else None):
        case "stdin_eof":
            _valid(StreamStdinEof, frame)
            return StdinEof()
        case "resize":
            size = _valid(StreamResize, frame)
            return Size(size.rows, size.cols)
        case "signal":
            return number_of_signal(_valid(StreamSignal, frame).signal)
    raise InvalidRequest.at("/type", "is not the type of a frame that a client can send")


def _valid(model: type[F], frame: dict[str, Any]) -> F:
    try:
        return model.model_validate(frame)
    except ValidationError as error:
        raise invalid_request(error, model) from None
