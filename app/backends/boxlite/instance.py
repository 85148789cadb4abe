"""The name of this installation towards a BoxLite server: a random word, made at the first start and kept in the data
folder.

Boxes carry it in their names, so that a later life of the same installation finds what an earlier one left. Two
services with one data folder would remove each other's boxes. So the word is locked while it is used.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path

FILE = "instance"
_WORD = re.compile(r"[0-9a-f]{12}")


class InstanceError(Exception):
    """`str(error)` says what to do."""


class Instance:
    """The locked word of this installation. The lock is held until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises InstanceError."""
        path = folder / FILE
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InstanceError(f"{path} cannot be used: {error.strerror}") from error
        try:
            self.word = self._locked_word(folder)
        except OSError as error:
            os.close(self._file)
            raise InstanceError(f"{path} cannot be used: {error.strerror}") from error
        except InstanceError:
            os.close(self._file)
            raise

    def _locked_word(self, folder: Path) -> str:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstanceError(
                f"another service uses the data folder {folder}: give each one its own, by --data or BULKHEAD_DATA"
            ) from None
        word = os.pread(self._file, 64, 0).decode("ascii", "replace").strip()
        if not word:
            word = secrets.token_hex(6)
            os.pwrite(self._file, f"{word}\n".encode(), 0)
            os.fsync(self._file)
        if not _WORD.fullmatch(word):
            raise InstanceError(
                f"{folder / FILE} does not hold 12 hexadecimal digits: remove it, and a new one is made"
            )
        return word
