"""The gateway's end of the egress process's socket: listeners and rules go out, names and events come in.

What the egress process needs of a sandbox is kept here for the sandbox's life: its sockets, its rules, its secrets, the
authority that its programs trust, which address was given to which name, and how many bytes it has moved. So another
egress process gets all of it again, and programs in the sandbox find the same addresses and the same authority. Until
then connections wait in the listeners' backlogs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.core.errors import BackendTimeout, BackendUnavailable
from app.core.network_log import NetworkEvent, NetworkLog
from app.core.network_rules import NetworkRule
from app.core.operator_secrets import OperatorSecrets
from app.core.secrets import Secret
from app.egress.protocol import (
    MAX_NAMES,
    VERSION,
    BytesMoved,
    CloseNetwork,
    EventsDropped,
    Hello,
    InvalidMessage,
    KeyPair,
    KnownSecret,
    NameGiven,
    NetworkChanged,
    NetworkClosed,
    NetworkNotChanged,
    NetworkNotOpened,
    NetworkOpened,
    NetworkSecret,
    NetworkSetup,
    Report,
    change_packets,
    close,
    decode_report,
    encode,
    open_packets,
    receive,
    send,
)

ANSWER_SECONDS = 10.0
GREETING_SECONDS = 2.0
CLOSED_SECONDS = 5.0
_FIRST_DELAY, _LONGEST_DELAY = 0.01, 0.5  # seconds before another try to connect
_STABLE_SECONDS = 5.0
_AGAIN_SECONDS = 1.0  # after which a sandbox is offered again that the egress process had no room for
_PACKETS_A_TURN = 64  # a busy egress process must not keep the loop from others
# Names that are kept beyond the first ones of each sandbox, of all sandboxes together: about 25 MiB. A name that is not
# kept gets another address from the next egress process.
OWN_NAMES, SHARED_NAMES = 64, 65_536


class ProgramSockets(Protocol):
    """What the egress process gets of a sandbox: the resolver's descriptor, and those of the listeners in the order of
    their ports."""

    @property
    def descriptors(self) -> Sequence[int]: ...

    @property
    def listeners(self) -> Mapping[int, int]: ...


@dataclass(eq=False, slots=True)
class _Network:
    """Of one sandbox."""

    runtime: str
    id: str
    rules: tuple[NetworkRule, ...]
    sockets: ProgramSockets | None
    credential: str
    client: str  # as the egress process knows it
    log: NetworkLog
    opened: asyncio.Future[None]
    closed: asyncio.Future[None]
    names: dict[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    authority: KeyPair | None = None
    moved: int = 0  # bytes, as the egress process has last told
    told: bool = False  # the egress process was sent something about it
    is_reopening: bool = False  # it was told to close it, and gets it again when it has
    changes: deque[asyncio.Future[None]] = field(default_factory=deque)  # of each order to change, until its answer
    reopenings: list[asyncio.Future[None]] = field(default_factory=list)  # of changes that its end carries out

    def changed(self) -> None:
        """Nothing is open any more that the rules do not permit. Answers to orders may still come."""
        for change in (*self.changes, *self.reopenings):
            if not change.done():
                change.set_result(None)
        self.reopenings.clear()

    def is_forgotten(self) -> None:
        """The egress process does not know of it."""
        self.told = self.is_reopening = False
        self.changed()
        self.changes.clear()


@dataclass(frozen=True, slots=True)
class _Packet:
    data: bytes = field(repr=False)  # may have a secret
    network: _Network
    descriptors: Sequence[int] = ()
    is_change: bool = False


class EgressLink:
    """Connects when a sandbox needs it, and again after a loss, while there is a sandbox. `report` is called with the
    runtime and every event of every sandbox. `shared`: there are several clients, and each has a share of the
    connections."""

    def __init__(
        self,
        path: Path,
        report: Callable[[str, NetworkEvent], None],
        operators: OperatorSecrets | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._path, self._report, self._shared = path, report, shared
        self._word = os.urandom(16)
        self._operators = operators or OperatorSecrets()
        self._operators.listen(self._secrets_changed)
        self._networks: dict[str, _Network] = {}
        self._closing: dict[str, _Network] = {}
        self._shared_names = 0
        self._socket: socket.socket | None = None
        self._greeting = asyncio.Event()
        self._connected_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._delay = _FIRST_DELAY
        self._unsent: deque[_Packet] = deque()

    # --- sandboxes

    async def open(
        self,
        runtime: str,
        sandbox_id: str,
        rules: Sequence[NetworkRule],
        sockets: ProgramSockets | None,
        log: NetworkLog,
        secrets: Sequence[Secret] = (),
        authority: KeyPair | None = None,
        credential: str = "",
        client: str = "",
    ) -> None:
        """Returns when the egress process serves the sandbox. The sockets stay the caller's, who calls `close` before
        it closes them. `authority`: that of the sandbox, if its programs trust one. Without sockets the sandbox's
        programs use the egress process's proxy, by the sandbox's id and this password. `client` is whose sandbox it
        is. Raises BackendUnavailable, and then nothing of the sandbox is left here."""
        loop = asyncio.get_running_loop()
        network = _Network(
            runtime,
            sandbox_id,
            tuple(rules),
            sockets,
            credential,
            self._pseudonym(client) if self._shared else "",
            log,
            loop.create_future(),
            loop.create_future(),
            secrets=tuple(secrets),
            authority=authority,
        )
        self._networks[sandbox_id] = network
        try:
            if self._socket is None:
                self._connect()
            if self._greeting.is_set():
                self._send_open(network)
            async with asyncio.timeout(ANSWER_SECONDS):
                await network.opened
        except BaseException as error:
            self.close(sandbox_id)
            if isinstance(error, TimeoutError):
                why = f"the egress process did not answer within {ANSWER_SECONDS:g} seconds"
                raise BackendUnavailable(runtime, why) from None
            if isinstance(error, OSError):
                why = f"the egress process does not answer: {error.strerror}"
                raise BackendUnavailable(runtime, why) from error
            raise

    async def change(self, sandbox_id: str, rules: Sequence[NetworkRule], new_ports: Sequence[int] = ()) -> None:
        """Gives the sandbox other rules, in this egress process and in every later one. Its sockets have the listeners
        of `new_ports` already, and those of ports that no rule has any more are gone. Returns when no connection is
        open that the rules do not permit. Raises BackendTimeout when the egress process does not confirm that."""
        network = self._networks.get(sandbox_id)
        if network is None:
            return
        network.rules = tuple(rules)
        if not self._greeting.is_set() or not network.told:  # nothing is open, and the next one gets the new rules
            return
        change = asyncio.get_running_loop().create_future()
        if network.is_reopening or any(packet.network is network for packet in self._unsent):
            self._send_anew(network)
            network.reopenings.append(change)
        else:
            self._send_change(network, new_ports)
            network.changes.append(change)
        done, _ = await asyncio.wait([change], timeout=ANSWER_SECONDS)
        if not done:
            why = f"the egress process did not answer within {ANSWER_SECONDS:g} seconds"
            raise BackendTimeout(network.runtime, f"{why}; the new rules hold, but connections may still be open")

    async def unavailable_reason(self) -> str:
        """Returns why no sandbox can have a network now, or "". Connects if need be. A process that hangs after it has
        greeted is not noticed."""
        try:
            if self._socket is None:
                self._connect()
            async with asyncio.timeout(GREETING_SECONDS):
                await self._greeting.wait()
        except TimeoutError:
            return f"the egress process did not greet within {GREETING_SECONDS:g} seconds"
        except OSError as error:
            return f"the egress process does not answer: {error.strerror}"
        return ""

    def close(self, sandbox_id: str) -> None:
        """Forgets the sandbox, and has the egress process cut its connections. Idempotent."""
        network = self._networks.pop(sandbox_id, None)
        if network is None:
            return
        self._shared_names -= max(0, len(network.names) - OWN_NAMES)
        if not network.opened.done():
            network.opened.set_exception(BackendUnavailable(network.runtime, "the sandbox has ended"))
            network.opened.exception()  # its create may wait no more
        network.changed()
        self._unsent = deque(packet for packet in self._unsent if packet.network is not network)
        if network.told:
            self._closing[sandbox_id] = network
            self._post(_Packet(encode(CloseNetwork(sandbox_id)), network))

    async def closed(self, sandbox_id: str) -> None:
        """Returns when the egress process holds nothing of the sandbox any more and all of its events are in its log,
        or when it has been silent about this for a while."""
        network = self._closing.get(sandbox_id)
        if network is not None:
            await asyncio.wait([network.closed], timeout=CLOSED_SECONDS)
            self._closing.pop(sandbox_id, None)

    def aclose(self) -> None:
        """Closes all sandboxes, and hangs up."""
        for sandbox_id in tuple(self._networks):
            self.close(sandbox_id)
        self._lose()

    # --- the connection

    def _connect(self) -> None:
        """Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        loop = asyncio.get_running_loop()
        self._socket, self._connected_at = connection, loop.time()
        loop.add_reader(connection.fileno(), self._readable)

    def _lose(self) -> None:
        """Hangs up. Connects again if there is a sandbox."""
        loop = asyncio.get_running_loop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        connection, self._socket = self._socket, None
        if connection is not None:
            loop.remove_reader(connection.fileno())
            loop.remove_writer(connection.fileno())
            connection.close()
        self._greeting.clear()
        self._unsent.clear()
        for network in self._networks.values():
            network.is_forgotten()  # it cuts everything when we hang up, if it lives
        closing, self._closing = self._closing, {}
        for network in closing.values():
            if not network.closed.done():
                network.closed.set_result(None)
        if not self._networks:
            return
        if connection is not None and loop.time() - self._connected_at > _STABLE_SECONDS:
            self._delay = _FIRST_DELAY
        self._retry = loop.call_later(self._delay, self._connect_again)
        self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def _connect_again(self) -> None:
        self._retry = None
        if self._socket is None and self._networks:
            try:
                self._connect()
            except OSError:
                self._lose()

    # --- what is sent

    def _send_open(self, network: _Network) -> None:
        secrets = tuple(map(self._in_force, network.secrets))
        setup = NetworkSetup(network.rules, network.names, network.authority, secrets, network.credential)
        ports = tuple(network.sockets.listeners) if network.sockets is not None else ()
        *known, last = open_packets(network.id, ports, setup, network.client, network.moved)
        network.told = True
        for data in known:
            self._post(_Packet(data, network))
        self._post(_Packet(last, network, network.sockets.descriptors if network.sockets is not None else ()))

    def _send_change(self, network: _Network, new_ports: Sequence[int]) -> None:
        *known, last = change_packets(network.id, new_ports, network.rules)
        for data in known:
            self._post(_Packet(data, network))
        listeners = network.sockets.listeners if network.sockets is not None else {}
        self._post(_Packet(last, network, [listeners[port] for port in new_ports], is_change=True))

    def _send_anew(self, network: _Network) -> None:
        """Instead of what waits to be sent, whose rules and descriptors are no longer right. It is closed, and opened
        when that is done: until then names are given that the next opening has to know."""
        if network.is_reopening:
            return
        unsent = [packet for packet in self._unsent if packet.network is network]
        self._unsent = deque(packet for packet in self._unsent if packet.network is not network)
        for _ in filter(lambda packet: packet.is_change, unsent):  # nothing will answer it
            network.reopenings.append(network.changes.pop())
        network.is_reopening = True
        self._post(_Packet(encode(CloseNetwork(network.id)), network))

    def _pseudonym(self, client: str) -> str:
        """What the egress process knows a client by: it learns nothing about keys."""
        return hashlib.blake2b(client.encode(), key=self._word, digest_size=16).hexdigest()

    def _in_force(self, secret: Secret) -> NetworkSecret:
        found = self._operators.in_force(secret)
        value, hosts = ("", ()) if found is None else (found[0].reveal(), found[1])
        return NetworkSecret(secret.variable, secret.placeholder, value, hosts)

    def _secrets_changed(self) -> None:
        for network in self._networks.values():
            for secret in network.secrets:
                if network.told and not network.is_reopening and secret.source is not None:
                    self._post(_Packet(encode(KnownSecret(network.id, self._in_force(secret))), network))

    def _post(self, packet: _Packet) -> None:
        if self._unsent or not self._sent(packet):
            self._unsent.append(packet)
            if self._socket is not None:
                asyncio.get_running_loop().add_writer(self._socket.fileno(), self._writable)

    def _sent(self, packet: _Packet) -> bool:
        """False when the socket has no room now."""
        if self._socket is None:
            return True
        try:
            send(self._socket, packet.data, packet.descriptors)
        except BlockingIOError:
            return False
        except OSError:  # it is gone. Reading tells so, after what it has still said
            return True
        return True

    def _writable(self) -> None:
        while self._unsent:
            if not self._sent(self._unsent[0]):
                return
            self._unsent.popleft()
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket.fileno())

    # --- what comes

    def _readable(self) -> None:
        for _ in range(_PACKETS_A_TURN):
            if self._socket is None:
                return
            try:
                data, descriptors = receive(self._socket)
                close(descriptors)
                if not data or descriptors:
                    return self._lose()
                self._take(decode_report(data))
            except BlockingIOError:
                return
            except ConnectionResetError:  # told once, and before the packets that are still there: unix(7)
                continue
            except (OSError, InvalidMessage):
                return self._lose()

    def _take(self, report: Report) -> None:
        """Raises InvalidMessage."""
        if isinstance(report, Hello):
            return self._greet(report)
        if not self._greeting.is_set():
            raise InvalidMessage("no greeting")
        network = self._networks.get(report.sandbox) or self._closing.get(report.sandbox)
        if network is None:  # nobody waits for its end any more
            return None
        if isinstance(report, NetworkOpened):
            if not network.opened.done():
                network.opened.set_result(None)
        elif isinstance(report, NetworkNotOpened):
            self._not_opened(network, report.reason)
        elif isinstance(report, NetworkClosed):
            self._closed(network)
        elif isinstance(report, NetworkChanged | NetworkNotChanged):
            self._changed(network, report)
        elif isinstance(report, NameGiven):
            self._keep_name(network, report.name, report.address)
        elif isinstance(report, EventsDropped):
            network.log.drop(report.count)
        elif isinstance(report, BytesMoved):
            network.moved = report.count
        else:
            event = NetworkEvent(**report.event)
            network.log.add(event)
            self._report(network.runtime, event)
        return None

    def _greet(self, hello: Hello) -> None:
        if self._greeting.is_set() or hello.version != VERSION:
            raise InvalidMessage("another version, or a second greeting")
        self._greeting.set()
        for network in tuple(self._networks.values()):
            self._send_open(network)

    def _not_opened(self, network: _Network, reason: str) -> None:
        """Fails the create, or tries again for a sandbox that was open before."""
        if network.is_reopening:
            return
        network.told = False
        if not network.opened.done():
            why = f"the egress process cannot serve the sandbox: {reason}"
            network.opened.set_exception(BackendUnavailable(network.runtime, why))
        else:
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._open_again, network)

    def _closed(self, network: _Network) -> None:
        network.changed()
        if network.is_reopening and network.id not in self._closing:
            network.is_reopening = False
            self._send_open(network)
        if self._closing.pop(network.id, None) is network and not network.closed.done():
            network.closed.set_result(None)

    def _changed(self, network: _Network, report: NetworkChanged | NetworkNotChanged) -> None:
        """Raises InvalidMessage."""
        if network.id in self._closing:
            return
        if not network.changes:
            raise InvalidMessage("nothing was to change")
        change = network.changes.popleft()
        if change.done():  # it was opened anew since
            return
        change.set_result(None)
        if isinstance(report, NetworkNotChanged):
            self._not_opened(network, report.reason)

    def _open_again(self, network: _Network) -> None:
        if self._greeting.is_set() and not network.told and self._networks.get(network.id) is network:
            self._send_open(network)

    def _keep_name(self, network: _Network, name: str, address: str) -> None:
        if network.names.get(name, address) != address or len(network.names) >= MAX_NAMES:
            raise InvalidMessage("a name that has another address, or one too many")
        if name in network.names or network.id not in self._networks:
            return
        if len(network.names) >= OWN_NAMES:
            if self._shared_names >= SHARED_NAMES:
                return
            self._shared_names += 1
        network.names[name] = address
