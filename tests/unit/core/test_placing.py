from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.core.errors import AccessDenied, BulkheadError, DiskFull, InvalidRequest
from app.core.files import ArchiveEntry, EntryKind
from app.core.placing import PlacedFile, place


class Memory:
    """`unpack` and `write` of the contract: path to mode and content. `refused`: paths at which an error is raised."""

    def __init__(self) -> None:
        self.kept: dict[bytes, tuple[int, bytes]] = {}
        self.directories: list[bytes] = []
        self.refused: dict[bytes, BulkheadError] = {}
        self.calls: list[str] = []

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        self.calls.append("unpack")
        entry: ArchiveEntry | None = None
        async for item in content:
            if isinstance(item, bytes):
                assert entry is not None
                mode, before = self.kept[path + b"/" + entry.name]
                self.kept[path + b"/" + entry.name] = (mode, before + item)
                continue
            entry = item
            name = path + b"/" + entry.name
            self._check(name)
            if entry.kind is EntryKind.DIRECTORY:
                self.directories.append(name)
            else:
                assert name.rpartition(b"/")[0] in {path, *self.directories}, "its parent comes first"
                self.kept[name] = (entry.mode, b"")

    async def write(self, path: bytes, content: AsyncIterator[bytes], *, mode: int = 0o644, check: Any = None) -> bool:
        self.calls.append("write")
        self._check(path)
        self.kept[path] = (mode, b"".join([piece async for piece in content]))
        return True

    def _check(self, path: bytes) -> None:
        if path in self.refused:
            raise self.refused[path]


async def put(*files: PlacedFile) -> Memory:
    memory = Memory()
    await (await place(files)).put(memory)  # type: ignore[arg-type]  # the part of the contract that a placement needs
    return memory


def wrong(*paths: str) -> dict[str, str]:
    """Pointer to sentence."""
    with pytest.raises(InvalidRequest) as refused:
        asyncio.run(place([PlacedFile(path, b"") for path in paths]))
    return {error.pointer: error.detail for error in refused.value.errors}


async def test_what_is_below_workspace_goes_as_one_tree_with_its_parents_and_the_rest_file_by_file() -> None:
    memory = await put(
        PlacedFile("main.py", b"print()"),
        PlacedFile("/tmp/input", b"in"),
        PlacedFile("./a//b/./c.sh", b"#!", 0o755),
        PlacedFile("/workspace/a/d", b""),
    )
    assert memory.calls == ["unpack", "write"]
    assert memory.kept == {
        b"/workspace/main.py": (0o644, b"print()"),
        b"/workspace/a/b/c.sh": (0o755, b"#!"),
        b"/workspace/a/d": (0o644, b""),
        b"/tmp/input": (0o644, b"in"),
    }
    assert memory.directories == [b"/workspace/a", b"/workspace/a/b"]


async def test_a_large_file_comes_whole() -> None:
    content = bytes(range(256)) * 1000
    memory = await put(PlacedFile("large", content), PlacedFile("/dev/shm/large", content))
    assert {found for _, found in memory.kept.values()} == {content}
    assert len(memory.kept) == 2


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "must name a file"),
        (".", "must name a file"),
        ("/", "must name a file"),
        ("/workspace", "must name a file"),
        ("a/", "must name a file"),
        ("a/.", "must name a file"),
        ("../x", "must not contain .. as a component"),
        ("a/../b", "must not contain .. as a component"),
        ("a\0b", "must not contain a NUL byte or half a surrogate pair"),
        ("a\ud800", "must not contain a NUL byte or half a surrogate pair"),
        ("é" * 128, "is too long: the kernel takes 255 bytes for a name and 4095 for the whole path"),
        ("/".join(["a" * 200] * 21), "is too long: the kernel takes 255 bytes for a name and 4095 for the whole path"),
        ("a/" * 64 + "b", "is below more than 64 directories"),
    ],
)
def test_a_path_that_names_no_file_is_refused_before_anything_is_begun(path: str, sentence: str) -> None:
    assert wrong("fine", path) == {"/files/1/path": sentence}


def test_every_wrong_path_is_named() -> None:
    assert list(wrong("", "fine", "..")) == ["/files/0/path", "/files/2/path"]


def test_two_files_cannot_have_one_place() -> None:
    assert wrong("a", "./a", "/workspace/a") == {
        "/files/1/path": "names the same file as /files/0",
        "/files/2/path": "names the same file as /files/0",
    }
    assert wrong("a", "a/b") == {"/files/1/path": "needs a directory where /files/0 is a file"}
    assert wrong("a/b/c", "a/b") == {"/files/1/path": "is a directory in the path of another file of the list"}


async def test_an_error_on_the_way_names_its_file() -> None:
    memory = Memory()
    memory.refused[b"/workspace/b"] = DiskFull(4096)
    files = [PlacedFile("a", b""), PlacedFile("/etc/x", b""), PlacedFile("b", b"")]
    with pytest.raises(DiskFull, match=r"^/files/2: the sandbox's disk of 4096 bytes") as full:
        await (await place(files)).put(memory)  # type: ignore[arg-type]  # as above
    assert full.value.limit == 4096
    memory.refused = {b"/etc/x": AccessDenied("no")}
    with pytest.raises(AccessDenied, match=r"^/files/1: no$"):
        await (await place(files)).put(memory)  # type: ignore[arg-type]  # as above
    memory.refused = {b"/etc/x": InvalidRequest.at("query/path", "is odd")}
    with pytest.raises(InvalidRequest) as refused:
        await (await place(files)).put(memory)  # type: ignore[arg-type]  # as above
    assert [(e.pointer, e.detail) for e in refused.value.errors] == [("/files/1/path", "is odd")]
