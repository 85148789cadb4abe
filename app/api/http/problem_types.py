"""Every type of problem a client can meet: `/problems/{slug}` shows this table, `problems.py` fills it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemType:
    """`meaning` says what happened and what helps; `extras` are the members beside the standard ones."""

    slug: str
    status: int
    title: str
    meaning: str
    extras: tuple[str, ...] = ()


_TABLE = (
    ProblemType(
        "invalid_request",
        422,
        "The request is not valid",
        "A field, a query parameter or the whole body is not what the API takes. Every wrong place is in `errors` as "
        "a pointer and a sentence. Nothing was created or changed. Correct the named places and send it again.",
        ("errors",),
    ),
    ProblemType(
        "unknown_runtime",
        422,
        "There is no such runtime",
        "The runtime is none of `known`. GET /runtimes lists them with their aliases.",
        ("runtime", "known"),
    ),
    ProblemType(
        "runtime_not_enabled",
        422,
        "The runtime is not enabled",
        "The service knows the runtime, and its operator has switched it off. No other runtime is used in its place. "
        "For `auto`: none that is switched on isolates by what the request accepts at least.",
        ("runtime", "known"),
    ),
    ProblemType(
        "unknown_image",
        422,
        "There is no such image",
        "The image is not in the operator's table, or none was named and there is no default.",
        ("known",),
    ),
    ProblemType(
        "unknown_profile",
        422,
        "There is no such policy profile",
        "Profiles are written by the operator; the names that exist are in `known`.",
        ("known",),
    ),
    ProblemType(
        "policy_too_broad",
        422,
        "The policy asks for more than the profile allows",
        "A client may only narrow the operator's profile. `pointer` names the part that goes beyond it, `ceiling` what "
        "the profile allows there.",
        ("pointer", "ceiling"),
    ),
    ProblemType(
        "limit_too_high",
        422,
        "The limit is above the ceiling",
        "Ask for `ceiling` or less: the operator's, or the runtime's own where that is lower. GET /runtimes lists the "
        "default and the ceiling of every limit.",
        ("pointer", "ceiling"),
    ),
    ProblemType(
        "policy_not_supported",
        422,
        "The runtime cannot enforce this",
        "What a runtime cannot enforce is refused, never ignored. Leave out what `pointer` names, or choose another "
        "runtime.",
        ("pointer", "runtime"),
    ),
    ProblemType(
        "capability_missing",
        422,
        "The runtime lacks a required capability",
        "The request needs `missing`, which the runtime does not promise. GET /runtimes lists what each one does.",
        ("missing", "runtime"),
    ),
    ProblemType(
        "idempotency_mismatch",
        422,
        "The key was used with another body",
        "An Idempotency-Key repeats one answer to one request. Use a new key for a new request.",
    ),
    ProblemType(
        "invalid_archive",
        422,
        "The archive holds an entry that is refused",
        "`entry` names it: a path that leaves the tree, an absolute path, a device or the like. Nothing of the "
        "archive is left.",
        ("entry",),
    ),
    ProblemType(
        "not_found",
        404,
        "There is nothing here",
        "The id or path does not exist, or its record has been forgotten: that of a destroyed sandbox is kept for an "
        "hour unless the operator says otherwise.",
    ),
    ProblemType(
        "method_not_allowed",
        405,
        "The method is not allowed here",
        "The path exists, not with this method. The Allow header and the detail name those that it takes.",
    ),
    ProblemType(
        "unsupported_media_type",
        415,
        "The body has the wrong media type",
        "Send JSON, with the header Content-Type: application/json. Files and archives are taken as they are, without "
        "a Content-Encoding.",
    ),
    ProblemType(
        "precondition_failed",
        412,
        "The precondition does not hold",
        "What If-Match or If-None-Match names is not what is there now.",
    ),
    ProblemType(
        "range_not_satisfiable",
        416,
        "The offset is beyond the end",
        "Nothing has been written there. Of an execution, `output` says how many bytes each channel has; of a file, "
        "the header Content-Range does.",
    ),
    ProblemType(
        "upgrade_required",
        426,
        "This path speaks WebSocket",
        "Open it with a WebSocket client: a GET request with Upgrade: websocket. Or ask for Server-Sent Events, with "
        "Accept: text/event-stream.",
    ),
    ProblemType(
        "conflict",
        409,
        "Another request has this id or this place",
        "Another sandbox or execution has the id, somebody else feeds the stdin, or a directory that is to be deleted "
        "is not empty.",
    ),
    ProblemType(
        "unsupported_by_runtime",
        409,
        "The runtime cannot do this",
        "GET /runtimes lists what each runtime can do.",
    ),
    ProblemType(
        "wrong_state",
        409,
        "Its state does not allow this",
        "The sandbox or execution is in the state `state`, in which this cannot be done.",
        ("state",),
    ),
    ProblemType(
        "wrong_type",
        409,
        "The file is of another type",
        "`found` says what is there: file, directory, symlink, fifo, socket, character_device or block_device.",
        ("found",),
    ),
    ProblemType(
        "unauthenticated",
        401,
        "A key is needed",
        "Send Authorization: Bearer <key> with a key of this service. `bulkhead key new NAME` makes one. A stream "
        "ticket works once, within 30 seconds, for the path and the right to stdin that it was asked for.",
    ),
    ProblemType(
        "forbidden",
        403,
        "The host or the origin is not allowed",
        "The Host header or the Origin of the request is not on the operator's list. This keeps web pages from "
        "driving a local service; BULKHEAD_ALLOWED_HOSTS and BULKHEAD_ALLOWED_ORIGINS add to the lists.",
    ),
    ProblemType(
        "access_denied",
        403,
        "The sandbox may not do this with the file",
        "The path is read-only or closed for the sandbox's own commands too: by its policy, or by the file's mode. "
        "Nobody reaches more through the file routes than a command of the sandbox could.",
    ),
    ProblemType(
        "payload_too_large",
        413,
        "The body is too large",
        "`limit` is the largest size in bytes.",
        ("limit",),
    ),
    ProblemType(
        "capacity_exceeded",
        429,
        "The operator's limit is reached",
        "There is no more of `budget` now: not in the service (`holder` is `service`), or not for this `sandbox` or "
        "`client`, while others go on. Something must end first. Retry-After gives the seconds to wait before trying "
        "again.",
        ("budget", "holder"),
    ),
    ProblemType("disk_full", 507, "The disk is full", "`limit` is the size of the sandbox's disk.", ("limit",)),
    ProblemType(
        "launch_failed",
        500,
        "An isolation step failed",
        "The kernel refused `step` with `errno`. Nothing was started: a half isolated sandbox is never handed out.",
        ("step", "errno"),
    ),
    ProblemType(
        "internal_error",
        500,
        "The service has a fault",
        "It is in the service's log under the request id that `instance` gives. Please report it.",
    ),
    ProblemType(
        "backend_error",
        502,
        "The runtime answered with an error",
        "What it said is in the detail, with its own status and code where it gave them.",
        ("runtime", "upstream_status", "upstream_code"),
    ),
    ProblemType(
        "backend_unavailable",
        503,
        "The runtime is not reachable",
        "The service that carries out this runtime is not there, or says that it cannot now. GET /runtimes has the "
        "reason.",
        ("runtime", "upstream_status", "upstream_code"),
    ),
    ProblemType(
        "isolation_unavailable",
        503,
        "The host lacks an isolation layer",
        "`layer` is missing, and its operator has not given it up by name: nothing is downgraded silently. "
        "`bulkhead probe` shows what the host offers and the cure.",
        ("layer",),
    ),
    ProblemType(
        "backend_timeout",
        504,
        "The runtime did not answer in time",
        "What was begun is undone or shows in the lists.",
        ("runtime", "upstream_status", "upstream_code"),
    ),
)

PROBLEMS = {problem.slug: problem for problem in _TABLE}
