"""The network of a plan with ports. Every address is the sandbox's own, as that of its loopback is. What listens on a
listed port belongs to somebody outside. So a program connects to any address, and no packet leaves the namespace."""

from __future__ import annotations

import _socket
import errno

from app.launcher.kernel.rtnetlink import add_local_default_route, add_loopback_address
from app.launcher.protocol import BACKLOG, RESOLVER_ADDRESS

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV)  # not built in, or switched off
_CLOEXEC = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
# Of the nets for documentation (RFC 5737, RFC 3849): they are nobody's.
_SOMEWHERE, _SOMEWHERE_IPV6 = "203.0.113.1", "2001:db8::1"


def own_every_address() -> bool:
    """Makes every address one of the loopback's ("AnyIP"). Needs CAP_NET_ADMIN in the namespace. Returns whether IPv6
    is there too, which a host may lack. Raises OSError.

    With AI_ADDRCONFIG, getaddrinfo(3) of glibc finds IPv4 addresses only where an interface has one besides 127.0.0.1.
    The resolver's is such an address.
    """
    add_loopback_address(_socket.inet_aton(RESOLVER_ADDRESS[0]))
    add_local_default_route(_socket.AF_INET)
    try:
        add_local_default_route(_socket.AF_INET6)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return False
    return True


def has_ipv6() -> bool:
    """Whether the kernel knows it. Where it is only switched off, a socket of both kinds still hears IPv4."""
    try:
        _socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM | _CLOEXEC, 0).close()
    except OSError:
        return False
    return True


def listeners(ports: list[int], *, ipv6: bool) -> list[_socket.socket]:
    """A listening socket for each port, of every address. Raises OSError.

    Beyond the backlog connections are not answered until there is room. What they sent is charged to nobody until then.
    With BACKLOG for each of 16 ports a sandbox took 205 MiB of the host, measured.
    """
    return [listener(port, BACKLOG // len(ports), ipv6=ipv6) for port in ports]


def listener(port: int, backlog: int, *, ipv6: bool, alone: bool = False) -> _socket.socket:
    """A listening socket of every address. Raises OSError, EADDRINUSE also for a port that a program has bound.

    Without SO_REUSEADDR nobody else can have the port, whatever they set. With SO_REUSEPORT, which no program gets, its
    owner can stop listening and begin again while connections are open; nobody else can have it meanwhile. And a later
    listener of the same user may have the port although an earlier one's connections are still there, or ended less
    than a minute ago. `alone`: it may not, as the earlier one may still listen.
    """
    socket = _socket.socket(_socket.AF_INET6 if ipv6 else _socket.AF_INET, _socket.SOCK_STREAM | _CLOEXEC, 0)
    try:
        if ipv6:
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
        if not alone:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        socket.bind(("::" if ipv6 else "0.0.0.0", port))  # noqa: S104 - of a namespace without a way out
        socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        socket.listen(backlog)
    except OSError:
        socket.close()
        raise
    return socket


def name_socket() -> _socket.socket:
    """The socket to which programs send their questions for names. Raises OSError."""
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _CLOEXEC, 0)
    socket.bind(RESOLVER_ADDRESS)
    return socket


def prove_any_address(*, ipv6: bool) -> None:
    """Asks the kernel for a way to addresses that are nobody's. Nothing is sent. Raises OSError."""
    for family, address in ((_socket.AF_INET, _SOMEWHERE), (_socket.AF_INET6, _SOMEWHERE_IPV6))[: 1 + ipv6]:
        socket = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
        try:
            socket.connect((address, 9))
        finally:
            socket.close()


def prove_refused(expected: int) -> None:
    """Tries a TCP connection to the resolver's port, which nobody may list. Raises OSError unless it is refused with
    this errno."""
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        socket.connect((_SOMEWHERE, RESOLVER_ADDRESS[1]))
    except OSError as error:
        if error.errno != expected:
            raise
        return
    finally:
        socket.close()
    raise OSError(errno.ENOTSUP, "a port that is not listed can be connected to")
