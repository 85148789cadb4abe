"""Tar streams: what GNU tar and the standard library write is read, what is written they read, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.core import tar
from app.core.errors import BackendFailure, InvalidArchive
from app.core.files import ArchiveEntry, EntryKind
from app.core.tar.reading import LONGEST_EXTENSION
from tests.require import require
from tests.unit.core.tar_support import (
    Item,
    collect,
    directory,
    driven,
    each,
    file,
    guard,
    hard_link,
    read,
    symlink,
    written,
)

MIB = 1024 * 1024
TREE = [
    *directory(b"", 0o700, 1_700_000_000_123_456_789),
    *file(b"a", b"content", 0o755, 1_500_000_000_000_000_000),
    *file(b"before 1970", modified_ns=-1_500_000_000),
    *directory(b"d" * 150 + b"/\xc3\xa9"),
    *file(b"\xff\xfe", b"x" * 1000),
    *file(b"long" * 40 + b"\xff", b"y" * 512),
    *symlink(b"link", b"x/" * 60 + b"\xe2\x82\xac"),
    *hard_link(b"twin", b"a"),
]
END = bytes(1024)


def member(**fields: Any) -> bytes:
    """One header as the standard library writes it."""
    info = tarfile.TarInfo()
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def extension(code: bytes, data: bytes) -> bytes:
    return member(name="extension", type=code, size=len(data)) + padded(data)


def pax(*records: bytes, code: bytes = b"x") -> bytes:
    """`records` with their lengths, of two digits each."""
    return extension(code, b"".join(b"%02d %b\n" % (len(record) + 4, record) for record in records))


def only(archive: bytes) -> ArchiveEntry:
    (entry,) = (item for item in read(archive) if not isinstance(item, bytes))
    return entry


# --- together with other programs


def gnu_tar() -> str:
    program = shutil.which("tar") or "false"
    version = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
    require("gnu-tar", b"GNU tar" in version, "there is no GNU tar")
    return program


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that an archive should keep."""
    found: dict[bytes, tuple[object, ...]] = {}
    twins: dict[int, bytes] = {}
    for path in sorted([root, *root.rglob("*")]):
        name = bytes(path.relative_to(root))
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            found[name] = ("link", bytes(path.readlink()))
        elif stat.S_ISDIR(info.st_mode):
            found[name] = ("directory", info.st_mode, info.st_mtime_ns)
        else:
            twin = twins.setdefault(info.st_ino, name)
            found[name] = ("file", info.st_mode, info.st_mtime_ns, path.read_bytes(), twin)
    return found


