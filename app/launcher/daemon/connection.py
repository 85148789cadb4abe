"""The connection of one gateway to the launcher's socket."""

from __future__ import annotations

import _socket

from app.launcher.protocol import packets

_MOST_UNSENT = 4096


class Connection:
    """The connection of one gateway. Answers for which its socket has no room wait here. A gateway that never reads is
    cut off."""

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.unsent: list[tuple[bytes, list[int]]] = []
        self.broken = False
        self.blocked = False  # answers wait for room

    def send(self, packet: bytes, descriptors: list[int] | None = None) -> None:
        """The descriptors are the connection's from now on, which closes them."""
        descriptors = descriptors or []
        if self.broken:
            packets.close(descriptors)
            return
        self.unsent.append((packet, descriptors))
        if len(self.unsent) > _MOST_UNSENT:
            self.broken = True
        self.flush()

    def flush(self) -> None:
        while self.unsent:
            packet, descriptors = self.unsent[0]
            try:
                packets.send(self.socket, packet, descriptors)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            self.unsent.pop(0)
            packets.close(descriptors)

    def close(self) -> None:
        for _, descriptors in self.unsent:
            packets.close(descriptors)
        self.socket.close()
