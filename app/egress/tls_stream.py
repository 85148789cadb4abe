"""TLS over a socket, with OpenSSL between two buffers in memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from app.egress.client_hello import MOST
from app.egress.turns import SandboxTurns

RECORD = 16 * 1024  # bytes of data in a record at most: RFC 8446, 5.1
RECORD_SENT = 5 + RECORD + 256  # bytes that one takes at most, with its head: RFC 8446, 5.2
# A record need not carry data: key updates, tickets, pieces of a handshake. OpenSSL reads all that it has until data
# comes, and a key update of 27 bytes takes it 0.01 ms. So it gets small pieces of what brings no data, and the
# connection is aborted after MOST bytes of that.
PIECE = 4 * 1024
ANSWERS = 16 * 1024  # bytes of TLS's own answers that wait while the other side does not take what is sent to it


def strictly(context: ssl.SSLContext) -> None:
    """TLS 1.2 and 1.3 (the default depends on the host's openssl.cnf) with HTTP/1.1, and no second handshake. An end of
    TCP without one of TLS is an error, which it is not by Python's default."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options = (context.options | ssl.OP_NO_RENEGOTIATION) & ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])


def is_ragged_end(error: ssl.SSLError) -> bool:
    """Whether TCP has ended and TLS had not. It is an ssl.SSLEOFError from Python 3.12 on."""
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


class TlsStream:
    """A `ByteStream`. The bytes that `count` gets are those on the wire. `ragged`: an end without TLS's own is an end;
    else it is an error, as somebody on the way may have cut the rest off."""

    def __init__(
        self,
        turns: SandboxTurns,
        connection: socket.socket,
        context: ssl.SSLContext,
        count: Callable[[int], None],
        *,
        server_name: str | None = None,
        ragged: bool = False,
        received: bytes = b"",
    ) -> None:
        """The client's side if there is a `server_name`, else the server's. `received` was read from the socket."""
        self._turns, self._connection, self._count, self._ragged = turns, connection, count, ragged
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._received = memoryview(received)  # what OpenSSL has not got yet
        self._fruitless = 0  # bytes that it has got since data came out
        self._rest = b""  # data that was read before its time
        self._sending = asyncio.Lock()

    async def shake_hands(self) -> None:
        """What TLS says last goes out with the first data, or before something is received: then a host has the end of
        the handshake and a request in one packet. Raises ssl.SSLError, and OSError. After an ssl.SSLError there may be
        `last_words` for the other side."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed(RECORD)
            else:
                break
        self._fruitless = 0

    def last_words(self) -> bytes:
        """An alert that was not sent yet."""
        return self._outgoing.read()

    async def receive(self, most: int) -> bytes:
        while True:
            found = self._read(most)
            if found is not None:
                return found
            if self._has_answers:
                await self._flush()
            else:
                await self._feed(most)

    @property
    def _has_answers(self) -> bool:
        """Whether answers of TLS itself have to be sent before more is read. Whoever sends now sends them too, and a
        host that does not read waits for them, but only for some."""
        return self._outgoing.pending > (ANSWERS if self._sending.locked() else 0)

    def _read(self, most: int) -> bytes | None:
        """What there is without waiting; None for nothing. Raises OSError."""
        pieces = [self._rest] if self._rest else []
        size, self._rest = len(self._rest), b""
        while size < most and not (pieces and self._turns.over):  # there may be thousands of records of one byte
            piece = self._decrypt(most - size)
            if piece:
                pieces.append(piece)
                size += len(piece)
            elif piece is None and pieces and self._received and not (self._has_answers or self._turns.over):
                self._push()
            elif pieces:  # an end is told again by the next call
                break
            else:
                return piece
        return b"".join(pieces)

    def _decrypt(self, most: int) -> bytes | None:
        """Data of what OpenSSL has got, b"" at the end, None for nothing. Raises OSError."""
        try:
            data = self.tls.read(most)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            if self._ragged and is_ragged_end(error):
                return b""
            raise ConnectionAbortedError from error
        self._fruitless = 0
        return data

    async def send(self, data: bytes) -> None:
        async with self._sending:
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self.tls.write(rest) :]
                except ssl.SSLError as error:
                    raise ConnectionAbortedError from error
            await self._drain()

    async def end(self) -> None:
        async with self._sending:
            # Python asks OpenSSL twice, and the second call fails for good where there is data.
            with contextlib.suppress(OSError):
                while data := self._decrypt(RECORD):
                    self._rest += data
            with contextlib.suppress(ssl.SSLError):  # it says that the other side has not ended yet
                self.tls.unwrap()
            await self._drain()

    def is_quiet(self) -> bool:
        try:
            with contextlib.suppress(BlockingIOError):
                data = self._connection.recv(PIECE)
                self._count(len(data))
                if not data:
                    return False
                self._received = memoryview(bytes(self._received) + data)
            if self._rest or len(self._received) >= PIECE:  # there may be more
                return False
            if self._received:
                self._push()
            return self._decrypt(1) is None  # tickets for another connection are no data
        except OSError:
            return False

    async def _flush(self) -> None:
        async with self._sending:
            await self._drain()

    async def _drain(self) -> None:
        while self._outgoing.pending:
            await self._turns.send(self._connection, self._outgoing.read())

    async def _feed(self, most: int) -> None:
        """Gives OpenSSL a piece of what was received. Raises OSError."""
        if not self._received:
            data = await self._turns.receive(self._connection, most)
            self._count(len(data))
            if not data:
                self._incoming.write_eof()
                return
            self._received = memoryview(data)
        if self._turns.over:
            await self._turns.next()
        self._push()

    def _push(self) -> None:
        """Raises ConnectionAbortedError."""
        size = PIECE if self._fruitless else RECORD_SENT
        piece, self._received = self._received[:size], self._received[size:]
        self._fruitless += len(piece)
        if self._fruitless > MOST:
            raise ConnectionAbortedError
        self._incoming.write(piece)
