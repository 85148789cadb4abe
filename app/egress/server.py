"""All sandboxes of one gateway: carries out its orders, and closes everything when it hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import NoReturn

from app.egress import protocol
from app.egress.config import EgressConfig
from app.egress.connect_proxy import ConnectProxy
from app.egress.network import SandboxNetwork, Shared
from app.egress.peer import Peer
from app.egress.protocol import (
    ChangeNetwork,
    CloseNetwork,
    Hello,
    KnownSecret,
    NetworkChanged,
    NetworkClosed,
    NetworkNotChanged,
    NetworkNotOpened,
    NetworkOpened,
    NetworkSetup,
    OpenNetwork,
    Order,
    Report,
    SetupAssembly,
)
from app.egress.times import Times

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7), SO_PEERCRED


class EgressServer:
    """Serves one gateway at a time, one of the uid in the configuration. The next one waits, others are refused. A
    health check is greeted before it is refused, so it sees that this process is alive."""

    def __init__(self, listener: socket.socket, config: EgressConfig, trusted: ssl.SSLContext) -> None:
        """Raises ValueError for an address in the configuration that is none."""
        self._loop = asyncio.get_running_loop()
        self._listener, self._uid, self._check_uid = listener, config.gateway_uid, config.check_uid
        self._shared = Shared.of(config, Times(), trusted)
        self._proxy = ConnectProxy(socket.socket(fileno=config.proxy), self._shared) if config.proxy >= 0 else None
        self._networks: dict[str, SandboxNetwork] = {}
        self._assembly = SetupAssembly()
        self._peer: Peer | None = None
        self._next: socket.socket | None = None
        self._closing: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection = self._shared.spare.accept(self._listener)
        except OSError:  # a gateway that was reset comes again
            return
        _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != self._uid:
            if uid == self._check_uid:
                _show_alive(connection)
            connection.close()
        elif self._peer is None:
            self._serve(connection)
        else:
            self._forget_next()
            self._next = connection

    def _serve(self, connection: socket.socket) -> None:
        self._peer = Peer(connection, self._carry_out, self._ended)
        self._peer.tell(Hello())

    def _forget_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def _ended(self) -> None:
        self._peer, self._assembly = None, SetupAssembly()
        for sandbox in list(self._networks):
            self._close(sandbox)
        if self._next is not None:
            following, self._next = self._next, None
            self._serve(following)

    async def aclose(self) -> None:
        """Cuts everything."""
        self._forget_next()
        if self._peer is not None:
            self._peer.close()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._proxy is not None:
            await self._proxy.aclose()
        self._shared.spare.close()

    # --- orders

    def _carry_out(self, order: Order, descriptors: list[int]) -> None:
        """Raises InvalidMessage."""
        if isinstance(order, OpenNetwork):
            self._open(order, self._assembly.take(order.sandbox), descriptors)
            return
        if isinstance(order, ChangeNetwork):
            self._change(order, self._assembly.take(order.sandbox), descriptors)
            return
        protocol.close(descriptors)
        if isinstance(order, CloseNetwork):
            self._assembly.take(order.sandbox)  # what was said before an order that never came
            self._close_by_order(order)
        elif isinstance(order, KnownSecret) and order.sandbox in self._networks:
            self._networks[order.sandbox].placeholders.replace(order.secret)
        else:
            self._assembly.add(order)

    def _open(self, order: OpenNetwork, setup: NetworkSetup, descriptors: list[int]) -> None:
        peer = self._peer
        if peer is None:
            protocol.close(descriptors)
            return
        try:
            if order.sandbox in self._networks:
                raise OrderRefused("it is open already")
            self._networks[order.sandbox] = self._network(order, setup, descriptors, peer)
        except OrderRefused as error:
            protocol.close(descriptors)
            peer.tell(NetworkNotOpened(order.sandbox, str(error)))
        else:
            peer.tell(NetworkOpened(order.sandbox))

    def _network(self, order: OpenNetwork, setup: NetworkSetup, descriptors: list[int], peer: Peer) -> SandboxNetwork:
        """Raises OrderRefused, and then has taken no descriptor."""
        if setup.credential:
            return self._proxied(order, setup, descriptors, peer)
        opened = _sockets(order.ports, descriptors)
        try:
            return SandboxNetwork(
                order.sandbox, setup, opened[0], opened[1:], self._shared, peer, order.client, order.moved
            )
        except OSError as error:
            for taken in opened:
                taken.detach()
            raise OrderRefused(error.strerror or str(error)) from error

    def _proxied(self, order: OpenNetwork, setup: NetworkSetup, descriptors: list[int], peer: Peer) -> SandboxNetwork:
        """Raises OrderRefused."""
        if self._proxy is None:
            raise OrderRefused("it has no proxy")
        if order.ports or descriptors:
            raise OrderRefused("a sandbox with a credential has no sockets")
        try:
            network = SandboxNetwork(order.sandbox, setup, None, (), self._shared, peer, order.client, order.moved)
        except OSError as error:
            raise OrderRefused(error.strerror or str(error)) from error
        self._proxy.add(setup.credential, network)
        return network

    def _change(self, order: ChangeNetwork, setup: NetworkSetup, descriptors: list[int]) -> None:
        """A network that cannot be changed is closed."""
        peer, network = self._peer, self._networks.get(order.sandbox)
        report: Report = NetworkChanged(order.sandbox)
        try:
            if network is None:
                raise OrderRefused("it is not open")
            listeners = _listeners(order.ports, descriptors)
        except OrderRefused as error:
            protocol.close(descriptors)
            report = NetworkNotChanged(order.sandbox, str(error))
            changing = self._close(order.sandbox)
        else:
            changing = self._track(self._loop.create_task(network.change(setup.rules, listeners)))
        if peer is not None:
            changing.add_done_callback(lambda _: peer.tell(report))

    def _close_by_order(self, order: CloseNetwork) -> None:
        peer = self._peer
        closing = self._close(order.sandbox)
        if peer is not None:
            closing.add_done_callback(lambda _: peer.tell(NetworkClosed(order.sandbox)))

    def _close(self, sandbox: str) -> asyncio.Task[None]:
        network = self._networks.pop(sandbox, None)
        if self._proxy is not None:
            self._proxy.remove(sandbox)
        return self._track(self._loop.create_task(network.aclose() if network is not None else asyncio.sleep(0)))

    def _track(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


def _show_alive(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        protocol.send(connection, protocol.encode(Hello()))


class OrderRefused(Exception):
    """`str(error)` is a sentence for people."""


def _sockets(ports: Sequence[int], descriptors: list[int]) -> list[socket.socket]:
    """The resolver's and the listeners. Takes the descriptors over as sockets, if they are what the order says. Raises
    OrderRefused, and then has taken none."""
    resolver, *listeners = _opened(len(ports) + 1, descriptors)
    if resolver.type != socket.SOCK_DGRAM or not all(map(_listens_on, listeners, ports)):
        _let_go([resolver, *listeners])
    return [resolver, *listeners]


def _listeners(ports: Sequence[int], descriptors: list[int]) -> list[socket.socket]:
    """Likewise, of listeners alone."""
    listeners = _opened(len(ports), descriptors)
    if not all(map(_listens_on, listeners, ports)):
        _let_go(listeners)
    return listeners


def _opened(count: int, descriptors: list[int]) -> list[socket.socket]:
    if len(descriptors) != count:
        raise OrderRefused("its sockets did not arrive: the egress process has no descriptors left")
    opened: list[socket.socket] = []
    try:
        for descriptor in descriptors:
            opened.append(socket.socket(fileno=descriptor))
    except OSError:
        _let_go(opened)
    return opened


def _let_go(opened: Sequence[socket.socket]) -> NoReturn:
    """Raises OrderRefused."""
    for taken in opened:
        taken.detach()
    raise OrderRefused("its sockets are not a resolver's and listeners of its ports")


def _listens_on(listener: socket.socket, port: int) -> bool:
    """It may have stopped listening when an earlier egress process ended."""
    with contextlib.suppress(OSError, IndexError):
        if listener.family in (socket.AF_INET, socket.AF_INET6) and listener.getsockname()[1] == port:
            listener.listen()
            return True
    return False
