"""A request that offers a protocol which is not spoken here is an ordinary request, with its body (RFC 9110, 7.8).

Java's own client offers `h2c` with every request. The parser ends such a message after its head. Its body would be
lost. If the body came in a packet of its own, the parser would take it for the next request, and requests can be
smuggled past a proxy that way. So the head is parsed a second time, without its offer, and the rest after it.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = frozenset({b"upgrade", b"http2-settings"})
_OF_BODY = frozenset({b"content-length", b"transfer-encoding"})


class UpgradesIgnored(HttpToolsProtocol):
    """Ignores all offers but that of a WebSocket."""

    _is_websocket = False  # what this request asks for, as uvicorn sees it

    def _should_upgrade(self) -> bool:
        """uvicorn would read all headers at each step of a request."""
        return self._is_websocket

    def _is_offer(self) -> bool:
        """As the parser sees it, which takes all `Connection` headers together where uvicorn takes the last. CONNECT is
        an upgrade for it too, and is left alone."""
        return self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT"

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._is_offer():
                    data = self._head_without_offer() + data[upgrade.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    continue
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
            return

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                lines.append(b"connection: " + b", ".join(t for t in tokens if t.lower() not in _OFFER))
            elif name not in _OFFER:
                lines.append(name + b": " + value)
        return b"\r\n".join((*lines, b"", b""))

    def on_headers_complete(self) -> None:
        self._is_websocket = self.parser.should_upgrade() and super()._should_upgrade()
        if self._is_offer():
            return
        if self._is_websocket and (self.parser.get_method() != b"GET" or self._has_body()):
            raise ValueError("a WebSocket begins with a GET without a body")  # whose body would be waited for for ever
        super().on_headers_complete()

    def _has_body(self) -> bool:
        return any(name in _OF_BODY and value.strip() != b"0" for name, value in self.headers)  # Java says that it is 0

    def on_message_complete(self) -> None:
        if not self._is_offer():
            super().on_message_complete()
