"""The operator's secrets: who may read their file, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.core.operator_secrets import OperatorSecret
from app.core.secrets import SecretValue
from app.settings import load_settings
from app.settings.secrets_file import FILE_BYTES, SecretsFileError, parse_secrets, read_secrets

RIGHT = b'[llm]\nvalue = "canary-1"\nhosts = ["API.test", "b.test"]\n[other]\nvalue = "canary-2"\nhosts = ["c.test"]\n'


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secrets.toml"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_right_file_has_values_and_hosts(tmp_path: Path) -> None:
    assert parse_secrets(read_secrets(written(tmp_path, RIGHT))) == {
        "llm": OperatorSecret(SecretValue("canary-1"), ("api.test", "b.test")),
        "other": OperatorSecret(SecretValue("canary-2"), ("c.test",)),
    }
    assert parse_secrets(read_secrets(written(tmp_path, b""))) == {}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o666])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretsFileError, match=f"has the mode {mode:04o}: others may use it; set it to 0600"):
        read_secrets(written(tmp_path, RIGHT, mode))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, RIGHT)
    os.chown(path, 12345, 12345)
    with pytest.raises(SecretsFileError, match="belongs to another user"):
        read_secrets(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, tmp_path):
        with pytest.raises(SecretsFileError, match="is not a file"):
            read_secrets(path)
    with pytest.raises(SecretsFileError, match="cannot be read: No such file"):
        read_secrets(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"canary", "is not TOML$"),
        (b'[llm]\nvalue = "canary\n', "is not TOML, in line 2$"),
        (b'[llm]\nvalue = "canary"\nvalue = "canary"\n', "is not TOML"),
        (b'value = "canary"', "is wrong: value: must be an object$"),
        (b'[llm]\nvalue = "canary\xff"', "is not UTF-8$"),
        (b'[llm]\nvalue = "canary"\n', "is wrong: llm.hosts: is required$"),
        (b'[llm]\nhosts = ["canary.test"]\n', "is wrong: llm.value: is required$"),
        (b"[llm]\nvalue = 1234\nhosts = []\n", "is wrong: llm.value: must be a string$"),
        (b'[llm]\nvalue = "canary"\nhosts = []\n', "is wrong: llm.hosts: must be 1 to 16 names of hosts, without .$"),
        (b'[llm]\nvalue = "a"\nhosts = ["canary!"]\n', "is wrong: llm.hosts: must be 1 to 16 names of hosts"),
        (b'[llm]\nvalue = "a"\nhosts = ["canary.test", 1]\n', "is wrong: llm.hosts.1: must be a string$"),
        (b'[llm]\nvalue = "can\\nary"\nhosts = ["a.test"]\n', "is wrong: llm.value: must not contain line ends"),
        (b'[llm]\nvalue = "canary"\nhosts = ["a.test"]\ncanary = 1\n', "is wrong: llm has a field beside value and"),
        (b'["canary name"]\nvalue = "v"\nhosts = ["a.test"]\n', "is wrong: the name of a secret has 1 to 63 letters"),
        (b"#" * (FILE_BYTES + 1), f"has more than {FILE_BYTES} bytes"),
    ],
)
def test_what_is_wrong_is_said_without_showing_any_of_it(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(SecretsFileError, match=sentence) as caught:
        read_secrets(written(tmp_path, content))
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_setting_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_EGRESS__SECRETS_FILE", "/etc/bulkhead/secrets.toml")
    assert load_settings().egress.secrets_file == Path("/etc/bulkhead/secrets.toml")
