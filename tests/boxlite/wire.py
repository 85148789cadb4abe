"""A transport without a network: what is sent is kept, and what is received comes from the test."""

from __future__ import annotations

import asyncio


class Wire(asyncio.Transport):
    """`abort` and `close` end the connection of `protocol`, as of a transport of the loop, a moment later."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self.sent = b""
        self.ended = self.paused = False
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.sent += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.sent += b"EOF"

    def pause_reading(self) -> None:
        assert not self.ended, "uvloop's raises then"
        self.paused = True

    def resume_reading(self) -> None:
        assert not self.ended, "as above"
        self.paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        if not self.ended:
            self.ended = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    close = abort
