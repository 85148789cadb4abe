"""Reads the name that a TLS client asks for, and nothing else: the bytes pass on as they came.

OpenSSL parses the ClientHello, however many records it is in. It calls back with the name before it chooses anything
else, and the handshake is stopped there. OpenSSL also writes the alert for the client.
"""

from __future__ import annotations

import ssl
from typing import cast

from app.egress.reasons import Reason

MOST = 64 * 1024  # bytes of a ClientHello with the heads of its records
RECORD = 0x16  # the first byte of a TLS connection: a handshake record, RFC 8446, 5.1


class _Handshake(ssl.SSLObject):
    """`expected` is the only name that is right, in lower case."""

    expected = ""
    is_named = is_right = False

    def take_name(self, name: str | None) -> int:
        self.is_named = True
        self.is_right = name is not None and name.lower() == self.expected
        # A handshake with the right name is stopped too. This alert is for when the host cannot be reached.
        return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR if self.is_right else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def _take_name(handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
    return handshake.take_name(name) if isinstance(handshake, _Handshake) else ssl.ALERT_DESCRIPTION_INTERNAL_ERROR


_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate, so it could complete no handshake
_CONTEXT.minimum_version = ssl.TLSVersion.TLSv1_2  # the default depends on the host's openssl.cnf
# The only group for a key exchange. Hardly any client sends a key for it in its ClientHello. OpenSSL reads a key of a
# group that it may use before it tells the name, and that was half of the time.
_CONTEXT.set_ecdh_curve("secp521r1")
_CONTEXT.sslobject_class = _Handshake
_CONTEXT.sni_callback = _take_name


class ClientHello:
    """`is_read` is true when it is known whether the client asks for `expected`. `refusal` says why it does not.
    `alert` has the bytes that tell it that it cannot have the host."""

    def __init__(self, expected: str) -> None:
        self._input, self._output = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._handshake = cast(_Handshake, _CONTEXT.wrap_bio(self._input, self._output, server_side=True))
        self._handshake.expected = expected
        self._size = 0
        self.is_read = False
        self.refusal: Reason | None = None
        self.alert = b""

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        self._input.write(data)
        try:
            self._handshake.do_handshake()
        except ssl.SSLWantReadError:
            if self._size <= MOST:
                return
        except ssl.SSLError:
            pass
        self.is_read = True
        self.alert = self._output.read()
        if not self._handshake.is_named:
            self.refusal = Reason.TLS
        elif not self._handshake.is_right:
            self.refusal = Reason.TLS_NAME
