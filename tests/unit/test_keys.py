from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from app.keys import FILE_NAME, KeysError, hash_of, load_keys, new_key


def test_a_new_key_is_returned_once_and_stored_as_a_hash(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    first, second = new_key(data, "ci"), new_key(data, "me")
    assert re.fullmatch(r"bh_[A-Za-z0-9_-]{43}", first)
    assert first != second
    assert [(k.name, k.sha256) for k in load_keys(data)] == [("ci", hash_of(first)), ("me", hash_of(second))]
    text = (data / FILE_NAME).read_text()
    assert first not in text
    assert first[3:] not in text
    assert [p.name for p in data.iterdir()] == [FILE_NAME]


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    new_key(tmp_path, "a")
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_no_file_means_no_keys(tmp_path: Path) -> None:
    assert load_keys(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"keys":[{}]}', '{"keys":[{"name":"a","sha256":"zz","created_at":"now"}]}', "\xff"],
)
def test_a_broken_file_is_refused_by_name_and_never_read_as_no_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(KeysError, match=FILE_NAME):
        load_keys(tmp_path)
    with pytest.raises(KeysError, match=FILE_NAME):
        new_key(tmp_path, "b")


def test_a_name_is_there_once(tmp_path: Path) -> None:
    new_key(tmp_path, "the laptop")
    with pytest.raises(KeysError, match=r"a key named 'the laptop' exists.*keys\.json"):
        new_key(tmp_path, "the laptop")
    assert [k.name for k in load_keys(tmp_path)] == ["the laptop"]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[31m", "\udcff"])
def test_a_name_that_people_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="printable text"):
        new_key(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeysError, match=FILE_NAME):
        new_key(tmp_path / "file", "a")
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(KeysError, match=FILE_NAME):
        load_keys(tmp_path)
