"""The network of one sandbox: its resolver, its listeners, its connections, its share of everything."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.core.budget import Budget
from app.core.network_rules import NetworkRule, ports_of, rule_for, rules_for
from app.egress.config import EgressConfig
from app.egress.connection import Destination, ProgramConnection
from app.egress.dialling import Dialler
from app.egress.host_certificates import HostCertificates, SandboxAuthority
from app.egress.names import NameTable
from app.egress.placeholders import Placeholders
from app.egress.protocol import NetworkSetup
from app.egress.proxied_connections import ProxiedConnection
from app.egress.rates import Rate
from app.egress.reasons import Reason
from app.egress.resolver import Resolver
from app.egress.sockets import NO_DESCRIPTORS, SpareDescriptor, reset
from app.egress.splice import KEPT, KEPT_PER_SANDBOX, KeptBytes
from app.egress.times import Times
from app.egress.told import Reports, Told
from app.egress.turns import SandboxTurns
from app.egress.upstream_tls import UpstreamTls

QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE = 200, 500  # 0.1 ms of processor time each
ACCEPTS = 16  # in one turn: a program that opens many connections at once must not overrun the backlog
# A reset costs 0.05 ms. After one nobody listens for a moment, and the kernel refuses, at the program's expense.
# At a bound of its own the sandbox is heard again when there is room, or after two seconds, so that the next refusal is
# told. What found the backlog full tries again after one second, and is refused then.
PAUSE_SECONDS, LONG_PAUSE_SECONDS = 0.01, 2.0
BACKLOG = 128  # connections of all ports together that are not accepted yet, as when the launcher made the listeners
_OF_THE_SANDBOX = (Reason.CONNECTIONS_PER_SANDBOX, Reason.BYTES)
MOVED_PARTS = 100  # of the bytes that a sandbox may move. After each the gateway is told, for the next egress process
WIDE_CONNECTIONS = 16  # of a sandbox, for which the kernel may hold more


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sandboxes have together."""

    config: EgressConfig
    dialler: Dialler
    connections: Budget
    kept: KeptBytes
    spare: SpareDescriptor
    times: Times
    upstream_tls: UpstreamTls
    certificates: HostCertificates

    @classmethod
    def of(cls, config: EgressConfig, times: Times, trusted: ssl.SSLContext) -> Shared:
        """Raises ValueError for an address in the configuration that is none."""
        dialler = Dialler(config.permit_nets, config.own_nets, config.resolver, config.service, times)
        return cls(
            config,
            dialler,
            Budget("connections", config.connections, "client"),
            KeptBytes(KEPT),
            SpareDescriptor(),
            times,
            UpstreamTls(trusted, times.connect),
            HostCertificates(),
        )


