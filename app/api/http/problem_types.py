"""The table of problems (RFC 9457): one row for each error that a client can meet.

The translation of errors, the schema `Problem`, the pages below /problems, openapi.yaml and the list in docs/api.md all
come from here. No other module knows which status an error has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.api.http import errors as h
from app.core import errors as e
from app.core.limits import LIMITS

ERRORS_SHOWN = 32  # a body of 4 MiB can be wrong in a million places


class FieldProblem(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    pointer: str = Field(description="a JSON pointer into the body, or query/NAME, path/NAME or header/NAME")
    detail: str


_JSON_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    int | None: "integer or null",
    str | None: "string or null",
    list[str]: "array of strings",
    list[FieldProblem]: "array of objects with `pointer` and `detail`",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member beside those that every problem has. `type` is a Python type, from which the schema is made. `read`
    takes the value from the error."""

    name: str
    type: Any
    meaning: str
    read: Callable[[Any], Any]

    @property
    def json_type(self) -> str:
        """The type in words, for people."""
        return _JSON_TYPES[self.type]


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """`read` takes the value from the error. With None it is not sent. A header without a `meaning` is of no use to
    clients and is not described."""

    name: str
    meaning: str
    read: Callable[[Any], str | None]
    type: str = "string"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """The class of `example` is the error that the row is for. `meaning` says what happened and what to do."""

    example: e.BulkheadError
    slug: str
    status: int
    title: str
    meaning: str
    members: tuple[Member, ...] = ()
    headers: tuple[ResponseHeader, ...] = ()

    @property
    def error(self) -> type[e.BulkheadError]:
        return type(self.example)


def _member(name: str, kind: Any, meaning: str, attribute: str = "") -> Member:
    return Member(name, kind, meaning, attrgetter(attribute or name))


def _errors(error: Any) -> list[dict[str, str]]:
    return [{"pointer": field.pointer, "detail": field.detail} for field in error.errors[:ERRORS_SHOWN]]


def _ceiling(error: Any) -> float:
    row = LIMITS.get(error.pointer.rpartition("/")[2])
    ceiling: float = error.ceiling if row is None else row.number(error.ceiling)
    return ceiling


def _close(error: Any) -> str | None:
    return "close" if isinstance(error, h.BodyTooSlow) else None


def _content_range(error: Any) -> str | None:
    return None if error.size is None else f"bytes */{error.size}"


_RUNTIME = _member("runtime", str, "the runtime's name")
_KNOWN = _member("known", list[str], "the names that exist")
_POINTER = _member("pointer", str, "the field, as a JSON pointer into the body")
_BYTES = _member("limit", int, "the most bytes that are taken")
_OF_SERVER = (
    _RUNTIME,
    _member(
        "upstream_status",
        int | None,
        "the HTTP status that the runtime's server gave; null: it gave none",
        "upstream.status",
    ),
    _member(
        "upstream_code", str | None, "the code that the runtime's server gave; null: it gave none", "upstream.code"
    ),
)
_RETRY_AFTER = ResponseHeader(
    "Retry-After",
    "seconds to wait before trying again",
    lambda error: str(error.retry_after_seconds),
    "integer",
)

