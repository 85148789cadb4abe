"""How the operator's secrets come to the gateway, and come again when their file changes.

The supervisor reads the file, which the gateway's user may not, and passes it on through a socket. A gateway that is a
service of its own reads it itself. A change that is not right is told, and what was there before stays in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from app.core.operator_secrets import OperatorSecrets
from app.serving.messages import say
from app.settings.secrets_file import FILE_BYTES, SecretsFileError, parse_secrets, read_secrets

LOOK_SECONDS = 1.0
_EMPTY = b"\n"  # an empty packet would be taken for the end
_KEPT = "; the secrets that were read before stay in force"


class SecretsFile:
    """Looks whether the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def read(self) -> bytes:
        """Raises SecretsFileError."""
        self._seen = self._state()
        return read_secrets(self._path)

    def read_if_changed(self) -> bytes | None:
        """None: as it was, or not right, which is told once."""
        if self._state() == self._seen:
            return None
        try:
            return self.read()
        except SecretsFileError as error:
            say(f"{error}{_KEPT}")
            return None

    def forget(self) -> None:
        """What was read has not arrived."""
        self._seen = None

    def _state(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError as error:
            return (error.errno or 0,)
        return (
            found.st_dev, found.st_ino, found.st_size, found.st_mode, found.st_uid,
            found.st_mtime_ns, found.st_ctime_ns,
        )  # fmt: skip


class SecretsSender:
    """The supervisor's end. `gateways` is the other one."""

    def __init__(self, path: Path) -> None:
        """Raises SecretsFileError and OSError. The content is in the socket when this returns."""
        self._file = SecretsFile(path)
        content = self._file.read()
        self._socket, self.gateways = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.send(content or _EMPTY)

    def look(self) -> None:
        """To be called every LOOK_SECONDS."""
        content = self._file.read_if_changed()
        if content is None:
            return
        try:
            self._socket.send(content or _EMPTY)
        except OSError:  # the gateway is busy, or it has ended, and then the service does
            self._file.forget()

    def close(self) -> None:
        self._socket.close()
        self.gateways.close()


class SecretsFeed:
    """The gateway's end: keeps `secrets` as they are in the file."""

    def __init__(self, secrets: OperatorSecrets, path: Path, descriptor: int) -> None:
        """`descriptor`: the supervisor's socket, which has the secrets already; -1: there is no supervisor. Raises
        SecretsFileError."""
        self._secrets, self._file = secrets, SecretsFile(path)
        self._socket = None if descriptor < 0 else socket.socket(fileno=descriptor)
        self._timer: asyncio.TimerHandle | None = None
        self._take(self._file.read() if self._socket is None else self._socket.recv(FILE_BYTES))

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._timer = loop.call_later(LOOK_SECONDS, self._look)
        else:
            self._socket.setblocking(False)
            loop.add_reader(self._socket.fileno(), self._readable, self._socket)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _look(self) -> None:
        content = self._file.read_if_changed()
        if content is not None:
            self._take(content)
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _readable(self, supervisor: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            if content := supervisor.recv(FILE_BYTES):
                self._take(content)
            else:
                asyncio.get_running_loop().remove_reader(supervisor.fileno())

    def _take(self, content: bytes) -> None:
        self._secrets.replace(parse_secrets(content))
