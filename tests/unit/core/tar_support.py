"""Trees, and the archives of them that other programs make."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from app.core import tar
from app.core.archive import checked_names
from app.core.files import ArchiveEntry, EntryKind

Item = ArchiveEntry | bytes
T = TypeVar("T")
_RUNNER = asyncio.Runner()
atexit.register(_RUNNER.close)


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def collect(items: AsyncIterator[T]) -> list[T]:
    """On one loop for all: there are thousands of examples."""

    async def all_of_them() -> list[T]:
        return [item async for item in items]

    return driven(all_of_them())


def driven(work: Coroutine[Any, Any, T]) -> T:
    return _RUNNER.run(work)


def file(name: bytes, content: bytes = b"", mode: int = 0o644, modified_ns: int = 0) -> list[Item]:
    entry = ArchiveEntry(EntryKind.FILE, name, mode, modified_ns, len(content))
    return [entry, content] if content else [entry]


def directory(name: bytes, mode: int = 0o755, modified_ns: int = 0) -> list[Item]:
    return [ArchiveEntry(EntryKind.DIRECTORY, name, mode, modified_ns)]


def symlink(name: bytes, target: bytes) -> list[Item]:
    return [ArchiveEntry(EntryKind.SYMLINK, name, 0o777, target=target)]


def hard_link(name: bytes, target: bytes) -> list[Item]:
    return [ArchiveEntry(EntryKind.HARD_LINK, name, target=target)]


def written(items: Iterable[Item], form: tar.TarForm = tar.TarForm.PAX) -> bytes:
    return b"".join(collect(tar.archive(each(items), form)))


def joined(items: Iterable[Item]) -> list[Item]:
    """With each file's content in one piece."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, bytes) and found and isinstance(last := found[-1], bytes):
            found[-1] = last + item
        else:
            found.append(item)
    return found


def read(archive: bytes, sizes: Sequence[int] = ()) -> list[Item]:
    """In chunks of these sizes, one after the other; the rest is one."""
    chunks = []
    at = 0
    for size in sizes:
        chunks.append(archive[at : at + size])
        at += size
    return joined(collect(tar.entries(each([*chunks, archive[at:]]))))


def guard(items: Iterable[Item]) -> list[Item]:
    return collect(checked_names(each(items)))
