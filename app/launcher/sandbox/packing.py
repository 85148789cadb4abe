"""Whole trees through a pipe, out of the sandbox and into it. Like `tree.py`, it runs inside with a command's
rights."""

from __future__ import annotations

import errno
import os
import stat

from app.launcher.protocol import ProtocolError
from app.launcher.protocol.files import (
    DIRECTORY,
    END,
    FILE,
    HARD_LINK,
    HEAD,
    LONGEST,
    SYMLINK,
    FileRecord,
    end_of_entries,
    pack_head,
)
from app.launcher.sandbox import tree
from app.launcher.sandbox.tree import Obstacle, kind_of, node_of

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1024 * 1024
_PACKED = (FILE, DIRECTORY, SYMLINK)


# --- out


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """(name below the root, path, what it is), parents first, in the order of their bytes; a file's own name. What
    vanishes meanwhile is left out. Raises OSError for a tree deeper than the kernel's paths."""
    found = os.stat(root)
    if not stat.S_ISDIR(found.st_mode):
        tree.require_file(found, root)
        yield os.path.basename(root), root, found
        return
    waiting = [b""]
    while waiting:
        name = waiting.pop()
        path = root + b"/" + name if name else root
        entry = tree.lstat_or_none(path) if name else found
        if entry is None or kind_of(entry) not in _PACKED:
            continue
        yield name, path, entry
        if stat.S_ISDIR(entry.st_mode):
            prefix = name + b"/" if name else b""
            children = (child for child in os.listdir(path) if not tree.is_ours(child))
            waiting += sorted((prefix + child for child in children), reverse=True)


def require_readable(root: bytes) -> None:
    """Raises OSError for an entry that could not be read later, when it would be too late to say why."""
    for name, path, found in _walk(root):
        if len(name) > LONGEST - 64:
            raise OSError(errno.ENAMETOOLONG, "the tree is too deep", path)
        if stat.S_ISREG(found.st_mode) and not os.access(path, os.R_OK):
            raise OSError(errno.EACCES, "it cannot be read", path)


def pack(pipe: int, root: bytes) -> None:
    """Writes entries with their bytes, and an end record. If a file gets shorter meanwhile, the pipe ends early."""
    seen: dict[tuple[int, int], bytes] = {}
    for name, path, found in _walk(root):
        if stat.S_ISLNK(found.st_mode):
            try:
                target = os.readlink(path)
            except FileNotFoundError:
                continue
            tree.write_all(pipe, pack_head(node_of(found), name, target))
        elif stat.S_ISDIR(found.st_mode):
            tree.write_all(pipe, pack_head(node_of(found), name))
        else:
            first = seen.setdefault((found.st_dev, found.st_ino), name) if found.st_nlink > 1 else name
            if first is not name:
                node = FileRecord(HARD_LINK, 0, found.st_mode & 0o7777, found.st_mtime_ns, found.st_ino)
                tree.write_all(pipe, pack_head(node, name, first))
            elif not _pack_file(pipe, name, path):
                return
    tree.write_all(pipe, end_of_entries())


def _pack_file(pipe: int, name: bytes, path: bytes) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        found = os.fstat(file)
        tree.require_file(found, path)
        tree.write_all(pipe, pack_head(node_of(found), name))
        at = 0
        while at < found.st_size:
            sent = os.sendfile(pipe, file, at, min(_PIECE, found.st_size - at))
            if sent == 0:
                return False
            at += sent
    finally:
        os.close(file)
    return True


# --- in


class Unpacking:
    """Unpacks a tree. Everything is built in a folder of its own below the target, and moved into place at the end."""

    def __init__(self, pipe: int, target: bytes, staging_name: bytes) -> None:
        self._pipe, self._target = pipe, target
        self._staging = target + b"/" + staging_name
        self._directories: list[tuple[bytes, FileRecord]] = []

    def run(self) -> None:
        """Raises OSError, or ProtocolError for a pipe that ends early. Then nothing of the tree is left."""
        made = tree.make_directories(self._target)
        try:
            os.mkdir(self._staging, 0o700)
            self._build()
            self._check()
            self._put_in_place()
            made.clear()
        finally:
            if tree.lstat_or_none(self._staging) is not None:
                tree.delete(self._staging, recursive=True)
            for directory in reversed(made):
                tree.forget_directory(directory)

    def _take(self, size: int) -> bytes:
        """Not `ChunkReader` of the core: this side blocks, and the launcher imports the standard library only."""
        data = b""
        while len(data) < size:
            piece = os.read(self._pipe, size - len(data))
            if not piece:
                raise ProtocolError("the entries end early")
            data += piece
        return data

    def _build(self) -> None:
        while True:
            kind, size, mode, modified_ns, inode, name_size, target_size = HEAD.unpack(self._take(HEAD.size))
            if kind == END:
                return
            node = FileRecord(kind, size, mode & 0o777, modified_ns, inode)
            self._make(self._take(name_size), self._take(target_size), node)

    def _make(self, name: bytes, target: bytes, node: FileRecord) -> None:
        path = self._staging + b"/" + name
        if node.kind == DIRECTORY:
            tree.make_directories(path)
            self._directories.append((name, node))
            return
        tree.make_directories(os.path.dirname(path))
        tree.forget(path)  # a later entry of the same name counts
        if node.kind == SYMLINK:
            os.symlink(target, path)
        elif node.kind == HARD_LINK:
            os.link(self._staging + b"/" + target, path, follow_symlinks=False)
        else:
            self._make_file(path, node)

    def _make_file(self, path: bytes, node: FileRecord) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if tree.fill(file, self._pipe, node.size) < node.size:
                raise ProtocolError("the entries end early")
            os.fchmod(file, node.mode)
            os.utime(file, ns=(node.modified_ns, node.modified_ns))
        finally:
            os.close(file)

    def _staged(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """(from, to, is it a directory), parents first."""
        waiting = [b""]
        while waiting:
            name = waiting.pop()
            here = self._staging + name
            for child in os.listdir(here):
                path = here + b"/" + child
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                yield path, self._target + name + b"/" + child, is_directory
                if is_directory:
                    waiting.append(name + b"/" + child)

    def _check(self) -> None:
        """Raises Obstacle where a file would take the place of a directory, or the reverse, and OSError where nothing
        may be put: before anything is."""
        for _, place, is_directory in self._staged():
            found, parent = tree.lstat_or_none(place), os.path.dirname(place)
            if os.path.isdir(parent) and not os.access(parent, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, "nothing may be put there", parent)
            if found is None:
                continue
            if is_directory and not os.path.isdir(place):
                raise Obstacle(errno.ENOTDIR, place, kind_of(found))
            if not is_directory and stat.S_ISDIR(found.st_mode):
                raise Obstacle(errno.EISDIR, place, DIRECTORY)

    def _put_in_place(self) -> None:
        for path, place, is_directory in self._staged():
            if not is_directory:
                os.rename(path, place)
            elif not os.path.isdir(place):
                os.mkdir(place)
        for name, node in reversed(self._directories):  # last: a directory may be read-only, and its time changes
            if name:
                os.chmod(self._target + b"/" + name, node.mode)
                os.utime(self._target + b"/" + name, ns=(node.modified_ns, node.modified_ns))
