"""Starts the egress process (`app/egress`), which dials out for sandboxes. It has a uid of its own and no privilege.

The supervisor makes its listening socket, keeps it, and gives it to each egress process in turn. So a gateway that
connects between two of them waits for the next one. Where the egress process is a service of its own (`standalone.py`)
it makes the socket itself, and a gateway tries again until it is there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from app.egress.config import EgressConfig
from app.settings import Settings

_BACKLOG = 8


def egress_config(settings: Settings, gateway_uid: int, proxy: socket.socket | None = None) -> EgressConfig:
    """`proxy`: the socket on which the proxy for boxes listens."""
    egress = settings.egress
    own = [*_own_addresses(settings), *([address_of(proxy)] if proxy is not None else [])]
    return EgressConfig(
        gateway_uid,
        permit_nets=tuple(map(str, egress.permit_nets)),
        own_nets=tuple(map(str, egress.own_nets)),
        resolver=egress.resolver,
        service=tuple(own),
        proxy=proxy.fileno() if proxy is not None else -1,
        sandboxes=settings.capacity.sandboxes,
        connections=egress.connections,
        connections_per_sandbox=egress.connections_per_sandbox,
        connections_per_second=egress.connections_per_second,
        bytes_per_sandbox=egress.bytes_per_sandbox,
        ca_file=str(egress.ca_file or ""),
    )


def address_of(listener: socket.socket) -> str:
    """`ADDRESS:PORT` of an IPv4 socket."""
    return "{}:{}".format(*listener.getsockname())


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


def listen_for_gateway(path: Path, uid: int | None = None) -> socket.socket:
    """Makes the socket. Only `uid` and root can connect to it; if there is no `uid`, this user and this group. Raises
    OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o117 if uid is None else 0o177)
    try:
        listener.bind(str(path))
        if uid is not None:
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
    read = _pipe_of(config)
    argv, environment = _command(project, os.getpid(), uid, listener, read)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), read, *([config.proxy] if config.proxy >= 0 else [])),
            start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor
            cwd="/",
            env=environment,
        )
    finally:
        os.close(read)


def exec_egress(project: str, listener: socket.socket, config: EgressConfig) -> NoReturn:
    """This process is the egress process from here on, as the user that it is. Nothing of its environment and memory is
    left."""
    read = _pipe_of(config)
    argv, environment = _command(project, 0, -1, listener, read)
    for descriptor in (listener.fileno(), read):
        os.set_inheritable(descriptor, True)
    os.chdir("/")
    os.execve(argv[0], argv, environment)  # noqa: S606 - this interpreter again


def _pipe_of(config: EgressConfig) -> int:
    """Returns the end of a pipe from which the configuration can be read."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(write, "wb") as file:
        file.write(config.dump())  # far below a pipe's 64 KiB, so nobody has to read meanwhile
    return read


def _command(
    project: str, parent: int, uid: int, listener: socket.socket, config: int
) -> tuple[list[str], dict[str, str]]:
    """Returns (argv, environment). `config` is the descriptor that the configuration is read from."""
    told = (parent, uid, listener.fileno(), config)
    argv = [sys.executable, "-P", "-m", "app.egress", *map(str, told)]
    return argv, {"LANG": "C.UTF-8", "PATH": os.defpath, "PYTHONPATH": project}
