"""The guard before what unpacks: by names, what could leave the tree, and what is harmless."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from app.core.archive import LONGEST_NAME, MOST_NAME_BYTES, MOST_NAMES, clean
from app.core.errors import InvalidArchive
from app.core.files import ArchiveEntry, EntryKind
from tests.processor_time import cost
from tests.unit.core.tar_support import Item, directory, file, guard, hard_link, symlink

NAMES = {
    b"a": b"a",
    b"./a": b"a",
    b"./a//b/": b"a/b",
    b"a/./b": b"a/b",
    b"a/.": b"a",
    b".": b"",
    b"": b"",
    b"./": b"",
    b".//.": b"",
    b"...": b"...",
    b"..a/b..": b"..a/b..",
    b"-rf *": b"-rf *",
    b"C:\\..\\b": b"C:\\..\\b",  # on Linux one name
    b"\xff\xfe\n": b"\xff\xfe\n",
    b"x" * 255: b"x" * 255,
    b"x/" * 2000 + b"x" * 31: b"x/" * 2000 + b"x" * 31,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_made_clean(name: bytes) -> None:
    assert clean(name) == NAMES[name]
    assert guard(directory(name)) == directory(NAMES[name])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"/", "absolute"),
        (b"/a", "absolute"),
        (b"//a", "absolute"),
        (b"..", r"'\.\.'"),
        (b"../a", r"'\.\.'"),
        (b"a/..", r"'\.\.'"),
        (b"a/../b", r"'\.\.'"),
        (b"./a/.././../b", r"'\.\.'"),
        (b"a\0b", "zero byte"),
        (b"x" * 256, "longer than 255"),
        (b"x/" * 2000 + b"x" * 32, f"longer than {LONGEST_NAME}"),
    ],
)
@pytest.mark.parametrize(
    "make", [file, directory, lambda name: symlink(name, b"a"), lambda name: hard_link(name, b"f")]
)
def test_names_that_are_refused(make: object, name: bytes, why: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArchive, match=why):
        guard([*file(b"f"), *make(name)])


HARMLESS: dict[str, list[Item]] = {
    "an ordinary tree": [
        *directory(b""),
        *directory(b"a"),
        *file(b"a/f", b"content"),
        *symlink(b"a/l", b"f"),
        *hard_link(b"h", b"a/f"),
    ],
    "parents that are only meant": [*file(b"a/b/c/f"), *file(b"a/b/g"), *directory(b"a/b")],
    "links in the tree": [
        *symlink(b"a/b/c", b"../../other"),
        *symlink(b"a/d", b"../a/b/c"),
        *symlink(b"here", b"."),
        *symlink(b"a/up", b".."),
        *symlink(b"a/far", b"./.././a//b/"),
        *symlink(b"dangling", b"nowhere/at/all"),
    ],
    "a link to itself": symlink(b"a", b"a"),
    "links in a ring": [*symlink(b"a", b"b"), *symlink(b"b", b"a")],
    "a file twice": [*file(b"a", b"old"), *file(b"a", b"new")],
    "a directory twice": [*directory(b"a", 0o700), *directory(b"a", 0o755)],
    "a symlink twice": [*symlink(b"a", b"b"), *symlink(b"a", b"c")],
    "two hard links": [*file(b"a"), *hard_link(b"b", b"a"), *hard_link(b"c", b"a")],
    "upper and lower case": [*file(b"a"), *symlink(b"A", b"a"), *directory(b"B"), *file(b"b")],
    "a name that another begins with": [*file(b"a"), *file(b"ab/c"), *symlink(b"s", b"a"), *file(b"sx/f")],
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_harmless_passes_as_it_is(case: str) -> None:
    assert guard(HARMLESS[case]) == HARMLESS[case]


REFUSED: dict[str, tuple[list[Item], str]] = {
    "a link to an absolute path": (symlink(b"a", b"/etc"), "absolute"),
    "a link to the parent": (symlink(b"a", b".."), "leads out"),
    "a link out of a folder": (symlink(b"a/b", b"../../x"), "leads out"),
    "with dots between": (symlink(b"a/b", b".././..//x"), "leads out"),
    "a name with more slashes than parts": (symlink(b".//a", b"../x"), "leads out"),
    "up behind a part": (symlink(b"a/b/c", b"x/../y"), "after another part"),
    "up behind a link": ([*symlink(b"d/a", b"../e"), *symlink(b"d/b", b"a/../..")], "after another part"),
    "an empty target": (symlink(b"a", b""), "1 to 4095 bytes"),
    "a zero byte in the target": (symlink(b"a", b"b\0/../.."), "none of them zero"),
    "a target too long": (symlink(b"a", b"x" * 4096), "1 to 4095 bytes"),
    "a file below a link": ([*symlink(b"a", b"b"), *file(b"a/x")], "below a symlink"),
    "a file far below a link": ([*symlink(b"a", b"."), *file(b"a/b/c/x")], "below a symlink"),
    "a directory below a link": ([*symlink(b"a", b"b"), *directory(b"./a//b/")], "below a symlink"),
    "a link below a link": ([*symlink(b"a", b"."), *symlink(b"a/b", b"..")], "below a symlink"),
    "a hard link below a link": ([*file(b"f"), *symlink(b"a", b"."), *hard_link(b"a/b", b"f")], "below a symlink"),
    "below a file": ([*file(b"a"), *file(b"a/b")], "below a file"),
    "below a hard link": ([*file(b"f"), *hard_link(b"a", b"f"), *file(b"a/b")], "below a hard link"),
    "a directory replaced by a link": ([*directory(b"a"), *symlink(b"a", b"b")], "would replace a directory"),
    "a directory that is only meant": ([*file(b"a/b"), *symlink(b"a", b"c")], "would replace a directory"),
    "a link replaced by a directory": ([*symlink(b"a", b"b"), *directory(b"a/")], "would replace a symlink"),
    "a link replaced by a file": ([*symlink(b"a", b"b"), *file(b"a")], "would replace a symlink"),
    "a file replaced by a link": ([*file(b"a"), *symlink(b"a", b"b")], "would replace a file"),
    "the root as a file": (file(b"."), "would replace a directory|a directory's name"),
    "a file for a root": (file(b""), "would replace a directory"),
    "the root as a link": ([*directory(b"."), *symlink(b"./.", b"x")], "directory"),
    "a file with a slash": (file(b"a/"), "a directory's name"),
    "a file with a dot": (file(b"a/."), "a directory's name"),
    "a link with a slash": (symlink(b"a/", b"b"), "a directory's name"),
    "a hard link to nothing": (hard_link(b"a", b"b"), "an earlier file"),
    "a hard link to what comes later": ([*hard_link(b"a", b"b"), *file(b"b")], "an earlier file"),
    "a hard link to a directory": ([*directory(b"a"), *hard_link(b"b", b"a")], "an earlier file"),
    "a hard link to the root": (hard_link(b"b", b"./"), "an earlier file"),
    "a hard link to a link": ([*symlink(b"a", b"b"), *hard_link(b"b", b"a")], "an earlier file"),
    "a hard link to a hard link": ([*file(b"a"), *hard_link(b"b", b"a"), *hard_link(b"c", b"b")], "an earlier file"),
    "a hard link to itself": ([*file(b"a"), *hard_link(b"a", b"a")], "would replace a file"),
    "a hard link upwards": (hard_link(b"a", b"../b"), r"'\.\.'"),
    "a hard link to an absolute path": (hard_link(b"a", b"/etc/passwd"), "absolute"),
    "a hard link to no name": (hard_link(b"a", b""), "an earlier file"),
    "setuid": (file(b"a", mode=0o4755), "setuid"),
    "setgid": (directory(b"a", mode=0o2755), "setgid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_hostile_is_refused_by_name(case: str) -> None:
    items, why = REFUSED[case]
    with pytest.raises(InvalidArchive, match=why) as refusal:
        guard([*directory(b"before"), *items, *file(b"after")])
    last = [item for item in items if isinstance(item, ArchiveEntry)][-1]
    if case != "a hard link to what comes later":
        assert refusal.value.entry == last.name.decode()


def test_names_in_and_out_are_the_same_tree() -> None:
    items = [*directory(b"./"), *file(b"./a//f", b"1"), *hard_link(b"./b", b".//a/f"), *directory(b"s", 0o1777)]
    assert guard(items) == [*directory(b""), *file(b"a/f", b"1"), *hard_link(b"b", b"a/f"), *directory(b"s", 0o777)]


def test_the_refusal_comes_before_what_follows() -> None:
    """Nobody asks for the content of an entry that is refused."""
    asked = []

    def items() -> Iterator[Item]:
        for item in [*file(b"a", b"1"), *file(b"../b", b"2"), *file(b"c", b"3")]:
            asked.append(item)
            yield item

    with pytest.raises(InvalidArchive):
        guard(items())
    assert len(asked) == 3


def test_the_number_of_names_is_bounded() -> None:
    most = MOST_NAMES - 2  # the root and "d" are names too
    many = [ArchiveEntry(EntryKind.FILE, b"d/%d" % number) for number in range(most + 1)]
    assert len(guard(many[:most])) == most
    with pytest.raises(InvalidArchive, match=f"more than {MOST_NAMES} names") as refusal:
        guard(many)
    assert refusal.value.entry == f"d/{most}"


def test_the_memory_for_names_is_bounded_also_for_parents_that_are_only_meant() -> None:
    def deep() -> Iterator[Item]:
        for number in range(10**9):
            yield ArchiveEntry(EntryKind.FILE, b"%d/" % number + b"x/" * 2000 + b"f")

    tracemalloc.start()
    try:
        with pytest.raises(InvalidArchive, match=f"{MOST_NAME_BYTES} bytes"):
            guard(deep())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * MOST_NAME_BYTES


def test_parents_that_are_known_are_not_looked_at_again() -> None:
    deep = [ArchiveEntry(EntryKind.FILE, b"x/" * 1990 + b"%d" % number) for number in range(1000)]
    # All of them, for each entry anew: 30 times as long.
    assert cost(lambda: guard(deep), 2) < 5 * cost(lambda: [clean(entry.name) for entry in deep], 2)
