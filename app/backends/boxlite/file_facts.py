"""Parses strictly what a box's programs say about files: a box can make them say anything."""

from __future__ import annotations

import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.backends.boxlite.client import shown as plain
from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BulkheadError,
    Conflict,
    DiskFull,
    InvalidRequest,
    NotFound,
    WrongType,
)
from app.core.files import FileKind, FileStat, shown

WORKSPACE = b"/workspace"
PATH_BYTES = 4096  # PATH_MAX, with its NUL
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER_DEVICE,
    stat.S_IFBLK: FileKind.BLOCK_DEVICE,
}
_LARGEST = 1 << 63
_OURS = re.compile(rb"(?:^|/)\.bulkhead-[0-9a-f]{16}(?:/|$)")
# As `file_scripts.FACTS` has them; the last part is a date with a fraction, and only the fraction is of use.
_FACTS = rb"([0-9a-f]{1,8}) (\d{1,19}) (-?\d{1,19}) (\d{1,20}) [^/]{0,40}?(?:\.(\d{9}))?(?: [+-]\d{4})?"
_LINE = re.compile(_FACTS)
_RECORD = re.compile(_FACTS + rb" (\d{1,20})\.(\d{1,20}) \./(.{1,4096})", re.DOTALL)
_UNSAFE = re.compile(rb"[^A-Za-z0-9/._-]")


def name_of_ours() -> str:
    """A name for a file that is not yet in its place."""
    return f".bulkhead-{secrets.token_hex(8)}"


def is_ours(path: bytes) -> bool:
    """Whether a path is such a name, or is below one."""
    return _OURS.search(path) is not None


def absolute(path: bytes) -> bytes:
    """Raises InvalidRequest."""
    if b"\0" in path or not path:
        raise InvalidRequest.at("query/path", "must not be empty and must not contain a NUL byte")
    whole = path if path.startswith(b"/") else WORKSPACE + b"/" + path
    if len(whole) >= PATH_BYTES:
        raise InvalidRequest.at("query/path", f"must be shorter than {PATH_BYTES} bytes")
    return whole


def escaped(path: bytes) -> str:
    """Escapes bytes for printf's %b: the server takes text only, and a shell must see only letters."""
    return _UNSAFE.sub(lambda found: b"\\0%03o" % found[0][0], path).decode()


def facts_of(line: bytes) -> FileStat:
    found = _LINE.fullmatch(line)
    if found is None:
        raise malformed()
    return _stat(found)


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One file of a tree. `links` is how many names it has. `device` and inode together identify a file."""

    name: bytes
    stat: FileStat
    links: int
    device: int


def node_of(record: bytes) -> TreeNode:
    found = _RECORD.fullmatch(record)
    if found is None:
        raise malformed()
    return TreeNode(found[8], _stat(found), int(found[6]), int(found[7]))


def _stat(found: re.Match[bytes]) -> FileStat:
    raw, size, seconds, inode = int(found[1], 16), int(found[2]), int(found[3]), int(found[4])
    kind = _KINDS.get(stat.S_IFMT(raw))
    modified_ns = seconds * 1_000_000_000 + int(found[5] or 0)
    if kind is None or max(size, inode >> 1, abs(modified_ns)) >= _LARGEST:
        raise malformed()
    return FileStat(kind, size, stat.S_IMODE(raw), modified_ns, inode)


def malformed() -> BackendFailure:
    return BackendFailure("the box's programs gave an answer that makes no sense")


def existing(line: bytes, path: bytes) -> FileStat:
    """Parses the answer of `look` of a script. Raises NotFound."""
    if line == b"none":
        raise NotFound("file", shown(path))
    word, _, facts = line.partition(b" ")
    if word != b"is":
        raise malformed()
    return facts_of(facts)


def only(kind: FileKind, stat: FileStat, path: bytes) -> FileStat:
    """Raises WrongType."""
    if stat.kind is not kind:
        raise WrongType(stat.kind.value, f"{shown(path)} is {stat.kind.noun}; {kind.noun} is needed here")
    return stat


# The ends of the sentences of strerror(3), as glibc and musl word them, and what they mean for a client.
_MEANINGS: list[tuple[tuple[str, ...], Callable[[str, int], BulkheadError]]] = [
    (("No such file or directory", "No such file"), lambda name, _: NotFound("file", name)),
    (
        ("Permission denied", "Operation not permitted", "Read-only file system", "Device or resource busy"),
        lambda name, _: AccessDenied(f"the sandbox may not do this with {name}"),
    ),
    (
        ("No space left on device", "Disk quota exceeded", "Quota exceeded"),
        lambda _, disk_bytes: DiskFull(disk_bytes),
    ),
    (
        ("File name too long", "Too many levels of symbolic links", "Symbolic link loop", "Invalid argument"),
        lambda name, _: InvalidRequest.at("query/path", f"the kernel refuses {name} as a path"),
    ),
    (("Directory not empty",), lambda name, _: Conflict(f"{name} is not empty")),
    (("Not a directory", "File exists"), lambda name, _: WrongType("file", f"a part of {name} is not a directory")),
    (("s a directory", "with non-directory"), lambda name, _: WrongType("directory", f"{name} is a directory")),
]


def failure(said: bytes, path: bytes, disk_bytes: int) -> BulkheadError:
    """Turns the message of a program into an error. `path` is what was asked for."""
    lines = said.decode(errors="replace").splitlines()
    for line in lines:
        for ends, meaning in _MEANINGS:
            if line.casefold().endswith(tuple(end.casefold() for end in ends)):
                return meaning(shown(path), disk_bytes)
    last = plain(lines[-1]) if lines else "nothing"
    return BackendFailure(f"a program of the box failed: {last}")


def records(data: bytes, token: bytes) -> Iterator[bytes]:
    """Yields the text behind each `token`, up to the newline before the next token or the last newline."""
    if data and not (data.startswith(token) and data.endswith(b"\n")):
        raise malformed()
    yield from data[len(token) : -1].split(b"\n" + token) if data else ()
