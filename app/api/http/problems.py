"""The one place that knows which error becomes which problem (RFC 9457) and status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.http.problem_types import PROBLEMS, ProblemType
from app.api.http.validation import field_errors
from app.core import errors as e
from app.core.limits import LIMITS

MEDIA_TYPE = "application/problem+json"
ERRORS_SHOWN = 32  # a body of 4 MiB can be wrong in a million places
DETAIL_SHOWN = 1000

Extras = dict[str, Any]


class UnsupportedMediaType(e.BulkheadError):
    pass


class UpgradeRequired(e.BulkheadError):
    pass


class BodyTooSlow(e.InvalidRequest):
    """The connection is of no use any more: what still arrives would be taken for the next request."""


def _errors(error: Any) -> Extras:
    shown = error.errors[:ERRORS_SHOWN]
    return {"errors": [{"pointer": f.pointer, "detail": f.detail} for f in shown]}


def _attributes(*names: str) -> Callable[[Any], Extras]:
    return lambda error: {name: getattr(error, name) for name in names}


def _ceiling(error: Any) -> Extras:
    row = LIMITS.get(error.pointer.rpartition("/")[2])
    return {"pointer": error.pointer, "ceiling": error.ceiling if row is None else row.number(error.ceiling)}


def _upstream(error: Any) -> Extras:
    upstream = error.upstream
    return {"runtime": error.runtime, "upstream_status": upstream.status, "upstream_code": upstream.code}


def _nothing(_: Any) -> Extras:
    return {}


# Error class -> slug (status and title stand in `problem_types`), extras, headers. Subclasses inherit.
TRANSLATION: dict[type[e.BulkheadError], tuple[str, Callable[[Any], Extras]]] = {
    e.InvalidRequest: ("invalid_request", _errors),
    e.UnknownRuntime: ("unknown_runtime", _attributes("runtime", "known")),
    e.RuntimeNotEnabled: ("runtime_not_enabled", _attributes("runtime", "known")),
    e.UnknownProfile: ("unknown_profile", _attributes("known")),
    e.UnknownImage: ("unknown_image", _attributes("known")),
    e.PolicyTooBroad: ("policy_too_broad", _attributes("pointer", "ceiling")),
    e.LimitTooHigh: ("limit_too_high", _ceiling),
    e.PolicyNotSupported: ("policy_not_supported", _attributes("pointer", "runtime")),
    e.CapabilityMissing: ("capability_missing", _attributes("missing", "runtime")),
    e.Unauthenticated: ("unauthenticated", _nothing),
    e.Forbidden: ("forbidden", _nothing),
    e.CapacityExceeded: ("capacity_exceeded", _attributes("budget", "holder")),
    e.NotFound: ("not_found", _nothing),
    e.Conflict: ("conflict", _nothing),
    e.IdempotencyMismatch: ("idempotency_mismatch", _nothing),
    e.WrongState: ("wrong_state", _attributes("state")),
    e.UnsupportedByRuntime: ("unsupported_by_runtime", _nothing),
    e.WrongType: ("wrong_type", _attributes("found")),
    e.AccessDenied: ("access_denied", _nothing),
    e.DiskFull: ("disk_full", _attributes("limit")),
    e.InvalidArchive: ("invalid_archive", _attributes("entry")),
    e.PreconditionFailed: ("precondition_failed", _nothing),
    e.RangeNotSatisfiable: ("range_not_satisfiable", _nothing),
    e.PayloadTooLarge: ("payload_too_large", _attributes("limit")),
    e.LaunchFailed: ("launch_failed", lambda error: {"step": error.step, "errno": error.errno_name}),
    e.IsolationUnavailable: ("isolation_unavailable", _attributes("layer")),
    e.BackendRefused: ("backend_error", _upstream),
    e.BackendUnavailable: ("backend_unavailable", _upstream),
    e.BackendTimeout: ("backend_timeout", _upstream),
    e.BackendFailure: ("backend_error", _nothing),
    UnsupportedMediaType: ("unsupported_media_type", _nothing),
    UpgradeRequired: ("upgrade_required", _nothing),
}

# A missing layer comes back with an operator's work, not with a client's patience.
_RETRY_ISOLATION_SECONDS = 60
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "unsupported_media_type"}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the client sees it."""

    type: ProblemType
    detail: str
    extras: Mapping[str, Any]
    headers: Mapping[str, str]

    def body(self, request_id: str) -> dict[str, Any]:
        return {
            "type": f"/problems/{self.type.slug}",
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
            "instance": request_id,
            **self.extras,
        }

    def response(self, request_id: str, **more: Any) -> Response:
        """`more`: members beside those of the type."""
        body = to_json({**self.body(request_id), **more})
        return Response(body, self.type.status, dict(self.headers), MEDIA_TYPE)


def problem_of(error: Exception) -> Problem:
    """Never shows the text of an error that is not ours."""
    if isinstance(error, RequestValidationError):
        return problem_of(e.InvalidRequest(field_errors(error.errors())))
    if isinstance(error, HTTPException):
        return _of_http(error)
    for ancestor in type(error).__mro__:
        if ancestor in TRANSLATION:
            slug, extras = TRANSLATION[ancestor]
            return Problem(PROBLEMS[slug], _short(_detail(error)), extras(error), _headers(error))
    return Problem(PROBLEMS["internal_error"], "the service could not carry this out; its log has the reason", {}, {})


def _detail(error: Exception) -> str:
    if isinstance(error, e.InvalidRequest):  # an empty pointer is the whole body, which needs no name
        return "; ".join(f"{f.pointer}: {f.detail}" if f.pointer else f.detail for f in error.errors)
    return str(error)


def _short(detail: str) -> str:
    return detail if len(detail) <= DETAIL_SHOWN else detail[: DETAIL_SHOWN - 1] + "…"


def _headers(error: Exception) -> dict[str, str]:  # noqa: PLR0911 - one for each kind of error
    match error:
        case e.CapacityExceeded() | e.BackendUnavailable():
            return {"retry-after": str(error.retry_after_seconds)}
        case e.IsolationUnavailable():
            return {"retry-after": str(_RETRY_ISOLATION_SECONDS)}
        case e.Unauthenticated():
            return {"www-authenticate": "Bearer"}
        case UpgradeRequired():
            return {"upgrade": "websocket", "connection": "upgrade"}
        case e.RangeNotSatisfiable(size=int(size)):
            return {"content-range": f"bytes */{size}"}
        case BodyTooSlow():
            return {"connection": "close"}
    return {}


def _of_http(error: HTTPException) -> Problem:
    kind = PROBLEMS[_BY_STATUS.get(error.status_code, "internal_error" if error.status_code >= 500 else "not_found")]
    details = {404: "there is nothing at this path", 405: "the path does not take this method"}
    return Problem(kind, details.get(error.status_code, str(error.detail)), {}, dict(error.headers or {}))
