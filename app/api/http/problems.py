"""Turns errors into problems (RFC 9457), as the table in `problem_types.py` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.http.errors import InternalError, MethodNotAllowed
from app.api.http.problem_types import TABLE, ProblemType
from app.core.errors import InvalidRequest, NotFound

MEDIA_TYPE = "application/problem+json"
DETAIL_SHOWN = 1000  # characters
NO_PATH, NO_METHOD = 404, 405  # what the router raises

_ROWS: Mapping[type, ProblemType] = {row.error: row for row in TABLE}


@dataclass(frozen=True, slots=True)
class ProblemResponse:
    """An error as the client sees it."""

    type: ProblemType
    detail: str
    members: Mapping[str, Any]
    headers: Mapping[str, str]

    def body(self, request_id: str) -> dict[str, Any]:
        return {
            "type": f"/problems/{self.type.slug}",
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
            "instance": request_id,
            **self.members,
        }

    def response(self, request_id: str, **more: Any) -> Response:
        """`more` are members beside those of the type."""
        body = to_json({**self.body(request_id), **more})
        return Response(body, self.type.status, dict(self.headers), MEDIA_TYPE)


def row_of(kind: type) -> ProblemType | None:
    """The row of this class of errors, or of the nearest class above it."""
    return next((_ROWS[ancestor] for ancestor in kind.__mro__ if ancestor in _ROWS), None)


def problem_of(error: Exception) -> ProblemResponse:
    """Never shows the text of an unexpected error."""
    error = _as_ours(error)
    row = row_of(type(error))
    if row is None:
        return problem_of(InternalError())
    members = {member.name: member.read(error) for member in row.members}
    headers = {header.name.lower(): header.read(error) for header in row.headers}
    return ProblemResponse(row, _short(_detail(error)), members, {name: text for name, text in headers.items() if text})


def _as_ours(error: Exception) -> Exception:
    if isinstance(error, HTTPException) and error.status_code == NO_PATH:
        return NotFound("path", "", "there is nothing at this path")
    if isinstance(error, HTTPException) and error.status_code == NO_METHOD:
        return MethodNotAllowed((error.headers or {}).get("Allow", "").split(", "))
    return error


def _detail(error: Exception) -> str:
    if isinstance(error, InvalidRequest):  # an empty pointer is the whole body, which needs no name
        return "; ".join(f"{f.pointer}: {f.detail}" if f.pointer else f.detail for f in error.errors)
    return str(error)


def _short(detail: str) -> str:
    return detail if len(detail) <= DETAIL_SHOWN else detail[: DETAIL_SHOWN - 1] + "…"
