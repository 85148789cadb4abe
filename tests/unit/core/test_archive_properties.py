"""Whatever an archive says: what the guard lets pass stays below the root, on a real file system and with the most
trusting program there could be. It follows every link that it meets, as the guard's promise is about names alone."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import InvalidArchive
from app.core.files import EntryKind
from tests.unit.core.tar_support import Item, directory, file, guard, hard_link, read, symlink, written

SECRET = b"not for the archive"


class Place:
    """A root for archives, and things around it that must stay as they are."""

    def __init__(self, outside: Path) -> None:
        self._outside = outside
        self.root = outside.joinpath("r", "r", "r")  # a few `..` must not lead to nothing
        self.root.mkdir(parents=True)
        for folder in self.root.parents[: len(self.root.relative_to(outside).parts)]:
            (folder / "a").mkdir()
            for name in ("b", "c", "a/b"):
                (folder / name).write_bytes(SECRET)
        self._before = self._around()

    def _around(self) -> list[tuple[object, ...]]:
        """All that is outside of the root, with the numbers of links: a hard link to it would change those."""
        found: list[tuple[object, ...]] = []
        for folder, folders, names in os.walk(self._outside):
            if Path(folder) == self.root:
                folders.clear()
                continue
            for path in [Path(folder, name) for name in sorted(names)]:
                found.append((path, path.lstat().st_mode, path.lstat().st_nlink, path.read_bytes()))
            found.append((folder, Path(folder).lstat().st_mode, tuple(sorted(folders))))
        return sorted(found, key=str)

    def is_as_before(self) -> bool:
        return self._around() == self._before

    def unpack(self, items: list[Item]) -> None:
        """By names, with links followed, one after the other. Raises OSError."""
        for position, item in enumerate(items):
            if isinstance(item, bytes):
                continue
            path = self.root / os.fsdecode(item.name)
            if item.kind is EntryKind.DIRECTORY:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if item.kind is EntryKind.FILE:
                content = items[position + 1] if item.size else b""
                assert isinstance(content, bytes)
                path.write_bytes(content)
                continue
            path.unlink(missing_ok=True)
            if item.kind is EntryKind.SYMLINK:
                path.symlink_to(os.fsdecode(item.target))
            else:
                os.link(self.root / os.fsdecode(item.target), path)

    def leads_out(self) -> list[str]:
        """Whatever in the root is, or leads to, something outside."""
        paths = [Path(folder, name) for folder, folders, names in os.walk(self.root) for name in folders + names]
        return [str(path) for path in paths if not _is_circle(path) and self._is_outside(path)]

    def _is_outside(self, path: Path) -> bool:
        return not Path(os.path.realpath(path)).is_relative_to(self.root)

    def clear(self) -> None:
        shutil.rmtree(self.root)
        self.root.mkdir()


def _is_circle(path: Path) -> bool:
    """It leads nowhere. Of `a` with the target `a//a` realpath says `/a`: it takes what is left for absolute."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


@contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="bulkhead-") as outside:
        yield Place(Path(outside).resolve())


# Few names, so that entries meet; and all that a name can be made of to get out.
CLEAN = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join)
NAMES = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"..\\a"]), min_size=1, max_size=4).map(b"/".join)
MOSTLY_CLEAN = st.one_of(CLEAN, CLEAN, CLEAN, NAMES)
UP = st.sampled_from([b"", b"/", b"../", b"../../", b"../../../", b"./", b"a/../", b"a/../../"])
TARGETS = st.tuples(UP, st.one_of(CLEAN, NAMES, st.just(b""))).map(b"".join)
LINKS = st.builds(symlink, MOSTLY_CLEAN, TARGETS)
ENTRIES = st.one_of(
    LINKS,
    LINKS,
    MOSTLY_CLEAN.map(lambda name: file(name, b"from the archive")),
    MOSTLY_CLEAN.map(directory),
    st.builds(hard_link, MOSTLY_CLEAN, MOSTLY_CLEAN),
)
ARCHIVES = st.lists(ENTRIES, max_size=8)

ATTACKS: dict[str, list[Item]] = {
    "by name": file(b"../c", b"x"),
    "through a link": [*symlink(b"a", b".."), *file(b"a/c", b"x")],
    "through two links": [*symlink(b"a", b"b"), *symlink(b"b", b".."), *file(b"a/c", b"x")],
    "into a file by a link": [*symlink(b"a", b"../b"), *file(b"a", b"x")],
    "by a link in a linked folder": [
        *directory(b"b/c"),
        *symlink(b"a", b"b/c"),
        *symlink(b"b/c/d", b"../../.."),
        *file(b"a/d/c", b"x"),
    ],
    "by a link to a deep place": [
        *directory(b"b/c"),
        *symlink(b"d", b"b/c"),
        *symlink(b"e", b"b/../../c"),
        *file(b"e", b"x"),
    ],
    "by a hard link": [*hard_link(b"a", b"../b"), *file(b"a", b"x")],
    "by a hard link through a link": [*symlink(b"a", b".."), *hard_link(b"d", b"a/b"), *file(b"d", b"x")],
}


@pytest.mark.parametrize("case", ATTACKS)
def test_attacks_work_without_the_guard_and_not_with_it(case: str) -> None:
    with place() as here:
        here.unpack(ATTACKS[case])
        assert not here.is_as_before()
    with pytest.raises(InvalidArchive):
        guard(ATTACKS[case])


def passed(entries: list[list[Item]]) -> list[Item]:
    """What comes through of them, without those that are refused: so that much can meet."""
    found: list[Item] = []
    for entry in entries:
        with suppress(InvalidArchive):
            found = guard([*found, *entry])
    return found


def test_what_passes_stays_below_the_root() -> None:
    with place() as here:

        @settings(max_examples=200)
        @given(ARCHIVES)
        def holds(entries: list[list[Item]]) -> None:
            here.clear()
            here.unpack(passed(entries))  # without an OSError: what passes can be made
            assert here.is_as_before()
            assert not here.leads_out()

        holds()


@given(ARCHIVES)
def test_what_passed_passes_again_as_it_is(entries: list[list[Item]]) -> None:
    once = passed(entries)
    assert guard(once) == once


@st.composite
def honest_trees(draw: st.DrawFn) -> dict[bytes, bytes | None]:
    """Folders (None) and files by name, as a file system can have them."""
    tree: dict[bytes, bytes | None] = {}
    for name in draw(st.lists(CLEAN, max_size=12)):
        parts = name.split(b"/")
        parents = [b"/".join(parts[:end]) for end in range(1, len(parts))]
        if name not in tree and all(tree.get(parent) is None for parent in parents):
            tree |= dict.fromkeys(parents)
            tree[name] = draw(st.one_of(st.none(), st.binary(max_size=3)))
    return tree


@given(honest_trees(), st.randoms())
def test_honest_trees_pass_in_any_order(tree: dict[bytes, bytes | None], random: Random) -> None:
    entries = [directory(name) if content is None else file(name, content) for name, content in tree.items()]
    random.shuffle(entries)
    items = [item for entry in entries for item in entry]
    assert guard(read(written(items))) == items
