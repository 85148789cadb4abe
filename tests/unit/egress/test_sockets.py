"""What the kernel holds for a side of a connection that does not read."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import threading

from app.egress.sockets import NARROW_BUFFER, WIDE_BUFFER, bound_memory

MIB = 1024 * 1024
READ_BYTES = 400 * MIB  # the kernel gives more room to a side that reads fast


def fill(sender: socket.socket) -> None:
    """Returns when a second has passed in which nobody read."""
    sender.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            sender.sendall(bytes(MIB))


def unread_bytes(*, wide: bool | None) -> int:
    """What waits in the kernel for a side that reads no more, when its sender cannot go on. None: without a bound."""
    with socket.socket() as listener, socket.socket() as reader:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        if wide is not None:
            bound_memory(reader, wide=wide)
        reader.connect(listener.getsockname())
        sender, _ = listener.accept()
        with sender:
            filling = threading.Thread(target=fill, args=(sender,))
            filling.start()
            left = READ_BYTES
            while left > 0:
                left -= len(reader.recv(256 * 1024))
            filling.join()
        unread: int = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0]
        return unread


def test_what_a_side_that_reads_no_more_leaves_to_the_kernel_is_bounded() -> None:
    assert unread_bytes(wide=None) > 2 * WIDE_BUFFER, "the kernel's own choice"
    assert 2 * NARROW_BUFFER < unread_bytes(wide=True) <= 2 * WIDE_BUFFER
    assert 0 < unread_bytes(wide=False) <= 2 * NARROW_BUFFER
