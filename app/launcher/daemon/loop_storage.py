"""What disks of sandboxes are made of: the operator's folder and the host's loop devices. They are opened before the
launcher enters the template. After that there are only their descriptors.

`bulkhead probe` makes a disk with the same code, to tell what is missing.
"""

from __future__ import annotations

import errno
import os

from app.launcher.daemon import disk_image
from app.launcher.daemon.loop_device import LoopDevices
from app.launcher.kernel.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    detached_mount,
    file_system_type,
)

LAYER = "loop_storage"
LEAST_BYTES = 16 << 20  # the smallest disk
# Where fallocate reserves room for good. A file system that copies on write says yes to it, and has no room later.
_RESERVES = {0xEF53: "ext4", 0x58465342: "xfs"}  # linux/magic.h
_FOLDERS = {"workspace": 0o700, "tmp": 0o1777}
_CONTENT = "content"
_SOURCE = "disk"  # what a sandbox sees as the device of its mounts: a link to descriptor 0 of whoever mounts
# No barriers: what is thrown away need not reach the operator's disk at a certain time (3,561 flushes a second were
# asked for by writes with O_SYNC, measured). Tables of inodes are zero already. Nothing about ACLs: the seccomp filter
# refuses setxattr(2) and its kin, so no file inside gets one.
_OPTIONS = {"source": _SOURCE, "barrier": "0", "noinit_itable": ""}

_FOLDER = "set BULKHEAD_PROCESS__STORAGE_DIR to a folder that belongs to root, on ext4 or xfs"
_LOOP = "load the module (modprobe loop); a container needs /dev/loop-control, the devices `b 7:*` and CAP_MKNOD"
_CURES = {
    "open_folder": _FOLDER,
    "reserve": _FOLDER,
    "loop_control": _LOOP,
    "loop_device": _LOOP,
    "make_image": "install e2fsprogs, which has mke2fs",
    "mount_disk": "start as root of the host (CAP_SYS_ADMIN outside of any user namespace), on a kernel with ext4",
}


class StorageError(OSError):
    """A disk that cannot be made: errno, a sentence, and the step in which it failed."""

    def __init__(self, step: str, number: int, sentence: str) -> None:
        super().__init__(number, sentence)
        self.step, self.sentence = step, sentence

    @property
    def cure(self) -> str:
        return _CURES[self.step]


def open_loop_storage(folder: str) -> LoopStorage | StorageError:
    """`folder` is a path of the host. What the host lacks is returned, as only sandboxes with a disk need it."""
    try:
        return LoopStorage(folder)
    except StorageError as error:
        return error


class LoopStorage:
    """Raises StorageError if the host has not what it needs. `folder` is a path of the host."""

    def __init__(self, folder: str) -> None:
        self.descriptors: list[int] = []
        try:
            self._folder = self._hold(_open_folder(folder))
            self._open_devices()
        except OSError:
            self.close()
            raise

    def _open_devices(self) -> None:
        """Raises StorageError."""
        try:
            nodes = self._hold(os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
            self._place = self._hold(detached_mount("tmpfs", {"size": "64k", "mode": "0700"}, attributes))
            os.symlink("/proc/self/fd/0", _SOURCE, dir_fd=self._place)
            _make_folders(self._place)
        except OSError as error:
            raise StorageError("mount_disk", error.errno or 0, f"a mount is refused: {error.strerror}") from error
        try:
            self._devices = LoopDevices(nodes, self._place)
        except OSError as error:
            raise StorageError("loop_control", error.errno or 0, f"/dev/loop-control: {error.strerror}") from error
        self._hold(self._devices.control)

    def _hold(self, descriptor: int) -> int:
        self.descriptors.append(descriptor)
        return descriptor

    def close(self) -> None:
        """No disk can be made after that. From the host's /dev, `..` leads to the host's root, so what is of no use is
        not kept open."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    @property
    def free_bytes(self) -> int:
        """What the operator's file system has left for others than root."""
        found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def make_template(self, usable_bytes: int) -> int:
        """A descriptor of an unnamed file with an empty file system. Raises StorageError."""
        template = self._unnamed()
        content = os.open(_CONTENT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._place)
        try:
            disk_image.make_template(template, usable_bytes, content)
        except OSError as error:
            os.close(template)
            raise _no_room_or("make_image", error) from error
        finally:
            os.close(content)
        return template

    def make_disk(self, template: int, usable_bytes: int, owner: int) -> int:
        """A descriptor of a new file system, mounted nowhere yet, with the folders `workspace` and `tmp`. `owner` is a
        uid and gid of the host. Raises StorageError: ENOSPC when the operator's disk has no room.

        It takes descriptor 0 of the process, and changes its directory. When the last descriptor and mount of it is
        gone, the kernel frees the loop device and the file, which has no name.
        """
        image = self._unnamed()
        try:
            disk_image.fill(image, template)
        except OSError as error:
            os.close(image)
            raise _no_room_or("reserve", error) from error
        try:
            device = self._devices.attach(image)
        except OSError as error:
            raise StorageError("loop_device", error.errno or 0, str(error.strerror)) from error
        finally:
            os.close(image)
        try:
            os.dup2(device, 0)
            os.fchdir(self._place)
            mount = detached_mount("ext4", _OPTIONS, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        except OSError as error:
            raise StorageError("mount_disk", error.errno or 0, f"ext4 is not mounted: {error.strerror}") from error
        finally:
            os.close(device)
            os.close(0)
        try:
            _give(mount, usable_bytes, owner)
        except OSError as error:
            os.close(mount)
            raise StorageError("mount_disk", error.errno or 0, str(error.strerror)) from error
        return mount

    def _unnamed(self) -> int:
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise _no_room_or("reserve", error) from error


def _open_folder(path: str) -> int:
    """Raises StorageError."""
    if not path:
        raise StorageError("open_folder", errno.ENOENT, "there is no folder for disks")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError("open_folder", error.errno or 0, f"{path}: {error.strerror}") from error
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        sentence = f"{path} does not belong to root, or others may write there"
    elif file_system_type(folder) not in _RESERVES:
        sentence = f"{path} is on a file system that does not reserve room for good"
    else:
        return folder
    os.close(folder)
    raise StorageError("open_folder", errno.EOPNOTSUPP, sentence)


def _no_room_or(step: str, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("reserve", errno.ENOSPC, "the operator's disk has no room for it")
    return StorageError(step, error.errno or 0, str(error.strerror))


def _make_folders(place: int) -> None:
    """What every disk has. It is in the template, as to make a folder on a new disk takes 2 ms more (measured)."""
    os.mkdir(_CONTENT, dir_fd=place)
    for name, mode in _FOLDERS.items():
        os.mkdir(f"{_CONTENT}/{name}", dir_fd=place)
        os.chmod(f"{_CONTENT}/{name}", mode, dir_fd=place)  # the umask would take bits away


def _give(mount: int, usable_bytes: int, owner: int) -> None:
    """Raises OSError."""
    found = os.fstatvfs(mount)
    if found.f_bavail * found.f_frsize < usable_bytes:
        raise OSError(errno.EFBIG, "the file system is smaller than it has to be")
    for name in _FOLDERS:
        os.chown(name, owner, owner, dir_fd=mount, follow_symlinks=False)
