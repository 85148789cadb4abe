"""The word of this installation, and the lock on its data folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.serving.instance import FILE, Instance, InstanceError


def _release(instance: Instance) -> None:
    """As the end of the process does."""
    os.close(instance._file)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_word_is_made_once_and_kept(tmp_path: Path) -> None:
    first = Instance(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", first.word)
    assert (tmp_path / FILE).read_text() == first.word + "\n"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    _release(first)
    again = Instance(tmp_path)
    assert again.word == first.word
    _release(again)


def test_two_installations_have_two_words(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = Instance(tmp_path / "a"), Instance(tmp_path / "b")
    assert one.word != other.word
    _release(one)
    _release(other)


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    first = Instance(tmp_path)
    before = _descriptors()
    with pytest.raises(
        InstanceError, match=f"another service uses the data folder {tmp_path}: use another one, by --data or"
    ):
        Instance(tmp_path)
    assert _descriptors() == before
    _release(first)


def test_another_process_holds_it_until_it_ends(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from app.serving.instance import Instance\n"
    program += "i = Instance(Path(sys.argv[1])); print(i.word, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        word = child.stdout.readline().strip()
        with pytest.raises(InstanceError, match="another service"):
            Instance(tmp_path)
        child.kill()
        child.wait()
    mine = Instance(tmp_path)
    assert mine.word == word
    _release(mine)


def test_what_a_crash_left_empty_is_filled(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("")
    found = Instance(tmp_path)
    assert (tmp_path / FILE).read_text().strip() == found.word
    _release(found)


@pytest.mark.parametrize("text", ["0123456789a", "0123456789abc", "0123456789AB", "../../../etc", "x" * 100, "ü" * 12])
def test_what_is_no_word_is_not_used_and_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    before = _descriptors()
    with pytest.raises(InstanceError, match="12 hexadecimal digits"):
        Instance(tmp_path)
    assert (tmp_path / FILE).read_text() == text and _descriptors() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InstanceError, match="cannot be used"):
        Instance(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == ""


def test_a_service_that_is_still_dying_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Instance(tmp_path)
    pauses: list[float] = []

    def die(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            _release(first)

    monkeypatch.setattr("time.sleep", die)
    again = Instance(tmp_path, wait_seconds=600)
    assert len(pauses) == 3 and again.word == first.word
    _release(again)


def test_a_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    first = Instance(tmp_path)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        _release(first)
        again = Instance(tmp_path, wait_seconds=10)  # the parent goes on a moment before exec closes descriptors
        assert child.poll() is None
        _release(again)


@pytest.mark.parametrize("what", ["a file above it", "a folder in its place"])
def test_a_place_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "data"
    if what == "a file above it":
        folder.touch()
    else:
        (folder / FILE).mkdir(parents=True)
    with pytest.raises(InstanceError, match="cannot be used"):
        Instance(folder)
