"""The name of this installation: a random word, made at the first start and kept in the data folder.

The file of the word is locked while a service uses the folder. Two services with one data folder would take the place
for output from each other. They would also remove each other's boxes: boxes carry the word in their names, so that a
later life of the same installation finds what an earlier one left.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from pathlib import Path

FILE = "instance"
_WORD = re.compile(r"[0-9a-f]{12}")
_RETRY_SECONDS = 0.02


class InstanceError(Exception):
    """`str(error)` says what to do."""


class Instance:
    """The locked word of this installation. The kernel releases the lock when the process ends, however it ends. No
    child has it: the descriptor is closed by exec."""

    def __init__(self, folder: Path, wait_seconds: float = 0) -> None:
        """Makes the folder. `wait_seconds` is for a service that was killed and is still dying. Raises
        InstanceError."""
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstanceError(f"the data folder {folder} cannot be used: {error.strerror}") from error
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InstanceError(f"{path} cannot be used: {error.strerror}") from error
        try:
            self._lock(folder, wait_seconds)
            self.word = self._kept_word(folder)
        except OSError as error:
            os.close(self._file)
            raise InstanceError(f"{path} cannot be used: {error.strerror}") from error
        except InstanceError:
            os.close(self._file)
            raise

    def _lock(self, folder: Path, wait_seconds: float) -> None:
        give_up_at = time.monotonic() + wait_seconds
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise InstanceError(
                        f"another service uses the data folder {folder}: use another one, by --data or BULKHEAD_DATA"
                    ) from None
            time.sleep(_RETRY_SECONDS)  # before anybody is served; flock(2) cannot wait for a time

    def _kept_word(self, folder: Path) -> str:
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
