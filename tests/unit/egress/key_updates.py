"""A TLS client that sends key updates (RFC 8446, 4.6.3), which Python's `ssl` cannot: OpenSSL itself, between two
buffers in memory."""

from __future__ import annotations

import ctypes

_POINTER = ctypes.c_void_p
_SIZE = 65536


class OpenSslClient:
    """Its memory stays until the process ends: each has some tens of KiB."""

    def __init__(self) -> None:
        self._ssl, self._crypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
        for library, name in ((self._ssl, "SSL_CTX_new"), (self._ssl, "TLS_client_method"), (self._ssl, "SSL_new"),
                              (self._crypto, "BIO_new"), (self._crypto, "BIO_s_mem")):  # fmt: skip
            getattr(library, name).restype = _POINTER
        context = _POINTER(self._ssl.SSL_CTX_new(_POINTER(self._ssl.TLS_client_method())))
        self._tls = _POINTER(self._ssl.SSL_new(context))
        self._in, self._out = (_POINTER(self._crypto.BIO_new(_POINTER(self._crypto.BIO_s_mem()))) for _ in range(2))
        for buffer in (self._in, self._out):
            self._crypto.BIO_ctrl(buffer, 130, -1, None)  # BIO_C_SET_BUF_MEM_EOF_RETURN: more may come
        self._ssl.SSL_set_bio(self._tls, self._in, self._out)
        self._ssl.SSL_set_connect_state(self._tls)

    def shake_hands(self, received: bytes = b"") -> tuple[bytes, bool]:
        """Returns what to send, and whether the handshake is over here."""
        self._crypto.BIO_write(self._in, received, len(received))
        done = self._ssl.SSL_do_handshake(self._tls) == 1
        return self._said(), done

    def key_updates(self, size: int, *, answered: bool = False) -> bytes:
        """So many bytes of them at least. `answered`: each asks the other side for one."""
        said = bytearray()
        while len(said) < size:
            assert self._ssl.SSL_key_update(self._tls, int(answered)) == 1
            assert self._ssl.SSL_do_handshake(self._tls) == 1
            said += self._said()
        return bytes(said)

    def data(self, data: bytes) -> bytes:
        assert self._ssl.SSL_write(self._tls, data, len(data)) == len(data)
        return self._said()

    def _said(self) -> bytes:
        buffer, said = ctypes.create_string_buffer(_SIZE), b""
        while (size := self._crypto.BIO_read(self._out, buffer, _SIZE)) > 0:
            said += buffer.raw[:size]
        return said
