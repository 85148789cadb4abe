"""The health checks of a launcher and of an egress process that are services of their own. They run every few seconds,
so they load little: the settings only where no option says where the socket is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from app.launcher.protocol import HELLO, OK, REPLY, VERSION, ProtocolError, Reader, Writer
from app.launcher.protocol.packets import close, receive
from app.serving.messages import say

if TYPE_CHECKING:
    from app.settings import Settings

_LAUNCHER_SECONDS = 20.0  # it measures and mounts between two answers; an engine ends the check after 30 s
_EGRESS_SECONDS = 3.0  # the loop of an egress process is held for milliseconds


class NotHealthy(Exception):
    """`str(error)` is a sentence for people."""


def check_launcher(path: Path | None = None) -> int:
    """Returns 0 when a launcher answers on the socket and lacks no layer. Otherwise it returns 1 and prints a sentence.
    Without `path` the settings say where."""
    return _status(lambda: _ask_launcher(path or _configured_launcher()))


def check_egress(path: Path | None = None) -> int:
    """Returns 0 when an egress process of this user answers on the socket. Otherwise it returns 1 and prints a
    sentence. Without `path` the settings say where."""
    return _status(lambda: _ask_egress(path or _configured_egress()))


def _status(check: Callable[[], None]) -> int:
    try:
        check()
    except NotHealthy as error:
        say(str(error))
        return 1
    return 0


def _ask_launcher(path: Path) -> None:
    """Raises NotHealthy."""
    try:
        with _connect(path, _LAUNCHER_SECONDS) as connection:
            connection.send(bytes(Writer(HELLO).u32(1).data))
            facts = dict(fact.decode().split("=", 1) for fact in _reply(connection).many(64))
    except OSError as error:
        raise NotHealthy(f"the launcher does not answer: {error.strerror or error}") from error
    except (ProtocolError, ValueError):
        facts = {}
    if facts.get("protocol") != str(VERSION):
        raise NotHealthy("the launcher speaks another version of the protocol")
    if facts.get("missing"):
        raise NotHealthy(f"this host lacks {facts['missing']}; `bulkhead probe` says how to get it")


def _reply(connection: socket.socket) -> Reader:
    """Of the one request. Raises OSError, ProtocolError."""
    data, descriptors = receive(connection)
    close(descriptors)
    if not data:
        raise ConnectionResetError("it hung up")
    source = Reader(data)
    if (source.u8(), source.u32(), source.u8()) != (REPLY, 1, OK):
        raise ProtocolError("not the reply")
    return source


def _ask_egress(path: Path) -> None:
    """Raises NotHealthy."""
    from app.egress import protocol

    try:
        with connect_to_egress(path) as connection:
            alive = protocol.decode_report(connection.recv(protocol.MAX_PACKET)) == protocol.Hello()
    except OSError as error:
        raise NotHealthy(f"the egress process does not answer: {error.strerror or error}") from error
    except protocol.InvalidMessage:
        alive = False
    if not alive:
        raise NotHealthy("the egress process runs as another user, or is of another version")


def connect_to_egress(path: Path) -> socket.socket:
    """Must be closed. What it is asked, it answers within three seconds. Raises OSError."""
    return _connect(path, _EGRESS_SECONDS)


def _connect(path: Path, seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _configured_launcher() -> Path:
    """Raises NotHealthy."""
    if path := _settings().process.launcher_socket:
        return path
    raise NotHealthy("set BULKHEAD_PROCESS__LAUNCHER_SOCKET or --socket to the launcher's socket")


def _configured_egress() -> Path:
    """Raises NotHealthy."""
    if path := _settings().egress.socket:
        return path
    raise NotHealthy("set BULKHEAD_EGRESS__SOCKET or --socket to the egress process's socket")


def _settings() -> Settings:
    """Raises NotHealthy."""
    from app.settings import SettingsError, load_settings

    try:
        return load_settings()
    except SettingsError as error:
        raise NotHealthy(str(error)) from None
