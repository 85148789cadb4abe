"""Listening sockets for ports that a sandbox gets after its start.

The launcher enters the sandbox's network namespace for the calls that make them. Nothing of the sandbox runs or is read
meanwhile. They are made as the sandbox's user, as the first ones were: the owner of the user namespace may have ports
below 1024.
"""

from __future__ import annotations

import _socket
import errno

from app.launcher.daemon.checks import Refusal, check_ports
from app.launcher.daemon.cloning import EffectiveUser
from app.launcher.daemon.probe import in_network
from app.launcher.daemon.sandbox_process import SandboxProcess
from app.launcher.protocol import BACKLOG, MOST_PORTS
from app.launcher.sandbox.network import has_ipv6, listener

_STEP = "listen"
_SO_NETNS_COOKIE, _COOKIE_BYTES = 71, 8  # asm-generic/socket.h; Linux 5.14


def change_listeners(sandbox: SandboxProcess, ports: list[int], ended: list[int], own_network: int) -> list[int]:
    """Makes a listener for each of `ports`, and then stops those whose descriptors are in `ended`, whoever else holds
    them. Raises Refusal, and then nothing has changed.

    A gateway may keep copies. So only a listener that it sends makes room for another one. That bounds a gateway that
    keeps to its program, and not one that was taken over: whoever has a copy of a stopped listener can let it listen
    again, and a connection that was accepted can be taken apart and made a listener. What such a gateway gains is
    backlogs in the namespace of the sandbox, as many as it may have descriptors.
    """
    check_ports(ports)
    if sandbox.creating is not None or not sandbox.plan.ports:
        raise Refusal(_STEP, errno.ENOENT, "the sandbox is not ready, or has no network")
    left = (sandbox.ports - _ports_of(ended, sandbox, own_network)) | set(ports)
    if len(left) > MOST_PORTS:
        raise Refusal(_STEP, errno.ERANGE, f"there would be {len(left)} ports, the ceiling is {MOST_PORTS}")
    made = _listeners(ports, BACKLOG // max(1, len(left)), sandbox, own_network)
    for descriptor in ended:
        _stop(descriptor)
    sandbox.ports = left
    return [socket.detach() for socket in made]


def _listeners(ports: list[int], backlog: int, sandbox: SandboxProcess, own_network: int) -> list[_socket.socket]:
    """Raises Refusal, and then there is none."""
    made: list[_socket.socket] = []
    port = 0

    def listen() -> None:
        nonlocal port
        user = EffectiveUser(sandbox.uid)
        try:
            for port in ports:
                # A port that it has already is free again only if the answer with its listener was lost.
                made.append(listener(port, backlog, ipv6=has_ipv6(), alone=port in sandbox.ports))
        finally:
            user.end()

    try:
        in_network(sandbox.pid, own_network, listen)
    except OSError as error:
        for socket in made:
            socket.close()
        held = error.errno == errno.EADDRINUSE
        detail = f"a program of the sandbox holds port {port}" if held else f"port {port}: {error.strerror}"
        raise Refusal(_STEP, error.errno or 0, detail) from error
    return made


def _ports_of(ended: list[int], sandbox: SandboxProcess, own_network: int) -> set[int]:
    """The ports that are free when those have ended. Raises Refusal for what is no TCP socket of this sandbox, and for
    one that has a port of it and does not listen: an accepted connection has its listener's port too.

    A socket of another port is as good as stopped. It is sent again where the answer was lost that told of its end.
    """
    found: list[int] = []
    try:
        cookie = in_network(sandbox.pid, own_network, _cookie_here)
        for descriptor in ended:
            socket = _socket.socket(fileno=descriptor)
            try:
                is_tcp = socket.type == _socket.SOCK_STREAM and socket.family in (_socket.AF_INET, _socket.AF_INET6)
                is_its_own = is_tcp and _cookie_of(socket) == cookie
                port = socket.getsockname()[1] if is_its_own else 0
                if not is_its_own or (port in sandbox.ports and not _listens(socket)):
                    raise Refusal(_STEP, errno.EINVAL, "a listener that ends is none of the sandbox's")
                found.append(port)
            finally:
                socket.detach()
    except OSError as error:
        raise Refusal(_STEP, error.errno or 0, f"a listener that ends cannot be read: {error.strerror}") from error
    if len(set(found)) != len(ended):
        raise Refusal(_STEP, errno.EINVAL, "two of the listeners that end have the same port")
    return set(found)


def _listens(socket: _socket.socket) -> bool:
    return socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN) == 1


def _cookie_here() -> bytes:
    """Names the network namespace."""
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        return _cookie_of(socket)
    finally:
        socket.close()


def _cookie_of(socket: _socket.socket) -> bytes:
    return socket.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)


def _stop(descriptor: int) -> None:
    """What waits in its backlog is reset. A listener that has been stopped before cannot be, which is as good."""
    socket = _socket.socket(fileno=descriptor)
    try:
        socket.shutdown(_socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        socket.detach()
