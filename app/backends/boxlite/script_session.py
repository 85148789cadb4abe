"""One script in a box that is spoken to in lines. Its answers are bounded, and it is ended and cleaned up in any case.

Its socket is read all the time, as the server drops what waits for long. A script that follows `file_scripts` never has
more under way than this session keeps.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import AttachCut, Ended, Socket
from app.backends.boxlite.file_facts import malformed
from app.backends.boxlite.file_scripts import BLOCK_BYTES, PIECE_BYTES
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.errors import BackendTimeout, BackendUnavailable, UnsupportedByRuntime
from app.core.models import Channel

LINE_BYTES = 512
ERROR_BYTES = 16 * 1024
KEPT_BYTES = 4 * PIECE_BYTES  # two pieces in base64, with their lines
BLOCKS_UNDER_WAY = 4
SLOWEST, FEWEST = 4 * 1024 * 1024, 20  # bytes and entries that any box gets done in a second
_PIECE = re.compile(rb"piece (\d{1,6}) ([0-9a-f]{64})")
_END = re.compile(rb"end (\d{1,3})")
_TEXT_BYTES = PIECE_BYTES // 3 * 4 + PIECE_BYTES // 57 + 2  # with a newline after 76 letters


class ScriptEnded(Exception):
    """The script ended too early. `said` is its last output."""

    def __init__(self, code: int, said: bytes) -> None:
        self.code, self.said = code, said
        super().__init__(f"the script ended with {code}")


class ScriptSession:
    def __init__(self, socket: Socket, timeouts: ServerTimeouts) -> None:
        self._socket, self._timeouts = socket, timeouts
        self._heard = bytearray()
        self._errors = bytearray()
        self._news = asyncio.Event()
        self._failure: Exception | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self.code: int | None = None

    async def _read(self) -> None:
        try:
            async for frame in self._socket.frames():
                if isinstance(frame, Ended):
                    self.code = frame.code
                elif frame.channel is Channel.STDERR:
                    self._errors += frame.data[: ERROR_BYTES - len(self._errors)]
                else:
                    self._heard += frame.data
                    if len(self._heard) > KEPT_BYTES:
                        raise malformed()
                self._news.set()
        except AttachCut as error:
            self._failure = BackendUnavailable(RUNTIME, f"the BoxLite server closed the connection: {error}")
        except Exception as error:  # raised where somebody waits for what was to be read: nobody waits for this task
            self._failure = error
        finally:
            self._news.set()

    async def _more(self, seconds: float) -> None:
        """Returns when something more was said; raises ScriptEnded when nothing can come."""
        if self._failure is not None:
            raise self._failure
        if self.code is not None:
            raise ScriptEnded(self.code, bytes(self._errors))
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            raise BackendTimeout(
                RUNTIME, f"the programs in the box have sent nothing for {seconds:g} seconds"
            ) from None

    async def _take(self, size: int, seconds: float) -> bytes:
        """Not by a `ChunkReader`, which reads when it is asked: here all is read at once, see above."""
        while len(self._heard) < size:
            await self._more(seconds)
        taken = bytes(self._heard[:size])
        del self._heard[:size]
        return taken

    async def line(self, seconds: float | None = None) -> bytes:
        """Returns the next line. `seconds` bounds the silence before it. Raises ScriptEnded, a BackendFailure."""
        while (end := self._heard.find(b"\n", 0, LINE_BYTES)) < 0:
            if len(self._heard) >= LINE_BYTES:
                raise malformed()
            await self._more(self._timeouts.files if seconds is None else seconds)
        line = (await self._take(end + 1, 0))[:-1]
        if line.startswith(b"lacks "):
            tool = line[6:22].decode(errors="replace")
            raise UnsupportedByRuntime(f"files in this image, which lacks {tool}", RUNTIME)
        return line

    async def say(self, line: str) -> None:
        await self._send(line.encode() + b"\n")

    async def _send(self, data: bytes) -> None:
        try:
            await self._socket.write(data)
        except AttachCut as error:
            await self._hear_out()
            raise BackendUnavailable(RUNTIME, f"the BoxLite server closed the connection: {error}") from error

    async def _hear_out(self) -> None:
        """Of a script that has ended the server closes the socket: why it ended is worth more than that."""
        while True:
            await self._more(self._timeouts.closing)

    # --- bytes of any kind

    async def stream(self, limit: int, seconds: float | None = None) -> AsyncIterator[bytes]:
        """Yields what `stream` of a script sends, at most `limit` bytes. It asks for a piece when the one before was
        taken. `seconds` bounds the silence. Raises ScriptEnded where its program fails."""
        received, seconds = 0, seconds or self._timeouts.files
        while (piece := _PIECE.fullmatch(line := await self.line(seconds))) is not None:
            size = int(piece[1])
            if size > _TEXT_BYTES:
                raise malformed()
            text = await self._take(size + 1, seconds)
            data = _decoded(text, piece[2])
            received += len(data)
            if received > limit:
                raise malformed()
            yield data
            await self.say("more")
        end = _END.fullmatch(line)
        if end is None:
            raise malformed()
        if int(end[1]):
            await self.end()  # of what it says to stderr nothing is sure to be here before its end
            raise ScriptEnded(int(end[1]), bytes(self._errors))

    async def feed(self, content: AsyncIterator[bytes]) -> tuple[int, str]:
        """Sends bytes to `feed` of a script. Returns how many bytes there were, and their digest."""
        digest, total, under_way = hashlib.sha256(), 0, 0
        async for block in _blocks(content):
            if under_way == BLOCKS_UNDER_WAY:
                await self._fed()
                under_way -= 1
            digest.update(block)
            total += len(block)
            await self.ask(block)
            under_way += 1
        for _ in range(under_way):
            await self._fed()
        await self.say("0")
        return total, digest.hexdigest()

    async def ask(self, block: bytes, request: str = "") -> None:
        """Sends a line with the request and the size, and then a block."""
        await self._send(f"{request} {len(block)}\n".lstrip().encode() + block)

    @property
    def piece_seconds(self) -> float:
        return self._timeouts.piece

    def seconds_for(self, size: int = 0, entries: int = 0) -> float:
        """The time for programs that work on so many bytes before they print something."""
        return self._timeouts.files + size / SLOWEST + entries / FEWEST

    async def _fed(self) -> None:
        if await self.line() != b"fed":
            raise malformed()

    # --- the end

    async def end(self) -> bool:
        """Ends its stdin, which ends a script that reads it. Returns False when the script goes on, or when this is not
        known."""
        await self._socket.end_stdin()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.cleanup):
                await self._reader
        self._reader.cancel()
        return self.code is not None


def _decoded(text: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise BackendUnavailable(RUNTIME, "a piece of the file was damaged: its digest is wrong")
    try:
        return base64.b64decode(text.replace(b"\n", b""), validate=True)
    except binascii.Error:
        raise malformed() from None


async def _blocks(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of `BLOCK_BYTES`, but the last."""
    kept = bytearray()
    async for data in content:
        kept += data
        while len(kept) >= BLOCK_BYTES:
            yield bytes(kept[:BLOCK_BYTES])
            del kept[:BLOCK_BYTES]
    if kept:
        yield bytes(kept)
