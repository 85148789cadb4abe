"""Puts the files of a run into its sandbox. The list is checked before anything is begun."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.core.errors import BulkheadError, FieldError, InvalidRequest
from app.core.files import DEFAULT_MODE, ArchiveEntry, EntryKind, Files
from app.core.output import CHUNK
from app.core.text import byte_length
from app.core.timeslices import TimeSlices

WORKSPACE = "workspace"
DEPTH = 64  # directories of one path: what a list costs to check and to make is bounded by it
NAME_BYTES, PATH_BYTES = 255, 4095  # path_resolution(7)
DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """`path` is absolute or relative to /workspace. Its parents are made. `mode` is as in chmod(1)."""

    path: str
    content: bytes
    mode: int = DEFAULT_MODE


@dataclass(frozen=True, slots=True)
class _Item:
    pointer: str
    parts: tuple[str, ...]
    file: PlacedFile


async def place(files: Sequence[PlacedFile]) -> Placement:
    """Raises InvalidRequest, which names every wrong file as /files/N."""
    errors: list[FieldError] = []
    items: list[_Item] = []
    tree: dict[str, Any] = {}
    slices = TimeSlices.of_loop()
    for number, file in enumerate(files):
        if slices.over:
            await slices.next()
        pointer = f"/files/{number}"
        parts, wrong = _parts(file.path)
        wrong = wrong or _clash(tree, parts, pointer)
        if wrong:
            errors.append(FieldError(f"{pointer}/path", wrong))
        else:
            items.append(_Item(pointer, parts, file))
    if errors:
        raise InvalidRequest(errors)
    return Placement(items)


def _parts(path: str) -> tuple[tuple[str, ...], str]:
    """Returns the components below /, and what is wrong with the path, or nothing."""
    whole = path if path.startswith("/") else f"/{WORKSPACE}/{path}"
    parts = tuple(part for part in whole.split("/") if part not in {"", "."})
    size = byte_length(whole)
    if size is None or "\0" in path:
        return (), "must not contain a NUL byte or half a surrogate pair"
    if ".." in parts:
        return (), "must not contain .. as a component"
    if path.endswith(("/", "/.")) or not path or path == "." or parts in {(), (WORKSPACE,)}:
        return (), "must name a file"
    if size > PATH_BYTES or any(len(part.encode()) > NAME_BYTES for part in parts):
        return (), f"is too long: the kernel takes {NAME_BYTES} bytes for a name and {PATH_BYTES} for the whole path"
    if len(parts) > DEPTH:
        return (), f"is below more than {DEPTH} directories"
    return parts, ""


def _clash(tree: dict[str, Any], parts: tuple[str, ...], pointer: str) -> str:
    """Enters a path into the tree of all: directories are dicts, a file is its pointer."""
    node: Any = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            return f"needs a directory where {node} is a file"
    there = node.setdefault(parts[-1], pointer)
    if isinstance(there, dict):
        return "is a directory in the path of another file of the list"
    return "" if there == pointer else f"names the same file as {there}"


class Placement:
    """Files below /workspace go in as one tree, in one operation. The rest goes in file by file."""

    def __init__(self, items: Sequence[_Item]) -> None:
        self._tree = [item for item in items if item.parts[0] == WORKSPACE]
        self._others = [item for item in items if item.parts[0] != WORKSPACE]
        self._at = ""

    @property
    def empty(self) -> bool:
        return not self._tree and not self._others

    async def put(self, files: Files) -> None:
        """Raises what `Files` raises. The sentence begins with the pointer of the file at which it happened."""
        with self._pointing():
            if self._tree:
                await files.unpack(f"/{WORKSPACE}".encode(), self._entries())
            for item in self._others:
                self._at = item.pointer
                path = f"/{'/'.join(item.parts)}".encode()
                await files.write(path, _pieces(item.file.content), mode=item.file.mode)

    @contextmanager
    def _pointing(self) -> Iterator[None]:
        try:
            yield
        except InvalidRequest as error:
            raise InvalidRequest([FieldError(f"{self._at}/path", found.detail) for found in error.errors]) from error
        except BulkheadError as error:
            error.args = (f"{self._at}: {error}",)
            raise

    async def _entries(self) -> AsyncIterator[ArchiveEntry | bytes]:
        now = time.time_ns()
        made: set[bytes] = set()
        for item in self._tree:
            self._at = item.pointer
            for depth in range(2, len(item.parts)):
                parent = "/".join(item.parts[1:depth]).encode()
                if parent not in made:
                    made.add(parent)
                    yield ArchiveEntry(EntryKind.DIRECTORY, parent, DIRECTORY_MODE, now)
            name, content = "/".join(item.parts[1:]).encode(), item.file.content
            yield ArchiveEntry(EntryKind.FILE, name, item.file.mode, now, len(content))
            async for piece in _pieces(content):
                yield piece


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), CHUNK):
        yield content[begin : begin + CHUNK]