class SandboxNetwork:
    """Owns `resolver` and `listeners` from now on. Must be closed. Without them its connections come by `take`."""

    def __init__(
        self,
        sandbox: str,
        setup: NetworkSetup,
        resolver: socket.socket | None,
        listeners: Sequence[socket.socket],
        shared: Shared,
        reports: Reports,
        client: str = "",
        moved: int = 0,
    ) -> None:
        """`client`: "" if there is only one. `moved`: bytes in earlier processes. Raises OSError when there are no
        descriptors left."""
        self.sandbox, self.rules, self.shared = sandbox, setup.rules, shared
        self._client = client
        self._holder = client or sandbox  # of connections
        self.turns = SandboxTurns()
        self.told = Told(sandbox, reports)
        self.names = NameTable(setup.names)
        self.placeholders = Placeholders(setup.secrets)
        self.authority = None if setup.authority is None else SandboxAuthority(setup.authority)
        self.kept = KeptBytes(KEPT_PER_SANDBOX, shared.kept)
        self._rate = Rate(shared.config.connections_per_second, shared.config.connections_per_second)
        self._questions = Rate(QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE)
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._bytes = self._bytes_told = moved
        self._is_closed = self._listening_is_paused = False
        self._connections: dict[asyncio.Task[None], ProgramConnection] = {}
        self._listeners = list(listeners)
        self._resolver: Resolver | None = None
        for opened in (*((resolver,) if resolver is not None else ()), *listeners):
            opened.setblocking(False)
        if resolver is not None:
            self._resolver = Resolver(resolver, self.names, self.permits, self.told.name, self._name_refused)
            self._answer_questions()
        self._listen()

    async def aclose(self) -> None:
        """Cuts all connections. Repeatable."""
        if self._is_closed:
            return
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        for opened in self._sockets:  # nothing more is served by these rules
            self.turns.forget(opened.fileno())
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.told.close()
        self.turns.close()
        if self.authority is not None:
            self.shared.certificates.forget(self.authority)
        for opened in self._sockets:
            opened.close()

    @property
    def _sockets(self) -> tuple[socket.socket, ...]:
        return (*((self._resolver.endpoint,) if self._resolver is not None else ()), *self._listeners)

    def change(self, rules: Sequence[NetworkRule], listeners: Sequence[socket.socket]) -> Coroutine[Any, Any, None]:
        """Replaces the rules. `listeners` are new ones, and those of ports that no rule has any more are closed. What
        is returned waits until every connection that is not permitted any more is cut."""
        self.rules = tuple(rules)
        if self._resolver is not None:
            self._resolver.forget_answers()
        ports = ports_of(rules)
        for listener in listeners:
            listener.setblocking(False)
        self._listeners += listeners
        for listener in tuple(self._listeners):
            if listener.getsockname()[1] not in ports:
                self._listeners.remove(listener)
                self.turns.forget(listener.fileno())
                listener.close()
        self._listen()
        cut = [task for task, connection in self._connections.items() if connection.is_cut_by_change()]
        for task in cut:
            _cut(task)
        return self._cut_requests(cut)

    async def _cut_requests(self, cut: list[asyncio.Task[None]]) -> None:
        """Those that are under way and no longer permitted. `cut`: what is cut already."""
        for task, connection in tuple(self._connections.items()):
            if task not in cut and await connection.is_request_cut_by_change():
                _cut(task)
                cut.append(task)
        await asyncio.gather(*cut, return_exceptions=True)

    # --- names

    def permits(self, name: str) -> bool:
        return any(rule.matches(name) for rule in self.rules)

    def rule_for(self, host: str, port: int) -> NetworkRule | None:
        return rule_for(self.rules, host, port)

    def rules_for(self, host: str, port: int) -> tuple[NetworkRule, ...]:
        return rules_for(self.rules, host, port)

    def _name_refused(self, name: str, reason: Reason) -> None:
        self.told.refusal("name", reason, name=name)

    def _answer_questions(self) -> None:
        if self._resolver is not None:
            self.turns.read(self._resolver.endpoint.fileno(), partial(self._question, self._resolver))

    def _question(self, resolver: Resolver) -> None:
        """Beyond the rate questions stay in the kernel's buffer, which drops what does not fit."""
        if self._questions.take():
            resolver.serve_one()
            return
        self.turns.read(resolver.endpoint.fileno(), None)
        self._later(self._questions.wait_seconds, self._answer_questions)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._not_later(call)
        self._timers[call] = asyncio.get_running_loop().call_later(seconds, call)

    def _not_later(self, call: Callable[[], None]) -> None:
        timer = self._timers.pop(call, None)
        if timer is not None:
            timer.cancel()

    # --- connections

    def _listen(self) -> None:
        if self._is_closed:
            return
        self._not_later(self._listen)  # a change of the rules ends a pause
        self._listening_is_paused = False
        try:
            for listener in self._listeners:
                listener.listen(BACKLOG // len(self._listeners))
                self.turns.read(listener.fileno(), partial(self._accept, listener))
        except OSError:  # the kernel has no memory
            self._later(LONG_PAUSE_SECONDS, self._listen)

    def _pause_listening(self, seconds: float) -> None:
        """What waits is reset, and what comes is refused, both by the kernel at once."""
        self._listening_is_paused = True
        for listener in self._listeners:
            self.turns.read(listener.fileno(), None)
            with contextlib.suppress(OSError):  # the launcher has stopped it: a change of the rules drops its port
                listener.shutdown(socket.SHUT_RD)
        self._later(seconds, self._listen)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Returns whether there may be another one."""
        try:
            connection = self.shared.spare.accept(listener)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._connection_refused(listener, Reason.DESCRIPTORS)
            elif error.errno == errno.EINVAL:  # likewise
                self.turns.forget(listener.fileno())
            return False
        reason = self._bound_reached()
        if reason is not None:
            self._connection_refused(listener, reason)
            reset(connection)
            self._pause_listening(LONG_PAUSE_SECONDS if reason in _OF_THE_SANDBOX else PAUSE_SECONDS)
            return False
        connection.setblocking(False)
        self._run(ProgramConnection(self, connection, Destination.of(connection, self.names), wide=self._has_wide))
        return True

    def take(
        self, connection: socket.socket, destination: Destination, first: bytes, kind: type[ProxiedConnection]
    ) -> Reason | None:
        """Serves an accepted connection from now on, or returns why not. Then it stays the caller's."""
        reason = self._bound_reached()
        if reason is None:
            self._run(kind(self, connection, destination, first, wide=self._has_wide))
        else:
            self.told.refusal(
                "connection", reason, name=destination.name, address=destination.address, port=destination.port
            )
        return reason

    @property
    def _has_wide(self) -> bool:
        return len(self._connections) < WIDE_CONNECTIONS

    def _run(self, connection: ProgramConnection) -> None:
        self.shared.connections.take(self._holder)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._connections[task] = connection
        task.add_done_callback(self._connection_ended)

    def _bound_reached(self) -> Reason | None:
        config = self.shared.config
        if config.bytes_per_sandbox and self._bytes >= config.bytes_per_sandbox:
            return Reason.BYTES
        if len(self._connections) >= config.connections_per_sandbox:
            return Reason.CONNECTIONS_PER_SANDBOX
        reason = self._share_reached()
        if reason is None and not self._rate.take():
            return Reason.CONNECTIONS_PER_SECOND
        return reason

    def _share_reached(self) -> Reason | None:
        connections = self.shared.connections
        if not self._client:
            return None if connections.fits(self.sandbox) else Reason.CONNECTIONS
        # The sandboxes of a client share in the same way what it may have. To have half is to have what is left.
        left = connections.share(self._client) - connections.held(self._client)
        return Reason.CONNECTIONS_PER_CLIENT if len(self._connections) >= left else None

    def _connection_refused(self, listener: socket.socket, reason: Reason) -> None:
        self.told.refusal("connection", reason, port=listener.getsockname()[1])

    def _connection_ended(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        self.shared.connections.give_back(self._holder)
        if self._listening_is_paused and not self._is_closed:
            self._listen()

    def count(self, size: int) -> bool:
        """Returns False when the sandbox has moved more bytes than it may."""
        self._bytes += size
        most = self.shared.config.bytes_per_sandbox
        if not most:
            return True
        if self._bytes > most or self._bytes - self._bytes_told >= most // MOVED_PARTS:
            self._bytes_told = self._bytes
            self.told.moved(self._bytes)
        return self._bytes <= most


def _cut(task: asyncio.Task[None]) -> None:
    """Once: an earlier change may have done so, and a second time would disturb what the task does to end."""
    if not task.cancelling():
        task.cancel()
