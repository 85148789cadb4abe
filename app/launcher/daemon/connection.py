"""The connection of one gateway to the launcher's socket."""

from __future__ import annotations

import _socket
import os
import struct

_MOST_UNSENT = 4096


class Connection:
    """The connection of one gateway. Answers for which its socket has no room wait here. A gateway that never reads is
    cut off."""

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.unsent: list[tuple[bytes, int]] = []
        self.broken = False
        self.blocked = False  # answers wait for room

    def send(self, packet: bytes, descriptor: int = -1) -> None:
        if self.broken:
            if descriptor >= 0:
                os.close(descriptor)
            return
        self.unsent.append((packet, descriptor))
        if len(self.unsent) > _MOST_UNSENT:
            self.broken = True
        self.flush()

    def flush(self) -> None:
        while self.unsent:
            packet, descriptor = self.unsent[0]
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", descriptor))] if descriptor >= 0 else []
            try:
                self.socket.sendmsg([packet], rights, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            self.unsent.pop(0)
            if descriptor >= 0:
                os.close(descriptor)

    def close(self) -> None:
        for _, descriptor in self.unsent:
            if descriptor >= 0:
                os.close(descriptor)
        self.socket.close()
