"""The empty file system of a sandbox's disk, as an image in an unnamed file: its size, and how it gets there.

An image is made once for each size, by mke2fs, and copied for every sandbox of that size. Only the kernel writes to an
image after that, so to mount one is not to mount the file system of a stranger.
"""

from __future__ import annotations

import os

from app.launcher.kernel.syscalls import allocate

BLOCK = 4096  # bytes; the loop device has the same, and a file system with smaller ones could not be mounted on it
_GROUP = 8 * BLOCK  # blocks that one bitmap of a block describes
_INODE = 256  # bytes
_PIECE = 1 << 20
# What the kernel of ext4 keeps for itself: a fiftieth of the blocks, and 4,096 at most (ext4_calculate_resv_clusters).
_KEPT, _KEPT_MOST = 50, 4096
# Eighths of an image that are usable, at least, from 16 MiB on: 88 % there, and 92 % at 4 GiB.
USABLE_OF_8 = 7
_MKE2FS = ("/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs")
# Named one by one, so that no mke2fs.conf and no version of mke2fs decides. No journal: what is thrown away need not
# survive a crash. uninit_bg: tables of inodes need not be written, as a hole reads as zeros. One copy of the super
# block is enough. No extents: where ext4 has no room to split an unwritten one, it asks the device to write zeros, and
# a loop device makes a hole in its file. A program gave back 52 of 71 MiB of reserved room like that (measured).
_FEATURES = "none,dir_index,dir_nlink,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super2,uninit_bg"
_OPTIONS = "nodiscard,lazy_itable_init=1,num_backup_sb=0,packed_meta_blocks=1,root_owner=0:0"


class NoMke2fs(OSError):
    """There is no mke2fs, or it failed."""


def image_bytes(usable_bytes: int) -> int:
    """Size of an image in which `usable_bytes` can be written, in files of any size of a block or more.

    A 64th and half a MiB are for folders and the maps of files. One inode for each usable block, as in memory.
    """
    usable, inodes = -(-usable_bytes // BLOCK), _inodes(usable_bytes)
    wanted = usable + usable // 64 + 128
    blocks = wanted
    while True:
        groups = -(-blocks // _GROUP)
        per_group = -(-(-(-inodes // groups) * _INODE) // BLOCK)
        tables = groups * (per_group + 2) + -(-groups * 32 // BLOCK)
        kept = min(blocks // _KEPT, _KEPT_MOST)
        need = wanted + tables + kept + 16  # the super block, the root, lost+found
        if need <= blocks:
            return blocks * BLOCK
        blocks = need


def _inodes(usable_bytes: int) -> int:
    """With the 11 that ext4 has for itself."""
    return max(1024, usable_bytes // BLOCK) + 16


def make_template(template: int, usable_bytes: int, content: int) -> None:
    """Makes the file system in the file `template`, with mke2fs. `content` is a folder with what is in it. Raises
    OSError."""
    size = image_bytes(usable_bytes)
    os.ftruncate(template, size)
    program = next((path for path in _MKE2FS if os.access(path, os.X_OK)), "")
    if not program:
        raise NoMke2fs(2, "there is no mke2fs")
    argv = [
        "mke2fs", "-q", "-F", "-b", str(BLOCK), "-I", str(_INODE), "-m", "0",
        "-N", str(_inodes(usable_bytes)), "-O", _FEATURES, "-E", _OPTIONS,
        "-d", "/proc/self/fd/4", "/proc/self/fd/3", str(size // BLOCK),
    ]  # fmt: skip
    actions = [
        (os.POSIX_SPAWN_DUP2, template, 3),
        (os.POSIX_SPAWN_DUP2, content, 4),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    ]
    pid = os.posix_spawn(program, argv, {"MKE2FS_CONFIG": "/dev/null"}, file_actions=actions)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise NoMke2fs(5, f"mke2fs ended with {status}")


def fill(image: int, template: int) -> None:
    """Reserves the whole of the file `image`, and copies into it what of `template` is not a hole. Raises OSError."""
    allocate(image, os.fstat(template).st_size)
    at = 0
    while True:
        try:
            begin = os.lseek(template, at, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: there is no more
        at = os.lseek(template, begin, os.SEEK_HOLE)
        while begin < at:  # not by copy_file_range: xfs would share the blocks, and need new ones at the first write
            begin += os.pwrite(image, os.pread(template, min(at - begin, _PIECE), begin), begin)
