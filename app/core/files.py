"""The contract for the files of a sandbox, for runtimes with the capability FILES.

Paths are bytes, absolute or relative to /workspace. They mean what they mean to a command of the sandbox: links are
followed, inside, and nothing can be reached that a command could not reach. Whatever a path leads to, an answer or an
error comes soon. Every rule here has a test in `tests/contract/test_files.py`, which runs against every runtime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from app.core.errors import InvalidRequest

DEFAULT_MODE = 0o644
MODE_BITS = 0o777  # what a client may set: setuid, setgid and sticky mean nothing in a sandbox


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"

    @property
    def noun(self) -> str:
        """With its article, for sentences."""
        words = {FileKind.FILE: "regular file", FileKind.SYMLINK: "symbolic link", FileKind.FIFO: "FIFO"}
        return f"a {words.get(self, self.value.replace('_', ' '))}"


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, mode as in chmod(1), the time of the last change of the content in nanoseconds since 1970."""

    kind: FileKind
    size: int
    mode: int
    modified_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """`stat` is the entry's own: a link is a link. `target`: of a link, as it is written."""

    name: bytes
    stat: FileStat
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    entries: Sequence[DirectoryEntry]
    more: bool


class EntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard_link"


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One entry of a tree. `name`: clean, relative to the tree's root, which itself is b"". The bytes of a FILE follow
    it, `size` in all. `target`: of a symlink as it is written, of a hard link the name of an earlier FILE."""

    kind: EntryKind
    name: bytes
    mode: int = DEFAULT_MODE
    modified_ns: int = 0
    size: int = 0
    target: bytes = b""


class OpenFile(Protocol):
    """A regular file that is held open."""

    @property
    def stat(self) -> FileStat: ...

    def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        """Exactly `size` bytes from `begin`, once. A file that has become shorter meanwhile is a BackendFailure."""


Check = Callable[[FileStat | None], None]


class Files(Protocol):
    """Raises, beside what stands there: NotFound, WrongType, AccessDenied, DiskFull, InvalidRequest (a path that the
    kernel does not take), CapacityExceeded, BackendFailure; WrongState after the end of the sandbox."""

    async def stat(self, path: bytes) -> FileStat:
        """Of what the path leads to."""

    def open(self, path: bytes) -> AbstractAsyncContextManager[OpenFile]:
        """WrongType for anything but a regular file."""

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int | None = None, check: Check | None = None
    ) -> bool:
        """Replaces a file as a whole, or makes it, and its parents; True when it is new. Until the last moment, and
        when anything fails (`content` too), there is the old file or none. `mode` None: that of the file that is
        replaced, DEFAULT_MODE for a new one. `check` is told what is there, or None,
        before anything is read and again at the last moment, and raises what stops it."""

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        """At most `limit` entries behind the name `after`, in the order of their bytes."""

    async def make_directory(self, path: bytes) -> bool:
        """With parents; False when it is there."""

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        """What the path itself names: of a link the link. Conflict for a directory that is not empty, unless
        `recursive`; InvalidRequest for a path that ends with no name (`require_name`)."""

    def pack(self, path: bytes) -> AbstractAsyncContextManager[AsyncIterator[ArchiveEntry | bytes]]:
        """A tree, the root first, parents before what is in them; or one file, under its own name. Sockets, FIFOs and
        devices are left out, links are links."""

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        """Puts a tree below a directory, which is made: directories are joined, files replaced. When it fails, also in
        `content`, nothing of it is there. WrongType where a file would take the place of a directory or the reverse.
        """


def require_name(path: bytes) -> None:
    """Raises InvalidRequest for a path that ends in `.` or `..`, as rm(1) and rmdir(2) do."""
    if path.rstrip(b"/").rpartition(b"/")[2] in (b".", b".."):
        raise InvalidRequest.at("query/path", "must end with a name")


def shown(path: bytes) -> str:
    """For people: bounded, and with U+FFFD for what is not UTF-8."""
    text = path.decode(errors="replace")
    return text if len(text) <= 256 else f"{text[:255]}…"
