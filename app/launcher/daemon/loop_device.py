"""A file as a block device, loop(4). A device is free again when nothing uses it any more, whatever has ended."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from app.launcher.daemon.disk_image import BLOCK

CONTROL = "/dev/loop-control"
_MAJOR = 7  # devices.txt of the kernel
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
# AUTOCLEAR: free when the last user is gone. DIRECT_IO: past the host's page cache, which would hold everything a
# second time, outside of every limit (827 MiB for 800 MiB written by a group of 64 MiB, measured; with it 61 MiB).
_AUTOCLEAR, _DIRECT_IO = 4, 16
# struct loop_config: the file, the block size, a struct loop_info64 (232 bytes), 8 reserved words.
_CONFIG, _INFO_SIZE = struct.Struct("<II232s64x"), 232
_INFO_NUMBER, _INFO_FLAGS = 40, 52  # offsets in loop_info64
_TRIES = 100  # others of the host may take a free device first


class LoopDevices:
    """Makes loop devices with descriptors only: `control` is that of CONTROL, `nodes` that of the host's /dev, and
    `place` that of a folder of our own in memory.

    In a container /dev does not follow the kernel's devices. Then a node is made in `place`, and is gone when it is
    open.
    """

    def __init__(self, control: int, nodes: int, place: int) -> None:
        self._control, self._nodes, self._place = control, nodes, place

    def attach(self, image: int) -> int:
        """A descriptor of a loop device whose content is the file `image`. Raises OSError: ENODEV when the device has
        no node and none may be made, EOPNOTSUPP when the file's file system has no direct I/O."""
        config = bytearray(_CONFIG.pack(image, BLOCK, _info(_AUTOCLEAR | _DIRECT_IO)))
        for _ in range(_TRIES):
            number = fcntl.ioctl(self._control, _LOOP_CTL_GET_FREE)
            device = -1
            try:
                device = self._open(number)
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

    def _open(self, number: int) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            device = os.open(f"loop{number}", flags, dir_fd=self._nodes)
        except FileNotFoundError:
            return self._open_own_node(number)
        found = os.fstat(device)
        if not stat.S_ISBLK(found.st_mode) or os.major(found.st_rdev) != _MAJOR:
            os.close(device)
            raise OSError(errno.ENODEV, f"/dev/loop{number} is no loop device")
        return device

    def _open_own_node(self, number: int) -> int:
        name = str(os.getpid())
        try:
            os.mknod(name, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number), dir_fd=self._place)
        except PermissionError:
            raise OSError(errno.ENODEV, f"there is no /dev/loop{number}, and no node may be made") from None
        try:
            return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._place)
        finally:
            os.unlink(name, dir_fd=self._place)


def _check(device: int, number: int) -> None:
    """The device is the one that was meant, and its direct I/O is on: a kernel that cannot do it says nothing."""
    info = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_INFO_SIZE))
    if int.from_bytes(info[_INFO_NUMBER : _INFO_NUMBER + 4], "little") != number:
        raise OSError(errno.ENODEV, f"loop device {number} has another number")
    if not int.from_bytes(info[_INFO_FLAGS : _INFO_FLAGS + 4], "little") & _DIRECT_IO:
        raise OSError(errno.EOPNOTSUPP, "the file system has no direct I/O")


def _info(flags: int) -> bytes:
    return bytes(_INFO_FLAGS) + flags.to_bytes(4, "little") + bytes(_INFO_SIZE - _INFO_FLAGS - 4)
