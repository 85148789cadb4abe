"""API keys: made once, shown once, and kept as SHA-256 in `<data>/keys.json`. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

FILE_NAME = "keys.json"
PREFIX = "bh_"


class KeysError(Exception):
    """The key file cannot be read or the name not be taken; `str(error)` is a sentence that says which."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A plain hash is enough for 256 random bits: there is nothing to guess from."""

    name: str
    sha256: str
    created_at: str


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def load_keys(data: Path) -> list[StoredKey]:
    """The stored keys, oldest first; none when there is no file. Raises KeysError."""
    path = data / FILE_NAME
    try:
        found = json.loads(path.read_bytes())
        keys = [StoredKey(str(k["name"]), str(k["sha256"]), str(k["created_at"])) for k in found["keys"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeysError(f"the key file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise KeysError(f"the key file {path} was not written by `bulkhead key new`") from error
    if not all(len(k.sha256) == 64 and set(k.sha256) <= set("0123456789abcdef") for k in keys):
        raise KeysError(f"the key file {path} has an entry that is not a SHA-256")
    return keys


def new_key(data: Path, name: str) -> str:
    """Makes a key and stores its hash; the key itself is only returned. Raises KeysError, also for a name that has one.

    The file is replaced whole, so a service that reads it meanwhile finds the old one or the new one.
    """
    known = load_keys(data)
    path = data / FILE_NAME
    if not name.strip() or not name.isprintable():
        raise KeysError("the name of a key must be printable text in one line")
    if any(k.name == name for k in known):
        raise KeysError(f"a key named {name!r} exists: choose another name, or delete its entry from {path}")
    key = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    keys = [*known, StoredKey(name, hash_of(key), created)]
    text = json.dumps({"keys": [asdict(k) for k in keys]}, indent=2) + "\n"
    beside = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeysError(f"the key file {path} cannot be written: {error.strerror}") from error
    return key
