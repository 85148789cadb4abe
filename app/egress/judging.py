"""Judges one HTTP request, and writes the one that the host gets: never a copy of what the program sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product

import h11

from app.core.http_rules import NEVER_PASSED, HttpRule
from app.egress.problems import Headers
from app.egress.reasons import Reason
from app.egress.request_path import UnclearPath, decoded_path
from app.egress.turns import SandboxTurns

# RFC 9110, 7.6.1, and the framing, which each side has for itself. Trailers are not passed on.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade".split()
)
_VERSIONS = (b"1.0", b"1.1")
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"
SWITCH = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
# Some servers obey these in place of the method and the path of the request.
_OTHER_METHOD = frozenset(
    b"x-http-method-override x-http-method x-method-override x-forwarded-method x-original-method".split()
)
_OTHER_PATH = frozenset(b"x-original-url x-original-uri x-rewrite-url x-forwarded-uri".split())
_DESTINATION, _TO_DESTINATION = b"destination", frozenset((b"COPY", b"MOVE"))  # RFC 4918, 10.3
# All that a name may have beside letters, digits and `-` (RFC 9110, 5.6.2). CGI and WSGI have `_` for `-`, and some
# servers for any of these: there `X_Original_URL` is the same header as `X-Original-URL`.
_ODD = b"!#$%&'*+.^_`|~"
_AS_DASHES = bytes.maketrans(_ODD, b"-" * len(_ODD))
_READINGS = 3  # of one request, by method and by path
_DEFAULT_PORTS = {b"http": 80, b"https": 443}


class RequestRefused(Exception):
    """`reason` is a Reason, or one of `core.addresses`. `detail`: more for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Judge:
    """Of the requests of one connection, which is with `host` by the scheme `http` or `https`. `rules` is asked for
    each request. None: no rule permits the host any more."""

    def __init__(
        self, turns: SandboxTurns, scheme: bytes, host: str, port: int, rules: Callable[[], Sequence[HttpRule] | None]
    ) -> None:
        self._turns, self._scheme, self._host, self._port, self._rules = turns, scheme, host.encode(), port, rules

    async def judge(self, request: h11.Request) -> h11.Request:
        """Returns the request for the host. Raises RequestRefused."""
        given = list(request.headers)
        has_length, is_chunked = (any(name == header for name, _ in given) for header in (_LENGTH, _ENCODING))
        # With both, two readers could find two ends of the request.
        if request.http_version not in _VERSIONS or (is_chunked and (has_length or request.http_version != b"1.1")):
            raise RequestRefused(Reason.HTTP)
        if request.method.upper().decode() in NEVER_PASSED:
            raise RequestRefused(Reason.HTTP_METHOD)
        target = self._target(request.target)
        named = [value for name, value in given if name == b"host"]
        if len(named) != 1 or not self._is_host(named[0]):
            raise RequestRefused(Reason.HTTP_HOST)
        await self._check_permitted(request, target)
        is_default = self._port == _DEFAULT_PORTS[self._scheme]
        authority = self._host if is_default else b"%s:%d" % (self._host, self._port)
        headers = [(b"Host", authority), *passed_on(request.headers.raw_items(), _is_host_header)]
        if is_chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if _asks_for_websocket(request):
            headers += SWITCH
        return h11.Request(method=request.method, target=target, headers=headers)

    def _target(self, target: bytes) -> bytes:
        """The path and query. Raises RequestRefused."""
        if target.startswith(b"/") or target == b"*":
            return target
        scheme, _, rest = target.partition(b"://")
        authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
        if scheme.lower() != self._scheme or not self._is_host(authority):
            raise RequestRefused(Reason.HTTP_HOST)
        path = rest[len(authority) :]
        return path if path.startswith(b"/") else b"/" + path

    def _is_host(self, authority: bytes) -> bool:
        host, colon, port = authority.lower().partition(b":")
        return host.removesuffix(b".") == self._host and (not colon or port == str(self._port).encode())

    async def _check_permitted(self, request: h11.Request, target: bytes) -> None:
        """Raises RequestRefused."""
        rules = self._rules()
        if rules is None:
            raise RequestRefused(Reason.RULE)
        if any(not (rule.methods or rule.paths) for rule in rules):
            return
        methods, targets = {request.method}, {target}
        headers = [(_as_read(name), value) for name, value in request.headers]
        methods |= {value.upper() for name, value in headers if name in _OTHER_METHOD}
        targets |= {value for name, value in headers if name in _OTHER_PATH}
        if any(method.upper() in _TO_DESTINATION for method in methods):
            targets |= {self._target(value) for name, value in headers if name == _DESTINATION}
        if max(len(methods), len(targets)) > _READINGS:
            raise RequestRefused(Reason.HTTP)
        for method, other in product(methods, targets):
            await self._check_one(rules, method.decode("latin-1"), other)

    async def _check_one(self, rules: Sequence[HttpRule], method: str, target: bytes) -> None:
        fitting = [rule for rule in rules if rule.permits_method(method)]
        if not fitting:
            raise RequestRefused(Reason.HTTP_METHOD)
        if not all(rule.paths for rule in fitting):
            return
        try:
            path = decoded_path(target)
        except UnclearPath:
            raise RequestRefused(Reason.HTTP_PATH) from None
        for rule in fitting:
            if self._turns.over:  # the worst patterns and path take 0.6 ms each
                await self._turns.next()
            if rule.permits_path(path):
                return
        raise RequestRefused(Reason.HTTP_PATH)


def passed_on(headers: Headers, is_left_out: Callable[[bytes], bool]) -> Headers:
    """Without what is for one side only (RFC 9110, 7.6.1), and without what a server may take for that or for the
    length. The length itself stays, whatever `Connection` says of it."""
    named = {
        _as_read(token.strip())
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    left_out = (_HOP_BY_HOP | named) - {_LENGTH}
    passed = []
    for name, value in headers:
        lower, read = name.lower(), _as_read(name)
        is_other_length = read == _LENGTH != lower
        if read not in left_out and not is_other_length and not is_left_out(lower):
            passed.append((name, value))
    return passed


def _as_read(name: bytes) -> bytes:
    """The name of a header as servers may read it, in small letters."""
    return name.lower().translate(_AS_DASHES)


def answer_for_program(
    answer: h11.Response | h11.InformationalResponse, more: Sequence[tuple[bytes, bytes]] = ()
) -> h11.Response | h11.InformationalResponse:
    """The host's answer, which h11 frames anew."""
    is_chunked = any(name == _ENCODING for name, _ in answer.headers)
    headers = passed_on(answer.headers.raw_items(), lambda name: is_chunked and name == _LENGTH)
    return type(answer)(status_code=answer.status_code, headers=[*headers, *more], reason=answer.reason)


def _is_host_header(name: bytes) -> bool:
    return name == b"host"


def _asks_for_websocket(request: h11.Request) -> bool:
    fields = {name: value.lower() for name, value in request.headers if name in (b"upgrade", b"connection")}
    tokens = [token.strip() for token in fields.get(b"connection", b"").split(b",")]
    return request.method == b"GET" and fields.get(b"upgrade") == b"websocket" and b"upgrade" in tokens
