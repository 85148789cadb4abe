"""Archives as other programs make and read them, and what is refused."""

from __future__ import annotations

import io
import tarfile

from tests.unit.core.tar_support import directory, file, guard, hard_link, read, symlink, written

TREE = [
    *directory(b"", 0o700, 1_700_000_000_123_456_789),
    *file(b"a", b"content", 0o755, 1_500_000_000_000_000_000),
    *file(b"empty", modified_ns=-1),
    *directory(b"d" * 150 + b"/\xc3\xa9"),
    *file(b"\xff\xfe", b"x" * 1000),
    *file(b"long" * 40 + b"\xff", b"y" * 512),
    *symlink(b"link", b"x/" * 60 + b"\xe2\x82\xac"),
    *hard_link(b"twin", b"a"),
]


def test_what_is_written_is_read() -> None:
    assert guard(read(written(TREE))) == TREE


def test_the_standard_library_reads_what_is_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(TREE))) as archive:
        names = [member.name.encode(errors="surrogateescape") for member in archive]
    assert names == [b".", *(item.name for item in TREE[1:] if not isinstance(item, bytes))]
