"""What is done with every socket of a connection."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

# Bytes that the kernel may hold for one connection before they are read. It doubles both, and takes no more than
# net.core.rmem_max: socket(7).
WIDE_BUFFER, NARROW_BUFFER = 512 * 1024, 64 * 1024
UNSENT = 128 * 1024  # bytes that the kernel takes before they can be sent
NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, socket(7)


def bound_memory(connection: socket.socket, *, wide: bool) -> None:
    """Bounds what the kernel holds for a side that does not read, and sends small pieces at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Not TCP_WINDOW_CLAMP, which bounds nothing once the kernel has given more room: it held 9 MB under one of 1 MiB.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WIDE_BUFFER if wide else NARROW_BUFFER)
    connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT)


def acknowledge(connection: socket.socket) -> None:
    """Sends an acknowledgement that the kernel would delay for 40 ms (TCP_QUICKACK, tcp(7))."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def reset(connection: socket.socket) -> None:
    """Closes at once. The other side gets ECONNRESET."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    finally:
        connection.close()


class SpareDescriptor:
    """When there are no descriptors left, a connection can still be accepted and reset. Else it would stay in the
    backlog: nobody would tell the program anything, and the event loop would be called for it again and again. Must be
    closed."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._spare = _open_spare()

    def close(self) -> None:
        """Repeatable."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def accept(self, listener: socket.socket) -> socket.socket:
        """Raises OSError. With an errno of NO_DESCRIPTORS a connection has been reset, or was gone."""
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._shed(listener)
            raise

    def _shed(self, listener: socket.socket) -> None:
        self.close()
        with contextlib.suppress(OSError):  # the program has given up, or another process took the host's last one
            reset(listener.accept()[0])
        with contextlib.suppress(OSError):  # likewise
            self._spare = _open_spare()


def _open_spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