TABLE = (
    ProblemType(
        e.InvalidRequest.at("/limits/memory_mib", "must be a whole number"),
        "invalid_request",
        422,
        "The request is not valid",
        "A field, a query parameter or the whole body is not what the API takes. `errors` names every wrong place, "
        "with a pointer and a sentence. Nothing was created or changed. Correct the named places and send the request "
        "again.",
        (Member("errors", list[FieldProblem], f"every wrong place, {ERRORS_SHOWN} at most", _errors),),
        (ResponseHeader("Connection", "", _close),),
    ),
    ProblemType(
        e.UnknownRuntime("docker", ["auto", "boxlite", "kernel", "linux", "process"]),
        "unknown_runtime",
        422,
        "There is no such runtime",
        "The request names a runtime that the service does not have. Use one of `known`. GET /runtimes lists them with "
        "their aliases.",
        (_RUNTIME, _KNOWN),
    ),
    ProblemType(
        e.RuntimeNotEnabled("boxlite", ["auto", "kernel", "linux", "process"]),
        "runtime_not_enabled",
        422,
        "The runtime is not enabled",
        "The service has this runtime, but its operator has switched it off. The service never uses another runtime in "
        "its place. With `auto`: no runtime that is switched on isolates as strongly as the request asks for.",
        (_RUNTIME, _KNOWN),
    ),
    ProblemType(
        e.UnknownImage("ubuntu", ["python"]),
        "unknown_image",
        422,
        "There is no such image",
        "The image is not in the operator's table, or the request names none and there is no default. Use one of "
        "`known`.",
        (_KNOWN,),
    ),
    ProblemType(
        e.UnknownProfile("strict", ["default"]),
        "unknown_profile",
        422,
        "There is no such policy profile",
        "The operator writes the profiles. Use one of `known`.",
        (_KNOWN,),
    ),
    ProblemType(
        e.PolicyTooBroad("/policy/network/mode", "none", "the profile allows no network"),
        "policy_too_broad",
        422,
        "The policy asks for more than the operator allows",
        "A client may only narrow what the operator's profile and settings allow. `pointer` names the part that is too "
        "broad, `ceiling` says what is allowed there, and `detail` which setting it is from.",
        (_POINTER, _member("ceiling", str, "what the operator allows")),
    ),
    ProblemType(
        e.LimitTooHigh("/limits/memory_mib", 8192, 4096),
        "limit_too_high",
        422,
        "The limit is above the ceiling",
        "The request asks for more than `ceiling`. Send that value or a lower one. For a new sandbox, the operator or "
        "the runtime sets the ceiling, and GET /runtimes lists it. With the storage `memory`, `disk_mib` has the "
        "ceiling `memory_mib` too. For an execution, the limits of its sandbox set it: create a sandbox with higher "
        "limits.",
        (_POINTER, Member("ceiling", float, "the highest value that can be had", _ceiling)),
    ),
    ProblemType(
        e.PolicyNotSupported("/limits/processes", "boxlite", "the runtime 'boxlite' cannot limit processes"),
        "policy_not_supported",
        422,
        "The runtime cannot enforce a limit or policy",
        "The service refuses what a runtime cannot enforce; it never ignores it. Leave out what `pointer` names, or "
        "choose another runtime.",
        (_POINTER, _RUNTIME),
    ),
    ProblemType(
        e.CapabilityMissing(["pause"], "boxlite"),
        "capability_missing",
        422,
        "No such capability in the runtime",
        "The request needs what `missing` names, and the runtime lacks it. GET /runtimes lists what each runtime "
        "can do.",
        (_member("missing", list[str], "the capabilities that the runtime lacks"), _RUNTIME),
    ),
    ProblemType(
        e.IdempotencyMismatch(),
        "idempotency_mismatch",
        422,
        "The Idempotency-Key was used with another request",
        "An Idempotency-Key stands for one request: the same method, path, query and body. Use a new key for a new "
        "request.",
    ),
    ProblemType(
        e.InvalidArchive("../etc/passwd", "a name must not hold '..'"),
        "invalid_archive",
        422,
        "The archive is refused",
        "`entry` names the entry at fault: its path leaves the tree or is absolute, or it is a device or another "
        "file that an archive may not bring. It is empty when the archive as a whole is at fault. Nothing of the "
        "archive was kept.",
        (_member("entry", str, "the name of the entry; empty: the archive as a whole"),),
    ),
    ProblemType(
        e.BoundExceeded("entries in one archive", 100_000, "ask for parts of the tree one by one"),
        "bound_exceeded",
        422,
        "The request needs more than is possible",
        "`limit` is the most that one request or its sandbox can have of what `bound` names. The same request fails "
        "again however long you wait. Ask for less, or split the request.",
        (
            _member("bound", str, "what is counted"),
            _member("limit", int, "the most that is possible of what `bound` names"),
        ),
    ),
    ProblemType(
        e.NotFound("sandbox", "sbx_06fa2c8q0gsbsd9e2y5k8w1m3c"),
        "not_found",
        404,
        "Not found",
        "Nothing has this id or path now. The service forgets a destroyed sandbox after an hour, unless its operator "
        "has set another time.",
    ),
    ProblemType(
        h.MethodNotAllowed({"GET", "HEAD"}),
        "method_not_allowed",
        405,
        "The method is not allowed here",
        "The path exists, but does not take this method. The header Allow and the detail name the methods that it "
        "takes.",
        headers=(ResponseHeader("Allow", "the methods that the path takes", attrgetter("allow")),),
    ),
    ProblemType(
        h.UnsupportedMediaType("the body is text/plain; send application/json"),
        "unsupported_media_type",
        415,
        "The body has the wrong media type",
        "Send JSON with the header Content-Type: application/json. Send files and archives as they are, without a "
        "Content-Encoding.",
    ),
    ProblemType(
        e.PreconditionFailed("the file has another ETag"),
        "precondition_failed",
        412,
        "The precondition does not hold",
        "The file is not, or is no longer, what If-Match, If-None-Match or If-Unmodified-Since names. Read it again "
        "before you change it.",
    ),
    ProblemType(
        e.RangeNotSatisfiable("the file has 1000 bytes", 1000),
        "range_not_satisfiable",
        416,
        "The offset is beyond the end",
        "There are fewer bytes than the offset. For an execution, its member `output` says how many bytes each channel "
        "has. For a file, the header Content-Range says how many bytes it has.",
        headers=(ResponseHeader("Content-Range", "the file's size, as `bytes */1000`", _content_range),),
    ),
    ProblemType(
        h.UpgradeRequired("this path needs a WebSocket"),
        "upgrade_required",
        426,
        "This path needs a WebSocket",
        "Open the path with a WebSocket client. Or ask for Server-Sent Events with the header "
        "Accept: text/event-stream.",
        headers=(
            ResponseHeader("Upgrade", "always `websocket`", lambda _: "websocket"),
            ResponseHeader("Connection", "", lambda _: "upgrade"),
        ),
    ),
    ProblemType(
        e.Conflict("the id 'build-1' is taken by a sandbox that was made by a different request"),
        "conflict",
        409,
        "Conflict with the current state",
        "Another sandbox or execution has the id, another client feeds the stdin, the answer to a repeated request is "
        "no longer stored, or the directory to be deleted is not empty. The detail says which.",
    ),
    ProblemType(
        e.UnsupportedByRuntime("pause", "boxlite"),
        "unsupported_by_runtime",
        409,
        "This sandbox's runtime lacks a capability",
        "The sandbox's runtime lacks what the request needs. GET /runtimes lists what each runtime can do.",
    ),
    ProblemType(
        e.WrongState("destroyed", "the sandbox has ended: it was deleted"),
        "wrong_state",
        409,
        "The state does not allow this",
        "The sandbox or execution cannot do this while its state is `state`. Resume a paused sandbox. Create a new "
        "sandbox when it has ended. An execution that has ended takes no input and no signals: start another.",
        (_member("state", str, "the state of the sandbox or execution"),),
    ),
    ProblemType(
        e.WrongType("directory", "'src' is a directory; a file is needed there"),
        "wrong_type",
        409,
        "The file is of another type",
        "The request needs a file of another type than the one at the path. `found` says what is there.",
        (
            _member(
                "found",
                str,
                "what is at the path: file, directory, symlink, fifo, socket, character_device or block_device",
            ),
        ),
    ),
    ProblemType(
        e.Unauthenticated("the key is not known here"),
        "unauthenticated",
        401,
        "An API key is needed",
        "Send the header Authorization: Bearer <key> with a key of this service. `bulkhead key new NAME` makes one. A "
        "stream ticket works once, within 30 seconds, and only for the path and the right to stdin that it was made "
        "for.",
        headers=(ResponseHeader("WWW-Authenticate", "always `Bearer`", lambda _: "Bearer"),),
    ),
    ProblemType(
        e.Forbidden("the host 'example.org' is not allowed"),
        "forbidden",
        403,
        "The request is not allowed",
        "The operator's list does not have the request's Host or Origin: otherwise any web page could drive a local "
        "service. BULKHEAD_ALLOWED_HOSTS and BULKHEAD_ALLOWED_ORIGINS extend the lists. Or the stream was opened with "
        "a ticket that only allows watching.",
    ),
    ProblemType(
        e.AccessDenied("'/etc/passwd': Permission denied"),
        "access_denied",
        403,
        "The sandbox may not do this with the file",
        "The sandbox's own commands could not do this either: the policy or the file's mode forbids it. The file "
        "routes never reach more than a command in the sandbox does.",
    ),
    ProblemType(
        e.PayloadTooLarge(4 * 1024 * 1024),
        "payload_too_large",
        413,
        "Too many bytes were sent",
        "The detail says what is too large, and `limit` how many bytes it may have. The same bytes are refused again "
        "however long you wait. Send less.",
        (_BYTES,),
    ),
    ProblemType(
        e.CapacityExceeded("sandboxes", 1000),
        "capacity_exceeded",
        429,
        "Too much is in use now",
        "`budget` names what is used up. `holder` says for whom: the whole service, this client, this sandbox or this "
        "execution. End something that uses it, or try again after the seconds in Retry-After.",
        (
            _member("budget", str, "what is used up"),
            _member("holder", str, "whose limit or part is used up: `service`, `client`, `sandbox` or `execution`"),
        ),
        (_RETRY_AFTER,),
    ),
    ProblemType(
        e.DiskFull(1024**3),
        "disk_full",
        507,
        "There is no room for files",
        "The detail says where. In a sandbox: delete files in it, or create one with a higher `limits.disk_mib`. On "
        "the operator's disk, when a sandbox with the storage `disk` was to be created: ask for a lower "
        "`limits.disk_mib`, or try again when other sandboxes have ended.",
        (_member("limit", int, "the bytes that the sandbox's files may have, or were to have"),),
    ),
    ProblemType(
        e.LaunchFailed("mount_proc", "EPERM", "step mount_proc failed: EPERM"),
        "launch_failed",
        500,
        "An isolation step failed",
        "The kernel refused the isolation step `step` with the error `errno`. Nothing was started, because a sandbox "
        "must be isolated completely. Report it to the operator; `bulkhead probe` on the host shows what is missing.",
        (
            _member("step", str, "the isolation step"),
            _member("errno", str, "the kernel's reason, such as EPERM; empty: there is none", "errno_name"),
        ),
    ),
    ProblemType(
        h.InternalError(),
        "internal_error",
        500,
        "Internal error",
        "The service's log has the reason, beside the request id that `instance` gives. Please report it.",
    ),
    ProblemType(
        e.BackendFailure("a file has become shorter while it was read"),
        "runtime_failed",
        502,
        "The runtime failed",
        "The runtime began, and something in the sandbox or on the host kept it from finishing. The detail says what.",
    ),
    ProblemType(
        e.BackendRefused(
            "boxlite", "the BoxLite server answers 400: no such image", e.Upstream(400, "invalid_argument")
        ),
        "backend_error",
        502,
        "The runtime's server answered with an error",
        "The server behind this runtime answered with an error. `detail` holds its message, `upstream_status` "
        "and `upstream_code` its status and code. Correct the request if the message names something in it. Otherwise "
        "report it to the operator.",
        _OF_SERVER,
    ),
    ProblemType(
        e.BackendUnavailable(
            "boxlite", "the BoxLite server answers 503: not now", upstream=e.Upstream(503, "engine_unavailable")
        ),
        "backend_unavailable",
        503,
        "The runtime is not available",
        "The server or launcher behind this runtime does not answer, or reports that it cannot work now. GET /runtimes "
        "gives the reason. Try again after the seconds in Retry-After.",
        _OF_SERVER,
        (_RETRY_AFTER,),
    ),
    ProblemType(
        e.IsolationUnavailable("landlock", "this host lacks landlock"),
        "isolation_unavailable",
        503,
        "The host lacks an isolation layer",
        "The host does not have `layer`, and the operator has not agreed to do without it. The service never weakens "
        "isolation silently. On the host, `bulkhead probe` shows what is missing and how to get it.",
        (_member("layer", str, "the isolation layer that the host lacks"),),
        (_RETRY_AFTER,),
    ),
    ProblemType(
        e.ServiceStopping(),
        "service_stopping",
        503,
        "The service is stopping",
        "The service destroys its sandboxes and makes no new ones. Try again when it has been started again.",
        headers=(_RETRY_AFTER,),
    ),
    ProblemType(
        e.BackendTimeout("boxlite", "the BoxLite server answers 504: too slow", e.Upstream(504, "request_timeout")),
        "backend_timeout",
        504,
        "The runtime did not answer in time",
        "The runtime did not finish in time. The service removes what it had started. Look into the lists of sandboxes "
        "and executions for anything that is left, then try again.",
        _OF_SERVER,
    ),
)

PROBLEMS = {row.slug: row for row in TABLE}