def plant(root: Path, *, long_names: bool, second: int) -> None:
    names = [b"file", b"-rf", b"\xc3\xa9", b"\xff\xfe", b"with space\nand line", b"back\\slash", b"*"]
    if long_names:
        names += [b"l" * 99, b"l" * 100, b"l" * 101, b"m" * 255, b"\xff" * 120, b"d" * 200 + b"/" + b"e" * 200]
    for number, name in enumerate(names):
        path = Path(os.fsdecode(bytes(root) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789" * number * 100)
        path.chmod(0o600 + number)
        os.utime(path, ns=(0, 1_600_000_000 * second + number * second // 7))
    (root / "empty").mkdir(mode=0o711)
    (root / "link").symlink_to("file")
    (root / "nowhere").symlink_to("t/" * (150 if long_names else 40) + "t")
    os.link(root / "file", root / "twin")
    for path in [*sorted(root.rglob("*")), root]:
        if path.is_dir() and not path.is_symlink():
            os.utime(path, ns=(0, 1_500_000_000 * second))


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_a_tree_goes_from_gnu_tar_to_gnu_tar_and_is_the_same(tmp_path: Path, form: str) -> None:
    program = gnu_tar()
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    # Only posix keeps what is below a second; the fields of the oldest two end at 100 and 256 bytes.
    plant(source, long_names=form not in ("v7", "ustar"), second=1_000_000_000)
    if form != "posix":
        for path in source.rglob("*"):
            os.utime(path, ns=(0, path.lstat().st_mtime_ns // 10**9 * 10**9), follow_symlinks=False)
    packed = subprocess.run(
        [program, f"--format={form}", "-C", source, "-cf", "-", "."], capture_output=True, check=True
    )
    again = written(guard(read(packed.stdout, [7] * 100)))
    subprocess.run([program, "-C", target, "-xpf", "-"], input=again, capture_output=True, check=True)
    assert snapshot(target) == snapshot(source)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_standard_library_writes_is_read(form: int) -> None:
    long = "l" * 90 + "/" + "m" * 90  # in ustar, by way of the prefix
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name in ("a", long, "\udcff"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = 1000, 1_600_000_000, 0o640
            archive.addfile(info, io.BytesIO(b"x" * 1000))
    names = [b"a", long.encode(), b"\xff"]
    assert read(sink.getvalue()) == [
        item for name in names for item in file(name, b"x" * 1000, 0o640, 1_600_000_000 * 10**9)
    ]


def test_the_standard_library_reads_what_is_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(TREE))) as archive:
        members = archive.getmembers()
        names = [info.name.encode(errors="surrogateescape") for info in members]
        contents = [found.read() for info in members if info.isreg() and (found := archive.extractfile(info))]
    assert names == [b".", *(item.name for item in TREE[1:] if not isinstance(item, bytes))]
    assert contents == [b"content", b"", b"x" * 1000, b"y" * 512]
    assert members[-2].linkname.encode() == b"x/" * 60 + b"\xe2\x82\xac"
    assert members[-1].linkname == "a" and members[-1].islnk()
    assert members[0].mtime == pytest.approx(1_700_000_000.123456789)


def test_what_is_written_is_read() -> None:
    assert guard(read(written(TREE))) == TREE


def test_what_needs_no_pax_is_plain_ustar() -> None:
    archive = written(file(b"\xff" * 100, b"x", modified_ns=10**18))
    assert len(archive) == 512 + 512 + 1024


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 2**63 - 1])
def test_huge_sizes_are_written_and_read(size: int) -> None:
    async def first_bytes() -> AsyncIterator[Item]:
        yield ArchiveEntry(EntryKind.FILE, b"huge", size=size)
        yield bytes(tar.writing.PIECE)
        raise EOFError

    async def first(stream: AsyncIterator[bytes]) -> Item:
        return await anext(tar.entries(stream))

    for stream in (tar.archive(first_bytes()), each([member(name="huge", size=size)])):
        found = driven(first(stream))
        assert isinstance(found, ArchiveEntry)
        assert found.size == size


# --- the formats' corners


def test_an_old_directory_is_a_file_with_a_slash() -> None:
    assert only(member(name="old/", type=b"\0") + END).kind is EntryKind.DIRECTORY


def test_the_size_of_a_directory_is_none_of_a_content() -> None:
    assert only(member(name="d", type=tarfile.DIRTYPE, size=4096) + END) == ArchiveEntry(EntryKind.DIRECTORY, b"d/")


def test_what_gnu_writes_in_the_place_of_a_prefix_is_not_one() -> None:
    block = bytearray(member(name="a"))
    block[345:357] = b"14712345670\0"  # an access time, of incremental archives
    assert only(with_checksum(block) + END).name == b"a"


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_pax_records_of_all_entries_and_of_one() -> None:
    archive = (
        pax(b"comment=from a version control", b"mtime=1.5", code=b"g")
        + member(name="a", mtime=7)
        + pax(b"path=other", b"mtime=-2.25", b"size=3", b"uid=5")
        + member(name="b", size=600)
        + padded(b"abc")
        + pax(b"mtime=")
        + member(name="c", mtime=7)
        + END
    )
    assert read(archive) == [
        *file(b"a", modified_ns=1_500_000_000),
        *file(b"other", b"abc", modified_ns=-2_250_000_000),
        *file(b"c", modified_ns=7_000_000_000),
    ]


def test_the_last_of_several_names_counts() -> None:
    archive = extension(b"L", b"first\0") + pax(b"path=second") + extension(b"L", b"third\0") + member(name="a") + END
    assert only(archive).name == b"third"


def test_zeros_may_follow() -> None:
    assert read(written(file(b"a")) + bytes(20 * 512 + 1), [1] * 40) == file(b"a")


# --- what is refused

LETTERS = member(name="a")[:124] + b"1_0" + member(name="a")[127:]
SPARSE = pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0")
BROKEN: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "", "ends early, after 0 bytes"),
    "half an end": (member(name="a") + bytes(512), "a", "ends early, after 1024 bytes"),
    "an entry behind half an end": (member(name="a") + bytes(512) + member(name="b") + END, "a", "two blocks of zeros"),
    "two in a row": (2 * (member(name="a") + END), "a", "other bytes follow the end"),
    "gzip": (gzip.compress(os.urandom(2000)), "", "this is gzip; send an uncompressed tar archive"),
    "gzip of less than a block": (gzip.compress(bytes(2000)), "", "this is gzip"),
    "bzip2": (bz2.compress(bytes(2000)), "", "this is bzip2"),
    "xz": (lzma.compress(bytes(2000)), "", "this is xz"),
    "zstd": (bytes.fromhex("28b52ffd2000010000"), "", "this is zstd"),
    "zip": (b"PK\3\4" + bytes(600), "", "this is zip"),
    "a name like gzip, cut short": (member(name="BZh") + b"x", "BZh", "ends early, after 513 bytes"),
    "no header": (member(name="a") + b"x" * 512 + END, "a", "there is no tar header at byte 512"),
    "no digits for a size": (with_checksum(bytearray(LETTERS)), "", "there is no tar header at byte 0"),
    "a negative size": (member(name="a", size=-1) + END, "a", "size"),
    "a size beyond all": (member(name="a", size=2**63) + END, "a", "size"),
    "a word for a size": (pax(b"size=+5") + member(name="a") + END, "a", "size"),
    "no name": (member(name="") + END, "", "the entry has no name"),
    "a character device": (member(name="a", type=tarfile.CHRTYPE) + END, "a", "a character device"),
    "a block device": (member(name="a", type=tarfile.BLKTYPE) + END, "a", "a block device"),
    "a fifo": (member(name="a", type=tarfile.FIFOTYPE) + END, "a", "a FIFO"),
    "an unknown type": (member(name="a", type=b"V") + END, "a", "unknown type b'V'"),
    "sparse": (member(name="a", type=b"S") + END, "a", "a sparse file"),
    "sparse by pax": (member(name="a") + SPARSE + member(name="b") + END, "a", "a sparse file"),
    "a link with a size": (member(name="a", type=b"1", linkname="b", size=1) + END, "a", "the link has a size"),
    "a long name too long": (member(name="x", type=b"L", size=LONGEST_EXTENSION + 1), "", "at most 65536 are allowed"),
    "a negative long name": (member(name="x", type=b"L", size=-1), "", "the entry has -1 bytes of names"),
    "pax too long": (member(name="x", type=b"x", size=2**40), "", "at most 65536 are allowed"),
    "a name and no entry": (extension(b"L", b"name\0") + END, "", "no tar header"),
    "a time that is none": (pax(b"mtime=1e5") + member(name="a") + END, "a", "the time is not a number"),
    "a time too far": (pax(b"mtime=99999999999") + member(name="a") + END, "a", "out of range"),
    "a time too far by number": (member(name="a", mtime=-(2**60)) + END, "a", "out of range"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_refused(case: str) -> None:
    archive, entry, detail = BROKEN[case]
    with pytest.raises(InvalidArchive, match=detail) as refusal:
        read(archive)
    assert refusal.value.entry == entry


def test_compressed_archive_is_known_however_its_bytes_arrive() -> None:
    with pytest.raises(InvalidArchive, match="this is xz"):
        read(lzma.compress(bytes(2000)), [1] * 30)


@pytest.mark.parametrize(
    "data",
    [b"path=x\n", b"9 path=x\n\n", b"11 path=xyz", b"99 path=x\n", b"0 path=x\n", b"2 \n", b"7 path\n", b"-9 path=x\n",
     b"\n", b"9" * 5000 + b" path=x\n"],
)  # fmt: skip
def test_records_that_make_no_sense_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArchive, match="the pax header is invalid"):
        read(extension(b"x", data) + member(name="a") + END)


def test_what_is_cut_short_anywhere_is_refused() -> None:
    archive = written(TREE)
    for size in range(0, len(archive), 61):
        with pytest.raises(InvalidArchive, match=f"ends early, after {size} bytes"):
            read(archive[:size])


def test_a_long_name_is_shown_bounded() -> None:
    with pytest.raises(InvalidArchive) as refusal:
        read(extension(b"L", b"n" * 60_000) + member(name="x", type=b"3") + END)
    assert len(refusal.value.entry) == 256


@pytest.mark.parametrize(
    ("items", "detail"),
    [
        (file(b"../a"), "'../a'"),
        (file(b"/a"), "'/a'"),
        (file(b"a//b"), "'a//b'"),
        (file(b""), "''"),
        (file(b"a\0b"), "that is impossible"),
        (symlink(b"a", b""), "'a'"),
        (symlink(b"a", b"b\0c"), "'a'"),
        (hard_link(b"a", b"../b"), "'a'"),
        (hard_link(b"a", b""), "'a'"),
        (file(b"a", b"1234")[:1], "lacks 4 bytes"),
        ([*file(b"a", b"1234")[:1], b"123", *file(b"b")], "lacks 1 bytes"),
        ([*file(b"a", b"1234")[:1], b"123", b"45"], "more bytes"),
        ([*file(b"a"), b"1"], "more bytes"),
    ],
)
def test_a_tree_that_cannot_be_is_not_written(items: list[Item], detail: str) -> None:
    with pytest.raises(BackendFailure, match=detail):
        written(items)


def test_setuid_is_never_written() -> None:
    assert only(written(file(b"a", mode=0o7755))).mode == 0o755


@pytest.mark.parametrize("form", ["gnu", "posix"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar_are_refused(tmp_path: Path, form: str, version: str) -> None:
    with (tmp_path / "gaps").open("wb") as sparse:
        sparse.seek(4 * MIB)
        sparse.write(b"end")
    options = ["--sparse", f"--format={form}", *([f"--sparse-version={version}"] if form == "posix" else [])]
    packed = subprocess.run([gnu_tar(), *options, "-C", tmp_path, "-cf", "-", "gaps"], capture_output=True, check=True)
    with pytest.raises(InvalidArchive, match="a sparse file"):
        read(packed.stdout)


# --- memory and copies


def test_chunks_of_content_are_passed_on_without_a_copy() -> None:
    chunk = bytes(tar.writing.PIECE)
    head = written([ArchiveEntry(EntryKind.FILE, b"a", size=2 * len(chunk)), chunk, chunk])[:512]
    passed = collect(tar.entries(each([head, chunk, chunk, END])))
    assert passed[1] is chunk and passed[2] is chunk
    out = collect(tar.archive(each([*passed])))
    assert out[1] is chunk and len(out) == 3


def test_small_entries_are_joined() -> None:
    pieces = collect(tar.archive(each([item for number in range(1000) for item in file(b"%d" % number, b"x" * 100)])))
    assert all(tar.writing.PIECE <= len(piece) <= tar.writing.PIECE + 1024 for piece in pieces[:-1])


def drained(items: AsyncIterator[Item]) -> tuple[int, int]:
    """How many bytes there were, and the most memory that it took."""

    async def count() -> int:
        size = 0
        async for item in items:
            size += len(item) if isinstance(item, bytes) else 0
        return size

    tracemalloc.start()
    try:
        size = driven(count())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size, peak


def test_memory_is_flat() -> None:
    async def tree() -> AsyncIterator[Item]:
        yield ArchiveEntry(EntryKind.FILE, b"large", size=64 * MIB)
        for _ in range(256):
            yield bytes(256 * 1024)
        for number in range(2000):
            for item in file(b"%d" % number, bytes(3000)):
                yield item

    size, peak = drained(tar.entries(tar.archive(tree())))
    assert size == 64 * MIB + 2000 * 3000
    assert peak < 2 * MIB


@pytest.mark.parametrize("code", [b"g", b"x", b"L"])
def test_attributes_without_end_are_not_kept(code: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(256):
            key = b"%d" % number * 10_000
            yield extension(code, b"%d %b=%b\n" % (2 * len(key) + 8, key, key))
        yield member(name="a") + END

    _, peak = drained(tar.entries(chunks()))
    assert peak < 2 * MIB
