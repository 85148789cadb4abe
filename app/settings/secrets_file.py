"""The operator's secrets: a TOML file that only its owner may read, one table per secret.

::

    [llm]
    value = "…"
    hosts = ["api.example.com"]

No error shows anything of the file's content.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from app.core.operator_secrets import OperatorSecret
from app.core.secrets import HOSTS, SecretValue, secret_hosts
from app.sentences import sentence_for

FILE_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
_LINE = re.compile(r"\(at line (\d+), column \d+\)")


class SecretsFileError(Exception):
    """`str(error)` names the file and what is wrong, without its content."""


class _Secret(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    value: SecretStr
    hosts: list[str]


_FILE = TypeAdapter(dict[str, _Secret])


def read_secrets(path: Path) -> bytes:
    """Returns content that `parse_secrets` takes. Raises SecretsFileError, also when others than the owner may do
    anything with the file."""
    try:
        content = _read(path)
        parse_secrets(content)
    except OSError as error:
        raise SecretsFileError(f"the secrets file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SecretsFileError(f"the secrets file {path} {error}") from None
    return content


def _read(path: Path) -> bytes:
    """Raises OSError, and ValueError with a sentence."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_private(os.fstat(descriptor))
        content = os.read(descriptor, FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > FILE_BYTES:
        raise ValueError(f"has more than {FILE_BYTES} bytes")
    return content


def _check_private(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is not a file")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"has the mode {stat.S_IMODE(found.st_mode):04o}: others may use it; set it to 0600")
    if found.st_uid not in (0, os.geteuid()):
        raise ValueError("belongs to another user, who may read it")


def parse_secrets(content: bytes) -> Mapping[str, OperatorSecret]:
    """Raises ValueError with what follows the name of the file in a sentence."""
    try:
        found = _FILE.validate_python(tomllib.loads(content.decode()))
    except ValidationError as error:
        raise ValueError(f"is wrong: {_sentence(error)}") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except ValueError as error:  # the sentence of tomllib may show a part of the file
        line = _LINE.search(str(error))
        raise ValueError(f"is not TOML{f', in line {line[1]}' if line else ''}") from None
    return {name: _operator_secret(name, secret) for name, secret in found.items()}


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    name, *path = map(str, first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{name} has a field beside value and hosts"
    return f"{'.'.join((name, *path))}: {sentence_for(first)}"


def _operator_secret(name: str, secret: _Secret) -> OperatorSecret:
    if not _NAME.fullmatch(name):
        raise ValueError("is wrong: the name of a secret has 1 to 63 letters, digits, _ and -")
    try:
        value = SecretValue(secret.value.get_secret_value())
    except ValueError as error:
        raise ValueError(f"is wrong: {name}.value: {error}") from None
    try:
        return OperatorSecret(value, secret_hosts(secret.hosts))
    except ValueError:  # its sentence shows the host
        raise ValueError(f"is wrong: {name}.hosts: must be 1 to {HOSTS} names of hosts, without *") from None
