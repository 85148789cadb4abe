"""What a sandbox with a network shares with the outside: sockets of its own namespace, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from app.backends.process.link import close_all
from app.launcher.protocol import RESOLVER_ADDRESS


class NetworkSockets:
    """Descriptors of sockets in the network namespace of one sandbox. Whoever holds them decides what becomes of its
    connections, as no packet leaves the namespace. `close` closes them; a process that they were sent to has its own.

    `resolver`: the UDP socket to which programs send their questions for names. `listeners`: port -> the TCP socket
    that listens on this port of every address.
    """

    def __init__(self, descriptors: Sequence[int], ports: Sequence[int]) -> None:
        """`descriptors`: the resolver's, then a listener for each port, in their order. They are closed when one of
        them is something else: that raises ValueError."""
        self._descriptors = list(descriptors)
        try:
            bound = [_bound_to(descriptor) for descriptor in self._descriptors]
        except OSError as error:
            self.close()
            raise ValueError(f"the sockets of its network cannot be read: {error.strerror}") from error
        wanted = [(socket.SOCK_DGRAM, RESOLVER_ADDRESS[1]), *((socket.SOCK_STREAM, port) for port in ports)]
        if bound != wanted:
            self.close()
            raise ValueError("the sockets of its network are not those of its ports")
        self.resolver = self._descriptors[0]
        self.listeners: Mapping[int, int] = MappingProxyType(dict(zip(ports, self._descriptors[1:], strict=True)))

    @property
    def descriptors(self) -> Sequence[int]:
        """The resolver's, and those of the listeners in the order of their ports."""
        return tuple(self._descriptors)

    def close(self) -> None:
        close_all(self._descriptors)
        self._descriptors.clear()


def _bound_to(descriptor: int) -> tuple[int, int]:
    """Type and port. Raises OSError."""
    found = socket.socket(fileno=descriptor)
    try:
        return found.type, found.getsockname()[1]
    finally:
        found.detach()
