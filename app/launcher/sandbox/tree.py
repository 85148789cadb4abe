"""Directories and trees, as a file agent sees them. Everything here runs inside the sandbox, with a command's rights.

Commands of the sandbox choose the names and may change them at any moment. Whatever is followed then belongs to the
sandbox.
"""

from __future__ import annotations

import errno
import os
import stat

from app.launcher.protocol.files import (
    UNKNOWN_KIND,
    FileRecord,
    end_of_entries,
    pack_head,
)
from app.launcher.sandbox import mounts

_PIECE = 1024 * 1024
_MOST_LINKS = 40  # MAXSYMLINKS of the kernel: one more in a path is ELOOP
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
_MODE_OF_KIND = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK,
)  # fmt: skip


_OWN_FOLDER = mounts.OWN.strip("/").encode()  # it stands in the root, for the steps that confine
OURS = b".bulkhead-"  # begins the name of what is not yet in its place, and 16 hexadecimal digits end it


def is_ours(name: bytes) -> bool:
    return name.startswith(OURS) and len(name) == len(OURS) + 16


def name_of_ours() -> bytes:
    return OURS + os.urandom(8).hex().encode()


class Obstacle(OSError):
    """Something of a wrong kind is at a path."""

    def __init__(self, number: int, path: bytes, kind: int = UNKNOWN_KIND) -> None:
        super().__init__(number, os.strerror(number), path)
        self.kind = kind


def kind_of(found: os.stat_result) -> int:
    return _MODE_OF_KIND.index(stat.S_IFMT(found.st_mode))


def node_of(found: os.stat_result) -> FileRecord:
    return FileRecord(kind_of(found), found.st_size, found.st_mode & 0o7777, found.st_mtime_ns, found.st_ino)


def require_file(found: os.stat_result, path: bytes) -> None:
    """Raises Obstacle."""
    if not stat.S_ISREG(found.st_mode):
        raise Obstacle(errno.EISDIR, path, kind_of(found))


def lstat_or_none(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def resolved(path: bytes) -> bytes:
    """Returns where a command's write to `path` would go, as an absolute path without links. Missing parts are taken as
    they are written. Raises OSError with ELOOP where the kernel would, for links in a circle and for a long chain."""
    here = b"/" if path.startswith(b"/") else os.getcwdb()
    waiting = path.split(b"/")[::-1]
    links = 0
    while waiting:
        part = waiting.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            here = os.path.dirname(here)
            continue
        at = os.path.join(here, part)
        try:
            target = os.readlink(at)
        except OSError:  # no link, or nothing, or out of reach: whoever uses the path is told
            here = at
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        here = b"/" if target.startswith(b"/") else here
        waiting += target.split(b"/")[::-1]
    return here


def forget(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def forget_directory(path: bytes) -> None:
    try:
        os.rmdir(path)
    except OSError:
        return  # somebody has put something into it: then it is theirs


def fill(file: int, pipe: int, size: int = -1) -> int:
    """Moves `size` bytes, or everything up to the end, from a pipe into a file. Returns how many bytes there were."""
    total = 0
    while size < 0 or total < size:
        moved = os.splice(pipe, file, _PIECE if size < 0 else min(_PIECE, size - total))
        if moved == 0:
            break
        total += moved
    return total


def write_all(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


# --- directories


def make_directories(path: bytes) -> list[bytes]:
    """Makes a directory and its parents. Returns those that were missing, outermost first. Raises OSError, and then
    none of them is left."""
    missing: list[bytes] = []
    at = path.rstrip(b"/") or path
    while at and not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    made: list[bytes] = []
    try:
        for directory in reversed(missing):
            try:
                os.mkdir(directory)
                made.append(directory)
            except FileExistsError:
                if not stat.S_ISDIR(_mode_behind(directory)):
                    raise Obstacle(errno.ENOTDIR, directory, kind_of(os.lstat(directory))) from None
    except OSError:
        for directory in reversed(made):
            forget_directory(directory)
        raise
    return made


def _mode_behind(path: bytes) -> int:
    """0 for a link to nothing. Raises OSError for links in a circle."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0


def list_entries(pipe: int, path: bytes, after: bytes, limit: int) -> None:
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise Obstacle(errno.ENOTDIR, path, kind_of(found))
    names = sorted(name for name in os.listdir(path) if name > after and not is_ours(name))
    if os.path.samestat(found, os.stat(b"/")) and _OWN_FOLDER in names:
        names.remove(_OWN_FOLDER)
    for name in names[:limit]:
        entry = lstat_or_none(path + b"/" + name)
        if entry is not None:
            target = os.readlink(path + b"/" + name) if stat.S_ISLNK(entry.st_mode) else b""
            write_all(pipe, pack_head(node_of(entry), name, target))
    write_all(pipe, end_of_entries(len(names) > limit))


def delete(path: bytes, *, recursive: bool) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return os.unlink(path)
    real = resolved(path)  # whose last part is a name: nothing above it is ever entered
    try:
        os.rmdir(real)  # of a mount point it says so before it says that something is in it
    except OSError as error:
        if not recursive or error.errno not in _NOT_EMPTY:
            raise
        _delete_tree(real)
    return None


def _delete_tree(path: bytes) -> None:
    """Steps down into each directory, so that no path gets too long and no depth costs a descriptor."""
    parent, name = os.path.split(path.rstrip(b"/"))
    here = os.open(b".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(parent or b".")
        left = [(name, _enter(name))]
        while left:
            name, names = left[-1]
            if names:
                child = names.pop()
                try:
                    if not _remove(child):
                        left.append((child, _enter(child)))
                except OSError as error:
                    error.filename = b"/".join([parent, *(name for name, _ in left), child])
                    raise
                continue
            os.chdir(b"..")
            left.pop()
            if not _remove(name):  # something has come meanwhile
                left.append((name, _enter(name)))
    finally:
        os.fchdir(here)
        os.close(here)


def _enter(name: bytes) -> list[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchdir(descriptor)
        return os.listdir(b".")
    finally:
        os.close(descriptor)


def _remove(name: bytes) -> bool:
    """False for a directory that is not empty."""
    try:
        os.unlink(name)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return _remove_directory(name)
    return True


def _remove_directory(name: bytes) -> bool:
    try:
        os.rmdir(name)
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return False
    return True
