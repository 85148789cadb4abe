"""A file as a block device, loop(4). A device is free again when nothing uses it any more, whatever has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from app.launcher.daemon.disk_image import BLOCK

_CONTROL, _CONTROL_DEVICE = "loop-control", os.makedev(10, 237)  # devices.txt of the kernel
_MAJOR = 7
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
# AUTOCLEAR: free when the last user is gone. DIRECT_IO: past the host's page cache, which would hold everything a
# second time, outside of every limit (827 MiB for 800 MiB written by a group of 64 MiB, measured; with it 61 MiB).
_AUTOCLEAR, _DIRECT_IO = 4, 16
# struct loop_config: the file, the block size, a struct loop_info64 (232 bytes), 8 reserved words.
_CONFIG, _INFO_SIZE = struct.Struct("<II232s64x"), 232
_INFO_NUMBER, _INFO_FLAGS = 40, 52  # offsets in loop_info64
_TRIES = 100  # others of the host may take a free device first


class LoopDevices:
    """Makes loop devices with descriptors only: `nodes` is that of the host's /dev, and `place` that of a folder of our
    own in memory. Raises OSError where the host has no loop devices.

    In a container /dev has no loop devices, or does not follow those of the kernel. Then a node is made in `place`, and
    is gone when it is open.
    """

    def __init__(self, nodes: int, place: int) -> None:
        self._nodes, self._place = nodes, place
        self.control = self._open(_CONTROL, stat.S_IFCHR, _CONTROL_DEVICE)

    def attach(self, image: int) -> int:
        """A descriptor of a loop device whose content is the file `image`. Raises OSError: ENODEV when the device has
        no node and none may be made, EOPNOTSUPP when the file's file system has no direct I/O."""
        config = bytearray(_CONFIG.pack(image, BLOCK, _info(_AUTOCLEAR | _DIRECT_IO)))
        for _ in range(_TRIES):
            number = fcntl.ioctl(self.control, _LOOP_CTL_GET_FREE)
            device = -1
            try:
                device = self._open(f"loop{number}", stat.S_IFBLK, os.makedev(_MAJOR, number))
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                _check(device, number)
            except OSError as error:
                if device >= 0:
                    os.close(device)
                if error.errno in (errno.EBUSY, errno.ENXIO):
                    continue  # somebody has taken it, or removed it
                raise
            return device
        raise OSError(errno.EBUSY, "other programs of the host took every free loop device")

    def _open(self, name: str, kind: int, device: int) -> int:
        """Raises OSError."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            opened = os.open(name, flags, dir_fd=self._nodes)
        except FileNotFoundError:
            return self._open_own_node(name, kind, device)
        found = os.fstat(opened)
        if stat.S_IFMT(found.st_mode) != kind or os.major(found.st_rdev) != os.major(device):
            os.close(opened)
            raise OSError(errno.ENODEV, f"/dev/{name} is another device")
        return opened

    def _open_own_node(self, name: str, kind: int, device: int) -> int:
        node = str(os.getpid())
        try:
            os.mknod(node, kind | 0o600, device, dir_fd=self._place)
        except PermissionError:
            raise OSError(errno.ENODEV, f"there is no /dev/{name}, and no node may be made") from None
        try:
            return os.open(node, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._place)
        finally:
            os.unlink(node, dir_fd=self._place)


def _check(device: int, number: int) -> None:
    """The device is the one that was meant, and its direct I/O is on: a kernel that cannot do it says nothing."""
    info = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_INFO_SIZE))
    if int.from_bytes(info[_INFO_NUMBER : _INFO_NUMBER + 4], "little") != number:
        raise OSError(errno.ENODEV, f"loop device {number} has another number")
    if not int.from_bytes(info[_INFO_FLAGS : _INFO_FLAGS + 4], "little") & _DIRECT_IO:
        raise OSError(errno.EOPNOTSUPP, "the file system has no direct I/O")


def _info(flags: int) -> bytes:
    return bytes(_INFO_FLAGS) + flags.to_bytes(4, "little") + bytes(_INFO_SIZE - _INFO_FLAGS - 4)
