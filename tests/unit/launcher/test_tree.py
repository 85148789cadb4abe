"""Where a write goes that passes links, as the kernel would take it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.launcher.sandbox.tree import resolved


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_path_is_resolved_as_the_library_does(place: Path) -> None:
    (place / "d/e").mkdir(parents=True)
    (place / "d/up").symlink_to("../d/./e/")
    (place / "absolute").symlink_to(place / "d/up")
    (place / "nowhere").symlink_to("d/missing/../x")
    for path in (b"", b"/", b"..", b"d/e", b"absolute/a", b"d/up/..", b"nowhere", b"missing/a", b"./d//up/", b"/../d"):
        assert resolved(path) == os.path.realpath(path), path


def test_chain_is_followed_as_far_as_the_kernel_goes(place: Path) -> None:
    (place / "link0").symlink_to("end")
    (place / "end").touch()
    for number in range(1, 3000):
        (place / f"link{number}").symlink_to(f"link{number - 1}")
    assert resolved(b"link39") == os.fsencode(place / "end")
    assert (place / "link39").stat().st_size == 0
    for path in (b"link40", b"link2999", b"missing/../link2999"):
        with pytest.raises(OSError, match="symbolic links") as refused:
            resolved(path)
        assert (refused.value.errno, refused.value.filename) == (errno.ELOOP, path)
    with pytest.raises(OSError, match="symbolic links"):
        (place / "link40").stat()
