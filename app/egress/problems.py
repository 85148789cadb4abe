"""Refusals in HTTP: `application/problem+json`, RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from app.egress.reasons import Reason, sentence

_STATUS: dict[str, HTTPStatus] = {
    Reason.HTTP: HTTPStatus.BAD_REQUEST,
    Reason.PROXY: HTTPStatus.BAD_REQUEST,
    Reason.CREDENTIAL: HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    Reason.UPSTREAM: HTTPStatus.BAD_GATEWAY,
    Reason.UPSTREAM_TLS: HTTPStatus.BAD_GATEWAY,
    Reason.CERTIFICATE: HTTPStatus.BAD_GATEWAY,
    Reason.UNREACHABLE: HTTPStatus.BAD_GATEWAY,
    Reason.NOT_FOUND: HTTPStatus.BAD_GATEWAY,
    Reason.RESOLVER: HTTPStatus.BAD_GATEWAY,
    Reason.DESCRIPTORS: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
}  # others are FORBIDDEN

Headers = list[tuple[bytes, bytes]]


def problem(reason: str, detail: str = "") -> tuple[HTTPStatus, Headers, bytes]:
    """Status, headers and body. `reason` is a Reason, or one of `core.addresses`. `detail`: more for people."""
    status = _STATUS.get(reason, HTTPStatus.FORBIDDEN)
    why = f"{sentence(reason)}: {detail}." if detail else f"{sentence(reason)}."
    told = {"title": status.phrase, "status": status, "detail": why, "reason": reason}
    body = json.dumps({"type": "about:blank", **told}).encode()
    return status, [(b"Content-Type", b"application/problem+json"), (b"Content-Length", b"%d" % len(body))], body


def problem_answer(reason: str, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole answer, after which the connection ends."""
    status, headers, body = problem(reason)
    lines = [b"%b: %b" % header for header in (*headers, *more, (b"Connection", b"close"))]
    return b"\r\n".join((b"HTTP/1.1 %d %b" % (status, status.phrase.encode()), *lines, b"", body))
