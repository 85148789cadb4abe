"""The errors that any call of the client may raise."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class ClientError(Exception):
    """Any error of the client. `str(error)` is one sentence without a secret."""


class ServiceUnreachable(ClientError):
    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        super().__init__(
            f"no service answers at {url} ({reason}); start one with: bulkhead serve "
            "(or set BULKHEAD_CLIENT_URL to the address of another)"
        )


class ServiceProblem(ClientError):
    """The service refused or failed (RFC 9457): title, detail, and a pointer for every wrong field."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = dict(problem)
        self.status = problem.get("status")
        self.slug = str(problem.get("type", "")).rsplit("/", 1)[-1]
        super().__init__(self.sentence(str))

    def sentence(self, name_of: Callable[[str], str]) -> str:
        """`str(error)`, with the names that `name_of` gives to the pointers of wrong fields."""
        problem = self.problem
        parts = [str(problem.get("title") or "the service refused")]
        errors = [error for error in problem.get("errors") or () if isinstance(error, Mapping)]
        fields = [f"{name_of(str(error.get('pointer')))}: {error.get('detail')}" for error in errors]
        if fields:
            parts.append("; ".join(fields))
        elif problem.get("detail"):
            parts.append(str(problem["detail"]))
        parts += _extras(problem, " ".join(parts))
        if self.status == 401:
            parts.append("the key is read from BULKHEAD_CLIENT_KEY")
        return ": ".join(parts)


def _extras(problem: Mapping[str, Any], said: str) -> Iterator[str]:
    """What a client can act on and the sentences before do not tell."""
    known = ", ".join(str(name) for name in problem.get("known") or ())
    if known not in said:
        yield f"known: {known}"
    runtime = problem.get("runtime")
    # `auto` is what was asked for and no runtime that could refuse: the detail names those.
    if runtime not in (None, "auto") and str(runtime).lower() not in said.lower():
        yield f"runtime {runtime}"
    upstream = [str(problem[name]) for name in ("upstream_status", "upstream_code") if problem.get(name) is not None]
    if not all(word in said for word in upstream):
        yield f"its server answered {' '.join(upstream)}"


def problem_of(status: int, reason: str, body: bytes) -> ServiceProblem:
    """Returns the problem of an answer, or makes one from the answer of a proxy."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if isinstance(found, dict) and ("title" in found or "type" in found):
        return ServiceProblem({"status": status, **found})
    text = " ".join(body[:200].decode(errors="replace").split())
    return ServiceProblem({"title": f"the answer was {status} {reason}".rstrip(), "status": status, "detail": text})


def reason_of(error: Exception) -> str:
    """Returns the operating system's reason behind a library's message, as httpx says only "All connection attempts
    failed"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return cause.strerror or str(cause)
        if isinstance(cause, ssl.SSLError):  # its errno is a number of its own, which strerror(3) misunderstands
            return _reason_of_tls(cause)
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _reason_of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if error.reason == "WRONG_VERSION_NUMBER":  # the first bytes are no TLS, but "HTTP/1.1 400"
        return "the server does not speak TLS: try http://"
    if isinstance(error, (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        return "the server closed the connection at the start of TLS"
    return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
