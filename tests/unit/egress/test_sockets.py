"""What the kernel holds for a side that does not read. Connections for which it has nothing left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.egress.sockets import NARROW_BUFFER, NO_DESCRIPTORS, WIDE_BUFFER, SpareDescriptor, bound_memory
from tests.kernel import host
from tests.unit.egress.test_bounds import no_more_descriptors

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


class Scarce(socket.socket):
    """A listener that cannot accept: so many times, for want of what `error` says."""

    error, times = errno.EMFILE, 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.times > 0:
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.fixture
def listener() -> Iterator[Scarce]:
    with Scarce() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        yield opened


@pytest.fixture
def spare() -> Iterator[SpareDescriptor]:
    opened = SpareDescriptor()
    yield opened
    opened.close()


def is_reset(program: socket.socket) -> bool:
    program.settimeout(60)
    try:
        return program.recv(1) == b"never"
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("error", sorted(NO_DESCRIPTORS), ids=errno.errorcode.get)
def test_connection_for_which_nothing_is_left_is_reset_and_waits_no_more(
    error: int, listener: Scarce, spare: SpareDescriptor
) -> None:
    listener.error = error
    before = host.own_descriptors()
    with socket.create_connection(listener.getsockname()) as program:
        with pytest.raises(OSError, match=os.strerror(error)):
            spare.accept(listener)
        assert is_reset(program)
    assert host.own_descriptors() == before
    with socket.create_connection(listener.getsockname()):
        spare.accept(listener).close()


class Thief(socket.socket):
    """A listener that cannot accept. When it is asked again, it has taken the last descriptor, as a process could."""

    asked, taken = 0, -1

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.asked == 2:
            self.taken = os.dup(self.fileno())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_spare_descriptor_that_another_process_took_is_taken_back(listener: Scarce, spare: SpareDescriptor) -> None:
    with Thief() as thief, socket.create_connection(listener.getsockname()) as program:
        with no_more_descriptors():
            with pytest.raises(OSError, match="Too many open files"):
                spare.accept(thief)
            os.close(thief.taken)
            with pytest.raises(OSError, match="Too many open files"):
                spare.accept(listener)
        assert is_reset(program)


def test_closed_spare_descriptor_holds_nothing() -> None:
    before = host.own_descriptors()
    opened = SpareDescriptor()
    assert len(host.own_descriptors()) == len(before) + 1
    opened.close()
    opened.close()
    assert host.own_descriptors() == before
