"""Tar streams, for any tree, any chunks and any bytes."""

from __future__ import annotations

import contextlib
import io
import tarfile
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.errors import BackendFailure, InvalidArchive
from app.core.files import ArchiveEntry, EntryKind
from app.core.tar import TarForm
from app.core.tar.header import LARGEST, SECOND
from tests.unit.core.tar_support import Item, directory, file, guard, hard_link, read, symlink, written

# Bytes as they come in names: plain, UTF-8, and neither; all lengths around the 100 of a header's field.
PARTS = st.one_of(
    st.sampled_from([b"a", b"b", b"x" * 99, b"x" * 100, b"x" * 101, b"y" * 255, "é€😀".encode(), b"\xff" * 100]),
    st.binary(min_size=1, max_size=12)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"\n"))
    .filter(lambda part: part not in (b".", b"..")),
)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
TIMES = st.one_of(
    st.sampled_from([0, -1, 10**9, -(2**63), 2**63 - 1, 8**11 * 10**9 - 1]), st.integers(-(2**63), 2**63 - 1)
)
CONTENTS = st.one_of(
    st.binary(max_size=40), st.sampled_from([0, 1, 511, 512, 513, 70_000]).map(lambda n: b"\n\0\xff" * n)
)
MODES = st.integers(0, 0o777)
CHUNKS = st.lists(st.integers(0, 1500), max_size=40)


@st.composite
def trees(draw: st.DrawFn) -> list[Item]:
    """What a runtime's `pack` may give."""
    items = directory(b"", draw(MODES), draw(TIMES))
    files: list[bytes] = []
    for name in draw(st.lists(NAMES, max_size=8, unique=True)):
        kinds = [EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK] + [EntryKind.HARD_LINK] * bool(files)
        match draw(st.sampled_from(kinds)):
            case EntryKind.FILE:
                items += file(name, draw(CONTENTS), draw(MODES), draw(TIMES))
                files.append(name)
            case EntryKind.DIRECTORY:
                items += directory(name, draw(MODES), draw(TIMES))
            case EntryKind.SYMLINK:
                items += symlink(name, draw(st.sampled_from([b"", b"/", b"../"])) + draw(NAMES))
            case EntryKind.HARD_LINK:
                items += hard_link(name, draw(st.sampled_from(files)))
    return items


def as_read(items: list[Item]) -> list[Item]:
    """The reader leaves names as they are written."""
    return [
        ArchiveEntry(item.kind, (item.name or b".") + b"/", item.mode, item.modified_ns)
        if isinstance(item, ArchiveEntry) and item.kind is EntryKind.DIRECTORY
        else item
        for item in items
    ]


@given(trees(), CHUNKS)
def test_what_is_written_is_read_in_any_chunks(tree: list[Item], chunks: list[int]) -> None:
    assert read(written(tree), chunks) == as_read(tree)


@given(trees(), st.sampled_from(TarForm))
def test_the_standard_library_reads_the_same(tree: list[Item], form: TarForm) -> None:
    found: list[Item] = []
    with tarfile.open(fileobj=io.BytesIO(written(tree, form))) as archive:
        for member in archive:
            name = member.name.encode(errors="surrogateescape")
            target = member.linkname.encode(errors="surrogateescape")
            if member.isdir():
                found.append(ArchiveEntry(EntryKind.DIRECTORY, name))
            elif member.issym():
                found.append(ArchiveEntry(EntryKind.SYMLINK, name, target=target))
            elif member.islnk():
                found.append(ArchiveEntry(EntryKind.HARD_LINK, name, target=target))
            else:
                content = archive.extractfile(member)
                assert content is not None
                found += [ArchiveEntry(EntryKind.FILE, name, size=member.size), content.read()]
    assert [item for item in found if item != b""] == [
        ArchiveEntry(item.kind, item.name or b".", size=item.size, target=item.target)
        if isinstance(item, ArchiveEntry)
        else item
        for item in tree
    ]


