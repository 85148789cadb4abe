"""A child of the launcher that makes one disk: a slow disk of the operator's must not hold up the launcher's loop.

The child sends the mount straight to the clone that waits for it. So the launcher never holds a disk, and never is the
last to let go of one: to give back the blocks of 200 MB takes 160 ms (measured).
"""

from __future__ import annotations

import _signal
import _socket
import errno
import os

from app.launcher.daemon.loop_storage import LoopStorage, StorageError
from app.launcher.kernel.syscalls import PR_SET_PDEATHSIG, clone3, close_range, prctl
from app.launcher.protocol import DISK, ProtocolError, Reader, Writer, packets


class DiskResult:
    """What a child has said. `errno` is 0 when the disk was made. `template` is a descriptor of an empty file system
    that it made on the way, or -1."""

    __slots__ = ("cure", "errno", "sentence", "template")

    def __init__(self, number: int, sentence: str, cure: str, template: int) -> None:
        self.errno, self.sentence, self.cure, self.template = number, sentence, cure, template


class DiskMaker:
    """`pidfd` is readable when the child has ended. `usable_bytes`: what can be written to the disk."""

    __slots__ = ("_pid", "_socket", "pidfd", "usable_bytes")

    def __init__(
        self, storage: LoopStorage, template: int, usable_bytes: int, owner: int, channel: _socket.socket | None
    ) -> None:
        """`template` is a descriptor of an empty file system of that size, or -1. `owner` is a uid and gid of the host.
        `channel` leads to the clone that gets the disk; without one the disk is thrown away. Raises OSError."""
        self.usable_bytes = usable_bytes
        self._socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        try:
            self._pid, self.pidfd = clone3(0)
            if self._pid == 0:
                _make(storage, template, usable_bytes, owner, channel, theirs)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def wait(self, seconds: float) -> DiskResult:
        """Waits for what the child says, and not for its end."""
        self._socket.settimeout(seconds)
        return self._take()

    def reap(self) -> DiskResult:
        """Call it when the child has ended. Returns what it has said, if nobody took it before. A child that was killed
        has failed, whatever it has said."""
        _, status = os.waitpid(self._pid, 0)
        os.close(self.pidfd)
        self._socket.setblocking(False)
        result = self._take()
        self._socket.close()
        if status and not result.errno:
            result.errno, result.sentence = errno.EIO, "the process that makes the disk was killed"
        return result

    def _take(self) -> DiskResult:
        template = -1
        try:
            data, descriptors = packets.receive(self._socket)
            template = descriptors[0] if descriptors else -1
            source = Reader(data)
            return DiskResult(source.u32(), source.text(), source.text(), template)
        except (OSError, ProtocolError):
            return DiskResult(errno.EIO, "the process that makes the disk has ended, or hangs", "", template)


def _make(
    storage: LoopStorage,
    template: int,
    usable_bytes: int,
    owner: int,
    channel: _socket.socket | None,
    result: _socket.socket,
) -> None:
    """In the child. Never returns. It says that the disk is made after the clone has it, so a child that is killed
    before never leaves a clone waiting."""
    try:
        prctl(PR_SET_PDEATHSIG, 9)
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        _close_others([*storage.descriptors, template, result.fileno(), channel.fileno() if channel else -1])
        try:
            made = storage.make_template(usable_bytes) if template < 0 else -1
            mount = storage.make_disk(max(template, made), usable_bytes, owner)
            if channel is not None:
                _hand_over(channel, mount)
        except StorageError as error:
            packets.send(result, _result(error.errno or errno.EIO, error.sentence[:500], error.cure), [])
            os._exit(1)
        except OSError as error:
            packets.send(result, _result(error.errno or errno.EIO, f"nobody gets the disk: {error.strerror}", ""), [])
            os._exit(1)
        packets.send(result, _result(0, "", ""), [made] if made >= 0 else [])
    finally:
        os._exit(0)


def _hand_over(channel: _socket.socket, mount: int) -> None:
    """Raises OSError when the clone cannot get it. If the clone has ended, the launcher knows why, and better."""
    try:
        packets.send(channel, bytes((DISK,)), [mount])
    except (BrokenPipeError, ConnectionResetError):
        return


def _result(number: int, sentence: str, cure: str) -> bytes:
    return bytes(Writer(0).u32(number).text(sentence).text(cure).data[1:])


def _close_others(keep: list[int]) -> None:
    """The first three stay: a file must not get number 0, which is that of the device."""
    first = 3
    for descriptor in sorted(number for number in keep if number >= first):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, 0xFFFFFFFF)
