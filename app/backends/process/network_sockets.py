"""What a sandbox with a network shares with the outside: sockets of its own namespace, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from app.backends.process.link import close_all
from app.launcher.protocol import BACKLOG, RESOLVER_ADDRESS


class NetworkSockets:
    """Descriptors of sockets in the network namespace of one sandbox. Whoever holds them decides what becomes of its
    connections, as no packet leaves the namespace. `close` closes them; a process that they were sent to has its own.

    `resolver`: the UDP socket to which programs send their questions for names. `listeners`: port -> the TCP socket
    that listens on this port of every address.
    """

    def __init__(self, descriptors: Sequence[int], ports: Sequence[int]) -> None:
        """`descriptors`: the resolver's, then a listener for each port, in their order. They are closed when one of
        them is something else: that raises ValueError."""
        _check(descriptors, [(socket.SOCK_DGRAM, RESOLVER_ADDRESS[1]), *_listening(ports)])
        self.resolver = descriptors[0]
        self._listeners = dict(zip(ports, descriptors[1:], strict=True))

    @property
    def listeners(self) -> Mapping[int, int]:
        """Port -> descriptor, by port."""
        return MappingProxyType(self._listeners)

    @property
    def descriptors(self) -> Sequence[int]:
        """The resolver's, and those of the listeners in the order of their ports. Empty after `close`."""
        return (self.resolver, *self._listeners.values()) if self.resolver >= 0 else ()

    def change(self, descriptors: Sequence[int], ports: Sequence[int], ended: Collection[int]) -> None:
        """Closes the listeners of the ports `ended`, and takes over those of new ports. These are closed when one is
        something else: that raises ValueError, and nothing has changed.

        The backlogs of all listeners together stay the same.
        """
        _check(descriptors, _listening(ports))
        close_all([self._listeners.pop(port) for port in ended])
        found = {**self._listeners, **dict(zip(ports, descriptors, strict=True))}
        self._listeners = {port: found[port] for port in sorted(found)}
        for descriptor in self._listeners.values():
            listener = socket.socket(fileno=descriptor)
            listener.listen(BACKLOG // len(self._listeners))
            listener.detach()

    def close(self) -> None:
        close_all(self.descriptors)
        self.resolver = -1
        self._listeners.clear()


def _listening(ports: Sequence[int]) -> list[tuple[int, int]]:
    return [(socket.SOCK_STREAM, port) for port in ports]


def _check(descriptors: Sequence[int], wanted: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError, and then they are closed."""
    try:
        bound = [_bound_to(descriptor) for descriptor in descriptors]
    except OSError as error:
        close_all(descriptors)
        raise ValueError(f"the sockets of its network cannot be read: {error.strerror}") from error
    if bound != list(wanted):
        close_all(descriptors)
        raise ValueError("the sockets of its network are not those of its ports")


def _bound_to(descriptor: int) -> tuple[int, int]:
    """Type and port. Raises OSError."""
    found = socket.socket(fileno=descriptor)
    try:
        return found.type, found.getsockname()[1]
    finally:
        found.detach()
