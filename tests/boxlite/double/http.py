"""Requests and answers, and the two kinds of errors: the server's envelope, and its framework's plain text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

BODY_LIMIT = 2_097_152
TEXT = "text/plain; charset=utf-8"
TYPES = {
    "unauthenticated": (401, "AuthError"),
    "invalid_argument": (400, "InvalidArgumentError"),
    "unsupported": (400, "UnsupportedError"),
    "not_found": (404, "NotFoundError"),
    "invalid_state": (409, "InvalidStateError"),
    "conflict": (409, "ConflictError"),
    "stopped": (409, "StoppedError"),
    "image_pull_failed": (422, "ImageError"),
    "resource_exhausted": (429, "ResourceExhaustedError"),
    "internal": (500, "InternalError"),
    "storage_error": (500, "StorageError"),
    "config_error": (500, "ConfigError"),
    "engine_unavailable": (503, "EngineError"),
    "upstream_unavailable": (503, "UpstreamUnavailableError"),
}
SECRET = frozenset({"authorization"})


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    too_large: bool = False

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def segments(self) -> list[str]:
        """Decoded one by one, so that an encoded slash stays in its segment; `.` is resolved before, as by clients."""
        return [unquote(part) for part in self.path.split("/")[1:]]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def json(self) -> Any:
        """The body for tests that ask what was sent; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Response:
    """`verbatim` is written to the socket as it is, head included, and the connection is cut afterwards."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    verbatim: AsyncIterator[bytes] | None = None


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def answer(value: Any, status: int = 200) -> Response:
    return Response(status, dumps(value).encode(), "application/json")


class Refused(Exception):
    """An answer that is no success; raised wherever it is found out."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Failure(Refused):
    """The server's envelope: the code decides status and type."""

    def __init__(self, code: str, message: str) -> None:
        status, kind = TYPES[code]
        super().__init__(answer({"error": {"message": message, "type": kind, "code": code}}, status))
        self.code, self.message = code, message


class Unframed(Refused):
    """What the framework refuses by itself: plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(Response(status, text.encode(), TEXT))


def json_body(request: Request) -> Any:
    """What the framework does before a route with a JSON body sees it."""
    if not request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        raise Unframed(415, "Expected request with `Content-Type: application/json`")
    if request.too_large:
        raise Unframed(413, "Failed to buffer the request body: length limit exceeded")
    try:
        return json.loads(request.body, parse_constant=_no_constant)
    except ValueError as error:
        raise Unframed(400, f"Failed to parse the request body as JSON: {error}") from error


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
