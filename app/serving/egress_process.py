"""Starts the egress process (`app/egress`), which dials out for sandboxes. It has a uid of its own and no privilege.

The supervisor makes its listening socket, keeps it, and gives it to each egress process in turn. So a gateway that
connects between two of them waits for the next one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from app.egress.config import EgressConfig
from app.settings import Settings

_BACKLOG = 8


def egress_config(settings: Settings, gateway_uid: int) -> EgressConfig:
    egress = settings.egress
    return EgressConfig(
        gateway_uid,
        permit_nets=tuple(map(str, egress.permit_nets)),
        resolver=egress.resolver,
        service=tuple(_own_addresses(settings)),
        connections=egress.connections,
        connections_per_sandbox=egress.connections_per_sandbox,
        connections_per_second=egress.connections_per_second,
        bytes_per_sandbox=egress.bytes_per_sandbox,
    )


def _own_addresses(settings: Settings) -> Iterator[str]:
    """`ADDRESS:PORT` of the service and of its BoxLite server, which no sandbox may dial. A name that has no address
    now is left out."""
    places = [(settings.host, settings.port)]
    if settings.boxlite.url is not None:
        url = urlsplit(settings.boxlite.url)
        places.append((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)))
    for name, port in places:
        with contextlib.suppress(OSError):
            for family, *_, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM):
                yield f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"


def listen_for_gateway(path: Path, uid: int) -> socket.socket:
    """Makes the socket to which only this uid and root can connect. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        os.chown(path, uid, uid, follow_symlinks=False)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def start_egress(project: str, listener: socket.socket, uid: int, config: EgressConfig) -> subprocess.Popen[bytes]:
    """Starts it as root, and it becomes `uid`. `project` is the folder of `app`. It dies with this process."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(write, "wb") as file:
        file.write(config.dump())  # far below a pipe's 64 KiB, so nobody has to read meanwhile
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "app.egress", *map(str, (os.getpid(), uid, listener.fileno(), read))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), read),
            start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor
            cwd="/",
            env={"LANG": "C.UTF-8", "PATH": os.defpath, "PYTHONPATH": project},
        )
    finally:
        os.close(read)
