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
        """The name with its article, for sentences."""
        words = {FileKind.FILE: "regular file", FileKind.SYMLINK: "symbolic link", FileKind.FIFO: "FIFO"}
        return f"a {words.get(self, self.value.replace('_', ' '))}"


@dataclass(frozen=True, slots=True)
class FileStat:
    """The facts of a file: size in bytes, mode as in chmod(1), and the time of the last change of the content in
    nanoseconds since 1970."""

    kind: FileKind
    size: int
    mode: int
    modified_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """`stat` is that of the entry itself: links are not followed. `target`: the target of a link, as it is written."""

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
    it, `size` in all. `target`: for a symlink its target as written, for a hard link the name of an earlier FILE."""

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
        """Yields exactly `size` bytes from `begin`, once. Raises BackendFailure if the file became shorter
        meanwhile."""


Check = Callable[[FileStat | None], None]


class Files(Protocol):
    """Every method may also raise NotFound, WrongType, AccessDenied, DiskFull, InvalidRequest (a path that the kernel
    does not take), CapacityExceeded, BackendFailure, and WrongState after the end of the sandbox."""

    async def stat(self, path: bytes) -> FileStat:
        """The facts of what the path leads to."""

    def open(self, path: bytes) -> AbstractAsyncContextManager[OpenFile]:
        """Opens a regular file. Raises WrongType for anything else."""

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int | None = None, check: Check | None = None
    ) -> bool:
        """Replaces a file as a whole, or makes it and its parents. Returns True when it is new. Until the last moment,
        and when anything fails (`content` too), the old file stays, or none. With `mode` None a file keeps its mode,
        and a new one gets DEFAULT_MODE. `check` gets the facts of the file that is there, or None, before anything is
        read and again at the last moment. It raises to stop the replacement."""

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        """Returns at most `limit` entries behind the name `after`, in the order of their bytes."""

    async def make_directory(self, path: bytes) -> bool:
        """Makes a directory and its parents. Returns False when it exists."""

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        """Deletes what the path itself names: a link and not its target. Raises Conflict for a directory that is not
        empty, unless `recursive`. Raises InvalidRequest for a path that does not end with a name (`require_name`)."""

    def pack(self, path: bytes) -> AbstractAsyncContextManager[AsyncIterator[ArchiveEntry | bytes]]:
        """Yields a tree, the root first and parents before their content, or one file under its own name. Sockets,
        FIFOs and devices are left out. Links are links."""

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        """Puts a tree below a directory, which is made. Directories are joined, files are replaced. When it fails, also
        in `content`, nothing of the tree is left. Raises WrongType where a file would take the place of a directory or
        the reverse.
        """


def require_name(path: bytes) -> None:
    """Raises InvalidRequest for a path that ends in `.` or `..`, as rm(1) and rmdir(2) do."""
    if path.rstrip(b"/").rpartition(b"/")[2] in (b".", b".."):
        raise InvalidRequest.at("query/path", "must end with a name")


def shown(path: bytes) -> str:
    """The path for people: bounded, and with U+FFFD for what is not UTF-8."""
    text = path.decode(errors="replace")
    return text if len(text) <= 256 else f"{text[:255]}…"
