"""The opening handshake of a WebSocket (RFC 6455, section 4.2), whose request the parser of HTTP has read already.

An ordinary handshake is checked here. To read its request once more, `websockets` takes a tenth of the processor time
of a short execution and its stream. Every other one goes to `websockets`, which knows all that may be wrong with it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence

from websockets.http11 import Request
from websockets.server import ServerProtocol

Headers = Sequence[tuple[bytes, bytes]]
HEAD_BYTES = 8 * 1024  # `websockets` takes no longer line
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ONCE = frozenset({b"upgrade", b"sec-websocket-key", b"sec-websocket-version", b"origin"})
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: "


def refusal(target: bytes, headers: Headers) -> bytes | None:
    """None for a handshake that is in order, else the answer that refuses it. `headers` have names in small letters."""
    return None if _is_ordinary(target, headers) else _judged(target, headers)


def acceptance(headers: Headers, more: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The answer to a handshake that is in order, with `more` headers."""
    key = next(value for name, value in headers if name == b"sec-websocket-key").strip()
    accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
    return b"".join((_SWITCHING, accept, b"\r\n", *(b"%b: %b\r\n" % header for header in more), b"\r\n"))


def _is_ordinary(target: bytes, headers: Headers) -> bool:
    found: dict[bytes, bytes] = {}
    size = len(target)
    for name, value in headers:
        if name in found and name in _ONCE:
            return False
        found[name] = value
        size += len(name) + len(value)
    return (
        size <= HEAD_BYTES
        and found.get(b"upgrade", b"").lower() == b"websocket"
        and found.get(b"connection", b"").lower().replace(b"keep-alive, ", b"") == b"upgrade"
        and found.get(b"sec-websocket-version") == b"13"
        and _KEY.fullmatch(found.get(b"sec-websocket-key", b"")) is not None
        and b"sec-websocket-protocol" not in found
    )


def _judged(target: bytes, headers: Headers) -> bytes | None:
    lines = (b"%b: %b\r\n" % header for header in headers)
    protocol = ServerProtocol()
    protocol.receive_data(b"".join((b"GET ", target, b" HTTP/1.1\r\n", *lines, b"\r\n")))
    for event in protocol.events_received():
        if isinstance(event, Request):
            answer = protocol.accept(event)
            if answer.status_code == 101:
                return None
            protocol.send_response(answer)
    return b"".join(protocol.data_to_send())
