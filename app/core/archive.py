"""Checks the names of an archive from outside, so that unpacking it can only make files below its root.

It looks at names alone and asks no file system. So it holds for every runtime, whoever unpacks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.core.errors import InvalidArchive
from app.core.files import MODE_BITS, ArchiveEntry, EntryKind, shown

LONGEST_NAME = 4095 - 64  # bytes: the kernel's longest path, less what a runtime puts before it
LONGEST_PART = 255
LONGEST_TARGET = 4095
MOST_NAMES = 100_000
MOST_NAME_BYTES = 16 * 1024 * 1024  # with the objects around them, 30 MiB for the worst archive
_SET_ID = 0o6000


def clean(name: bytes) -> bytes:
    """
    >>> clean(b"./a//b/."), clean(b"./")
    (b'a/b', b'')

    Raises ValueError with the reason for a name that does not lead below a root.
    """
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name is longer than {LONGEST_NAME} bytes")
    if b"\0" in name:
        raise ValueError("a name cannot hold a zero byte")
    if name.startswith(b"/"):
        raise ValueError("a name must not be absolute")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError("a name must not hold '..'")
    if max(map(len, parts), default=0) > LONGEST_PART:
        raise ValueError(f"a part of the name is longer than {LONGEST_PART} bytes")
    return b"/".join(parts)


def require_target(target: bytes) -> None:
    """Raises ValueError for a target that no symlink can have."""
    if not target or b"\0" in target or len(target) > LONGEST_TARGET:
        raise ValueError(f"the target of a link has 1 to {LONGEST_TARGET} bytes, none of them zero")


def _require_inside(name: bytes, target: bytes) -> None:
    """Raises ValueError for a symlink that could lead out of the tree. On its way down it passes directories, or links
    that were checked in the same way. After a link a `..` leads elsewhere than it seems, so `..` may only come first.
    """
    require_target(target)
    if target.startswith(b"/"):
        raise ValueError("the link leads to an absolute path")
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    up = 0
    while up < len(parts) and parts[up] == b"..":
        up += 1
    if up > name.count(b"/"):
        raise ValueError("the link leads out of the tree")
    if b".." in parts[up:]:
        raise ValueError("the target of the link has '..' after another part")


class _Tree:
    """What an archive has named so far. A name never changes its kind, so what is below a directory stays there."""

    def __init__(self) -> None:
        self._kinds = {b"": EntryKind.DIRECTORY}
        self._bytes = 0

    def accept(self, entry: ArchiveEntry) -> ArchiveEntry:
        """Returns the entry with clean names. Raises ValueError."""
        name, target = clean(entry.name), entry.target
        if entry.kind is not EntryKind.DIRECTORY and entry.name.endswith((b"/", b"/.")):
            raise ValueError(f"a {_words(entry.kind)} must not have a directory's name")
        if entry.mode & _SET_ID:
            raise ValueError("the entry has the setuid or setgid bit")
        if entry.kind is EntryKind.SYMLINK:
            _require_inside(name, target)
        elif entry.kind is EntryKind.HARD_LINK:
            target = clean(target)
            if self._kinds.get(target) is not EntryKind.FILE:
                raise ValueError("the hard link does not lead to an earlier file of the archive")
        self._add(name, entry.kind)
        if (name, target, entry.mode & ~MODE_BITS) == (entry.name, entry.target, 0):
            return entry
        return ArchiveEntry(entry.kind, name, entry.mode & MODE_BITS, entry.modified_ns, entry.size, target)

    def _add(self, name: bytes, kind: EntryKind) -> None:
        known = self._kinds.get(name)
        if known is None:
            self._remember(name, kind)
        elif known is not kind:
            raise ValueError(f"a {_words(kind)} would replace a {_words(known)} of the same archive")

    def _remember(self, name: bytes, kind: EntryKind) -> None:
        """Remembers a name and the directories above it, up to the first that is known. So each is checked once."""
        while True:
            self._kinds[name] = kind
            self._bytes += len(name)
            if len(self._kinds) > MOST_NAMES or self._bytes > MOST_NAME_BYTES:
                raise ValueError(
                    f"with this entry the archive has more than {MOST_NAMES} names or {MOST_NAME_BYTES} bytes of names"
                )
            name, kind = name.rpartition(b"/")[0], EntryKind.DIRECTORY
            known = self._kinds.get(name)
            if known is EntryKind.DIRECTORY:
                return
            if known is not None:
                raise ValueError(f"the entry is below a {_words(known)} of the same archive")


def _words(kind: EntryKind) -> str:
    return kind.replace("_", " ")


async def checked_names(items: AsyncIterator[ArchiveEntry | bytes]) -> AsyncIterator[ArchiveEntry | bytes]:
    """Yields the same entries, with clean names and without the sticky bit. Raises InvalidArchive for the first entry
    that is refused: an absolute name, `..` in a name, a link that leads out of the tree, an entry below something that
    is not a directory, a hard link to anything but an earlier file, two kinds for one name, setuid, setgid, too many
    names."""
    tree = _Tree()
    async for item in items:
        if isinstance(item, bytes):
            yield item
            continue
        try:
            entry = tree.accept(item)
        except ValueError as error:
            raise InvalidArchive(shown(item.name), str(error)) from None
        yield entry
