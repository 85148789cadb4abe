"""What the kernel holds for a side of a connection that does not read."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios

from app.egress.sockets import NARROW_BUFFER, bound_memory

READ_PIECES = 1000


def unread_bytes(*, is_narrow: bool) -> int:
    """What waits in the kernel for a side that reads no more, when its sender cannot go on. The kernel gives more room
    to one that has read."""
    with socket.socket() as listener, socket.socket() as reader:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        if is_narrow:
            bound_memory(reader, wide=False)
        reader.connect(listener.getsockname())
        sender, _ = listener.accept()
        with sender, contextlib.suppress(TimeoutError):
            sender.settimeout(1)
            for _ in range(READ_PIECES):
                sender.send(bytes(64 * 1024))
                reader.recv(64 * 1024)
            while True:
                sender.send(bytes(64 * 1024))
        unread: int = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0]
        return unread


def test_one_of_many_connections_holds_little() -> None:
    assert unread_bytes(is_narrow=False) > 2 * NARROW_BUFFER, "the kernel's own choice"
    assert 0 < unread_bytes(is_narrow=True) <= 2 * NARROW_BUFFER
