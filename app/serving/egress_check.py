"""The health check of an egress process that is a service of its own. It runs every few seconds, so it loads little."""

from __future__ import annotations

import socket
from pathlib import Path

from app.egress import protocol
from app.egress.protocol import Hello, InvalidMessage
from app.serving.messages import say

_ANSWER_SECONDS = 3.0  # the loop of an egress process is held for milliseconds


def check_egress(path: Path | None) -> int:
    """Returns 0 when an egress process of this user answers on the socket. Otherwise it returns 1 and prints a
    sentence. Without `path` the settings say where."""
    try:
        path = path or _configured()
        with connect_to_egress(path) as connection:
            greeting = connection.recv(protocol.MAX_PACKET)
        alive = protocol.decode_report(greeting) == Hello()
    except NoSocket as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"the egress process does not answer: {error.strerror or error}")
        return 1
    except InvalidMessage:
        alive = False
    if not alive:
        say("the egress process runs as another user, or is of another version")
        return 1
    return 0


def connect_to_egress(path: Path) -> socket.socket:
    """Must be closed. What it is asked, it answers within three seconds. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


class NoSocket(Exception):
    """`str(error)` is a sentence for people."""


def _configured() -> Path:
    """Raises NoSocket."""
    from app.settings import SettingsError, load_settings

    try:
        path = load_settings().egress.socket
    except SettingsError as error:
        raise NoSocket(str(error)) from None
    if path is None:
        raise NoSocket("set BULKHEAD_EGRESS__SOCKET or --socket to the egress process's socket")
    return path