@given(trees())
def test_the_form_of_gnu_has_whole_seconds_and_all_else(tree: list[Item]) -> None:
    in_seconds = [
        replace(item, modified_ns=min(max(item.modified_ns // SECOND, 0), LARGEST - 1) * SECOND)
        if isinstance(item, ArchiveEntry)
        else item
        for item in tree
    ]
    assert read(written(tree, TarForm.GNU)) == as_read(in_seconds)


def test_the_form_of_gnu_has_no_room_for_the_size_of_a_larger_file() -> None:
    with pytest.raises(BackendFailure, match="too large"):
        written([ArchiveEntry(EntryKind.FILE, b"a", size=LARGEST)], TarForm.GNU)


@given(trees(), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), CHUNKS)
def test_what_the_standard_library_writes_is_read(tree: list[Item], form: int, chunks: list[int]) -> None:
    sink = io.BytesIO()
    types = {
        EntryKind.FILE: tarfile.REGTYPE,
        EntryKind.DIRECTORY: tarfile.DIRTYPE,
        EntryKind.SYMLINK: tarfile.SYMTYPE,
        EntryKind.HARD_LINK: tarfile.LNKTYPE,
    }
    whole: list[Item] = []
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for position, item in enumerate(tree):
            if isinstance(item, bytes):
                whole.append(item)
                continue
            info = tarfile.TarInfo((item.name or b".").decode(errors="surrogateescape"))
            info.linkname = item.target.decode(errors="surrogateescape")
            info.type, info.mode, info.size = types[item.kind], item.mode, item.size
            info.mtime = item.modified_ns // 10**9
            content = tree[position + 1] if item.size else b""
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
            whole.append(ArchiveEntry(item.kind, item.name, item.mode, info.mtime * 10**9, item.size, item.target))
    if any(isinstance(item, ArchiveEntry) and item.modified_ns < -(2**63) for item in whole):
        return  # rounded down beyond what a file system knows
    assert read(sink.getvalue(), chunks) == as_read(whole)


# --- bytes that nobody wrote on purpose


def survives(data: bytes, chunks: list[int]) -> None:
    """An archive or InvalidArchive, and never more out than in."""
    with contextlib.suppress(InvalidArchive):
        items = read(data, chunks)
        assert sum(len(item) for item in items if isinstance(item, bytes)) <= len(data)
        with contextlib.suppress(InvalidArchive):
            guard(items)


@given(st.binary(max_size=3000), CHUNKS)
def test_any_bytes_are_an_archive_or_refused(data: bytes, chunks: list[int]) -> None:
    survives(data, chunks)


FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1)}
FIELDS |= {"target": (157, 100), "magic": (257, 8), "prefix": (345, 155)}


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Blocks with a right checksum and anything in their fields, so that a fuzzer gets behind it."""
    block = bytearray(written(file(b"a"))[:512])
    for start, size in draw(st.lists(st.sampled_from(list(FIELDS.values())), max_size=4)):
        value = draw(st.binary(max_size=size) | st.sampled_from([b"%011o" % 600, b"\x80" + bytes(10) + b"\x05"]))
        block[start : start + size] = value[:size].ljust(size, b"\0")
    block[156] = draw(st.sampled_from(b"012345678gxXLKSVD\0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


RECORDS = st.tuples(
    st.sampled_from([b"path", b"linkpath", b"size", b"mtime", b"GNU.sparse.major", b"comment", b""]),
    st.sampled_from([b"", b"1", b"-1", b"1.5", b"../x", b"9" * 19, b"9" * 4400]) | st.binary(max_size=20),
).map(lambda pair: b"%d " % (len(pair[0]) + len(pair[1]) + 4) + b"=".join(pair) + b"\n")
BODIES = st.one_of(st.binary(max_size=700), st.lists(RECORDS, max_size=3).map(b"".join), st.just(b"")).map(
    lambda data: data + bytes(-len(data) % 512)
)


@settings(max_examples=300)
@given(st.lists(st.tuples(headers(), BODIES), max_size=4), CHUNKS)
@example([(written(file(b"a" * 101))[:512], b"99999 path=\n".ljust(512, b"\0"))], [])
def test_any_headers_are_an_archive_or_refused(blocks: list[tuple[bytes, bytes]], chunks: list[int]) -> None:
    survives(b"".join(head + body for head, body in blocks) + bytes(1024), chunks)


@given(trees(), st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=5), st.integers(0, 20_000))
def test_a_damaged_archive_is_an_archive_or_refused(tree: list[Item], damage: list[tuple[int, int]], end: int) -> None:
    data = bytearray(written(tree))
    for position, value in damage:
        data[position % len(data)] = value
    survives(bytes(data[:end]), [])
