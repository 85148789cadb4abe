"""One process sandbox: its owner socket, its executions, its receipt."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from app.backends.egress_link import EgressLink
from app.backends.process.agent import FileAgentClient
from app.backends.process.execution import LAST_WORD_SECONDS, ProcessExecution
from app.backends.process.files import ProcessFiles
from app.backends.process.link import LauncherLink, LauncherRefused, close_all, receive_packet
from app.backends.process.network_sockets import NetworkSockets
from app.backends.process.pipes import PipeBudget
from app.backends.process.terminal import PseudoTerminal
from app.backends.process.usage import resource_usage
from app.core.backend import Logs, settle
from app.core.errors import (
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    BulkheadError,
    CapacityExceeded,
    Conflict,
    LaunchFailed,
    UnsupportedByRuntime,
    Upstream,
    WrongState,
)
from app.core.files import Files
from app.core.models import Command, ResourceUsage
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule, ports_of
from app.core.secrets import Secret
from app.egress.protocol import KeyPair
from app.launcher.protocol import (
    DESTROY,
    EXITED,
    LISTEN,
    PAUSE,
    RECORD,
    RESUME,
    SIGNAL,
    START_FAILED,
    STARTED,
    TERMINAL,
    USAGE,
    ProtocolError,
    Writer,
)


class ProcessSandbox:
    """`on_end` is called once, when nothing of it is left."""

    def __init__(
        self,
        link: LauncherLink,
        sandbox_id: str,
        owner: socket.socket,
        budget: PipeBudget,
        files: Callable[[Callable[[Writer], FileAgentClient]], ProcessFiles],
        on_end: Callable[[], None],
    ) -> None:
        self._link, self.id, self._owner, self._budget, self._on_end = link, sandbox_id, owner, budget, on_end
        self._receipt: Mapping[str, Any] = {}
        self._environment: dict[str, str] = {}
        self.network_log: NetworkLog | None = None
        self._network: NetworkSockets | None = None
        self._egress: EgressLink | None = None
        self._has_authority = False
        self._executions: dict[int, ProcessExecution | FileAgentClient] = {}
        self._files = files(self._start_agent)
        self._number = 0
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._lost: asyncio.Future[str] = loop.create_future()
        self._ending: asyncio.Task[None] | None = None
        self._over = False
        self._paused = False
        loop.add_reader(owner.fileno(), self._readable)

    # --- the contract

    @property
    def receipt(self) -> Mapping[str, Any]:
        return self._receipt

    @property
    def network(self) -> NetworkSockets | None:
        """Of a sandbox whose policy has a network, until its end."""
        return self._network

    def connect(self, network: NetworkSockets) -> None:
        """Takes over the sockets, which it closes at its end."""
        if self._over:
            network.close()
        else:
            self._network = network

    async def open_network(
        self,
        egress: EgressLink,
        rules: Sequence[NetworkRule],
        secrets: Sequence[Secret] = (),
        authority: KeyPair | None = None,
        client: str = "",
    ) -> None:
        """Has the egress process serve the sandbox's sockets. `authority`: the one that its programs trust. `client`:
        whose sandbox it is. Raises BackendUnavailable, WrongState."""
        self._check_alive()
        if self._network is not None:
            self._egress, self.network_log, self._has_authority = egress, NetworkLog(), authority is not None
            log = self.network_log
            await egress.open("process", self.id, rules, self._network, log, secrets, authority, client=client)

    def prove(self, receipt: Mapping[str, Any]) -> None:
        self._receipt = receipt

    def add_environment(self, variables: Mapping[str, str]) -> None:
        """Of every command that does not have a variable of the same name."""
        self._environment |= variables

    @property
    def files(self) -> Files:
        return self._files

    def _start_agent(self, request: Writer) -> FileAgentClient:
        self._check_open()
        self._number += 1
        number = self._number
        agent = FileAgentClient(self._link, self.id, number, partial(self._executions.pop, number, None))
        self._executions[number] = agent
        agent.start(request, self._budget)
        return agent

    def _check_open(self) -> None:
        self._check_alive()
        if self._paused:
            raise WrongState("paused", "the sandbox is paused")

    def _check_alive(self) -> None:
        if self._over or self._ending is not None:
            raise WrongState("destroyed", "the sandbox has ended")

    async def execute(self, execution_id: str, command: Command, logs: Logs) -> ProcessExecution:
        self._check_open()
        with contextlib.ExitStack() as opened:
            terminal: PseudoTerminal | None = None
            if command.tty is not None:
                try:
                    terminal = await self._open_terminal()
                except LauncherRefused as refused:
                    return self._add_execution().refuse(refused)
                opened.callback(terminal.close)
                self._check_open()
            # The launcher refuses a number that is lower than one it has seen. So nothing is awaited from here until
            # the command is handed over.
            execution = self._add_execution()
            opened.pop_all()
        command = replace(command, env={**self._environment, **command.env})
        await execution.start(command, logs, self._budget, terminal)
        return execution

    async def _open_terminal(self) -> PseudoTerminal:
        """Raises LauncherRefused, CapacityExceeded, BackendUnavailable, BackendTimeout."""
        name = bytes(Writer(0).text(self.id).data[1:])
        try:
            return PseudoTerminal((await self._link.request(TERMINAL, name, due=1)).descriptors[0])
        except LauncherRefused as refused:
            if refused.errno == errno.EDQUOT:
                raise CapacityExceeded("terminals", holder="sandbox", detail=refused.detail) from refused
            raise

    def _add_execution(self) -> ProcessExecution:
        self._number += 1
        number = self._number
        forget = partial(self._executions.pop, number, None)
        execution = ProcessExecution(self._link, self.id, number, self._send_signal, self._violated, forget)
        self._executions[number] = execution
        return execution

    async def usage(self) -> ResourceUsage:
        self._check_alive()
        try:
            answer = await self._link.request(USAGE, bytes(Writer(0).text(self.id).u32(0).data[1:]))
            found = resource_usage(answer.source)
        except LauncherRefused as refused:
            self._check_alive()
            raise WrongState("destroyed", "the sandbox has ended") from refused
        except ProtocolError as error:
            raise BackendUnavailable("process", "the launcher does not speak its protocol") from error
        try:
            return replace(found, disk_bytes=await self._files.used())
        except (BulkheadError, OSError):  # paused, or no process more may run in it
            return found

    async def pause(self) -> None:
        self._check_alive()
        before, self._paused = self._paused, True
        try:
            await self._change(PAUSE)
        except BaseException:
            self._paused = before
            raise

    async def resume(self) -> None:
        self._check_alive()
        await self._change(RESUME)
        self._paused = False

    async def _change(self, kind: int) -> None:
        try:
            await self._link.request(kind, bytes(Writer(0).text(self.id).data[1:]))
        except LauncherRefused as refused:
            self._check_alive()
            if refused.errno == errno.ENOSYS:
                raise UnsupportedByRuntime("pause", "process") from refused  # its host has no freezer
            if refused.errno == errno.ETIMEDOUT:
                raise BackendTimeout("process", f"the sandbox was not paused: {refused.detail}") from refused
            raise BackendRefused("process", f"the sandbox was not paused: {refused.detail}", Upstream()) from refused

    async def change_network(self, rules: Sequence[NetworkRule]) -> None:
        self._check_alive()
        if self._network is None or self._egress is None:
            raise UnsupportedByRuntime("network_proxy", "process")
        if any(rule.http for rule in rules) and not self._has_authority:
            raise Conflict(
                "a rule with http cannot be added: neither a rule at the create nor the profile had one, so programs "
                "of this sandbox trust no authority by which TLS could be read; create another one with such a rule"
            )
        ports = ports_of(rules)
        self._check_ports(ports)
        new = [port for port in ports if port not in self._network.listeners]
        ended = [port for port in self._network.listeners if port not in ports]
        if new or ended:
            await self._change_listeners(self._network, new, ended)
        told = {"allow": [rule.as_dict() for rule in rules], "ports": list(ports)}
        self._receipt = {**self._receipt, "network": {**self._receipt["network"], **told}}
        await self._egress.change(self.id, rules, new)

    def _check_ports(self, ports: Sequence[int]) -> None:
        """Raises Conflict for ports to which no program of the sandbox can connect."""
        landlock = self._receipt["landlock"]
        closed = [port for port in ports if landlock["tcp"] and port not in landlock["connect_ports"]]
        if closed:
            had = ", ".join(map(str, landlock["connect_ports"]))
            raise Conflict(
                f"{_ports(closed)} cannot be added: TCP of this sandbox is limited to the ports that its rules had "
                f"when it was created ({had}), and Landlock cannot widen that; create another one with these ports, or "
                "with a profile that has loopback_tcp"
            )

    async def _change_listeners(self, network: NetworkSockets, new: Sequence[int], ended: Sequence[int]) -> None:
        """Raises Conflict for a port that a program holds, WrongState, a BackendFailure."""
        request = Writer(0).text(self.id).u8(len(new))
        for port in new:
            request.u32(port)
        stop = [network.listeners[port] for port in ended]
        try:
            answer = await self._link.request(LISTEN, bytes(request.data[1:]), stop, due=len(new))
        except LauncherRefused as refused:
            self._check_alive()
            if refused.errno == errno.EADDRINUSE:
                raise Conflict(f"{refused.detail}, so it cannot be in a rule") from refused
            raise BackendRefused("process", f"the rules were not changed: {refused.detail}", Upstream()) from refused
        except BackendTimeout as error:
            raise BackendUnavailable("process", str(error)) from error
        try:
            self._check_alive()
        except WrongState:
            close_all(answer.descriptors)
            raise
        try:
            network.change(answer.descriptors, new, ended)
        except (ValueError, OSError) as error:
            raise LaunchFailed("listen", "", f"the rules were not changed: {error}") from error

    async def destroy(self) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self._destroy())
        await asyncio.shield(self._ending)

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    # --- the end

    async def _destroy(self, *, killed: bool = True) -> None:
        if not self._over:
            try:
                with contextlib.suppress(LauncherRefused, BackendUnavailable):  # then it is gone already
                    await self._link.request(DESTROY, bytes(Writer(0).text(self.id).data[1:]))
            except BackendTimeout:  # it may still live: nobody is told that it is gone, and it can be tried again
                self._ending = None
                raise
            self._close(killed=killed)
        if self._egress is not None:
            await self._egress.closed(self.id)
        for execution in tuple(self._executions.values()):
            await execution.settled()

    def end(self, why: str) -> None:
        """The sandbox is gone, and not by a destroy."""
        if self._ending is None and not self._over:
            self._close(killed=False)
            if not self._lost.done():
                self._lost.set_result(why)

    def _close(self, *, killed: bool) -> None:
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._owner.fileno())
        self._owner.close()
        if self._egress is not None:
            self._egress.close(self.id)
        if self._network is not None:
            self._network.close()
            self._network = None
        for execution in tuple(self._executions.values()):
            execution.on_sandbox_end(killed=killed)
        self._on_end()

    async def abandon(self) -> None:
        """Ends a create that nobody waits for any more. Waits until nothing of it is left, or the launcher hangs. A
        launcher that wakes up finds the order to destroy behind the order to create, and the worker's end is noticed
        here."""
        ending = self._loop.create_task(self.destroy())
        await settle(ending)
        ending.exception()

    # --- the worker's records: everything from inside a sandbox is hostile

    def _readable(self) -> None:
        for _ in range(64):
            if self._over:
                return
            try:
                data, descriptors = receive_packet(self._owner)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it ended with a signal from us unread
                data, descriptors = b"", []
            except (OSError, ProtocolError):
                return self._violated()
            if not data:
                # The launcher says how it ended. If it does not, the worker has only closed its end.
                self._loop.remove_reader(self._owner.fileno())
                self._loop.call_later(LAST_WORD_SECONDS, self._violated)
                return None
            close_all(descriptors)
            try:
                if descriptors:
                    raise ProtocolError("a descriptor where none is due")
                self._take(data)
            except ProtocolError:
                return self._violated()
        return None

    def _take(self, data: bytes) -> None:
        if len(data) != RECORD.size:
            raise ProtocolError("not a record")
        kind, number, first, second = RECORD.unpack(data)
        execution = self._executions.get(number)
        if execution is None:
            raise ProtocolError("an execution that is not its own")
        if kind == STARTED:
            execution.on_started()
        elif kind == START_FAILED and first >= 0:
            execution.on_start_failed(first, second)
        elif kind == EXITED:
            execution.on_exited(first)
        else:
            raise ProtocolError("an unknown word from a worker")

    def _violated(self) -> None:
        """Our worker never does that, so it is not ours any more."""
        if self._ending is None and not self._over:
            self._loop.remove_reader(self._owner.fileno())
            self._ending = self._loop.create_task(self._destroy(killed=False))
            if not self._lost.done():
                self._lost.set_result("its worker broke the protocol")

    def _send_signal(self, number: int, signal_number: int) -> None:
        try:
            self._owner.send(RECORD.pack(SIGNAL, number, signal_number, 0), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise BackendUnavailable("process", f"the sandbox did not accept the signal: {error.strerror}") from error


def _ports(ports: Sequence[int]) -> str:
    return f"the port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}"
