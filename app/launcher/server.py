"""The launcher's loop: one thread, never in the path of data. Takes plans from the gateway, makes sandboxes, ends them.

The gateway is not trusted: every name is looked up, every number checked against the configuration's ceilings, every
path resolved only inside the template. A connection owns the sandboxes that it made; when it ends, they end.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct

from app.launcher import cgroup, landlock, mounts, probe, seccomp
from app.launcher.birth import Nursery
from app.launcher.config import Config
from app.launcher.connection import Connection
from app.launcher.held import HeldSandbox
from app.launcher.packets import close, receive
from app.launcher.protocol import (
    CREATE,
    DESTROY,
    EXECUTE,
    FINISH,
    HELLO,
    KILL,
    LOST,
    NETWORK,
    NETWORK_UP,
    OK,
    READY,
    REFUSED,
    REPLY,
    STEP_FAILED,
    VERSION,
    CreatePlan,
    ProtocolError,
    Reader,
    Writer,
)

_SO_PEERCRED = 17
_RETRY_MS = 2
_MOST_CONNECTIONS = 32  # a gateway needs one


class Refusal(Exception):
    """A request that is not carried out: the step (or `plan`), an errno, a sentence."""

    def __init__(self, step: str, number: int, detail: str) -> None:
        self.step, self.errno, self.detail = step, number, detail
        super().__init__(detail)


class Server:
    def __init__(self, config: Config, listener: _socket.socket, tree: cgroup.Tree) -> None:
        self._config, self._listener, self._tree = config, listener, tree
        self._layers = probe.available_layers(tree)
        self._missing = probe.missing_layers(self._layers, config.accept_missing)
        self._filters = {"default": seccomp.compile_filter("default", os.uname().machine)}
        self._nursery = Nursery(config, tree, self._layers, self._filters, mounts.masks())
        self._sandboxes: dict[str, HeldSandbox] = {}
        self._connections: dict[int, Connection] = {}
        self._by_descriptor: dict[int, HeldSandbox] = {}
        self._leaving: list[HeldSandbox] = []  # reaped, but a group of theirs is still busy
        self._poll = select.poll()
        self._poll.register(listener.fileno(), select.POLLIN)
        self.stopping = False

    # --- the loop

    def serve(self, wake: int) -> None:
        """Until `stopping` is set (a signal handler writes to `wake`) and the last sandbox is gone."""
        self._poll.register(wake, select.POLLIN)
        while not self.stopping or self._sandboxes:
            busy = self._leaving or any(sandbox.kills for sandbox in self._sandboxes.values())
            to_prepare = self._connections and not self._nursery.prepared
            happened = self._poll.poll(_RETRY_MS if busy or to_prepare else None)
            if not happened:
                self._prepare()  # nobody asked for anything for a moment
            for descriptor, event in happened:
                if descriptor == wake:
                    os.read(wake, 4096)
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections:
                    if event != select.POLLOUT:  # that there is room again is for `_go_on`
                        self._hear(self._connections[descriptor])
                elif descriptor in self._by_descriptor:
                    self._hear_worker(self._by_descriptor[descriptor], descriptor)
            self._go_on()
            if self.stopping:
                self._nursery.discard()
                for sandbox in self._sandboxes.values():
                    sandbox.kill()

    def _prepare(self) -> None:
        for connection in self._connections.values():
            if not self._missing and not self.stopping and (copy := self._nursery.prepare(connection)) is not None:
                self._show_network(connection, copy.pid, copy.uid)
            return

    def _show_network(self, connection: Connection, pid: int, uid: int) -> None:
        """The gateway reads a new namespace itself, while its worker goes on building."""
        netlink = probe.open_netlink(pid, self._nursery.own_network)
        connection.send(bytes(Writer(NETWORK).u32(uid).data), netlink)

    def _go_on(self) -> None:
        """What could not be finished at once: groups that empty, answers that had no room."""
        for sandbox in tuple(self._sandboxes.values()):
            if sandbox.ended:
                sandbox.tidy()
            if sandbox.kills:
                for number in sandbox.go_on_killing():
                    self._answer_kill(sandbox, number)
        for sandbox in tuple(self._leaving):
            self._try_to_forget(sandbox)
        for connection in tuple(self._connections.values()):
            if connection.unsent or connection.blocked:
                connection.flush()
                connection.blocked = bool(connection.unsent)
                wake_for = select.POLLIN | select.POLLOUT if connection.blocked else select.POLLIN
                self._poll.modify(connection.socket.fileno(), wake_for)
            if connection.broken:
                self._hang_up(connection)

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        except OSError:
            return
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)
        uid = struct.unpack("3i", socket.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12))[1]
        if uid not in (0, self._config.gateway_uid) or len(self._connections) >= _MOST_CONNECTIONS:
            socket.close()
            return
        self._connections[descriptor] = Connection(socket)
        self._poll.register(descriptor, select.POLLIN)

    def _hang_up(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        self._poll.unregister(descriptor)
        del self._connections[descriptor]
        connection.close()
        for sandbox in self._sandboxes.values():
            if sandbox.connection is connection:
                sandbox.connection = None
                sandbox.kill()

    # --- the gateway's requests

    def _hear(self, connection: Connection) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors = receive(connection.socket)
            if not data:
                return self._hang_up(connection)
            source = Reader(data)
            kind, request = source.u8(), source.u32()
            try:
                self._carry_out(connection, kind, request, source, descriptors)
            except Refusal as refusal:
                self._refuse(connection, request, refusal.step, refusal.errno, refusal.detail)
        except (OSError, ProtocolError):
            return self._hang_up(connection)  # it does not speak our protocol: it is not our gateway
        finally:
            close(descriptors)
        return None

    def _carry_out(
        self, connection: Connection, kind: int, request: int, source: Reader, descriptors: list[int]
    ) -> None:
        if kind == HELLO:
            source.end()
            connection.send(bytes(_reply(request, OK).many(self._about()).data))
        elif kind == CREATE:
            self._create(connection, request, source, descriptors)
        elif kind == EXECUTE:
            self._execute(connection, source, descriptors)
        elif kind in (FINISH, KILL, DESTROY):
            sandbox_id = source.text(64)
            number = source.u32() if kind != DESTROY else 0
            source.end()
            sandbox = self._sandboxes.get(sandbox_id)
            if sandbox is None or sandbox.connection is not connection:
                raise Refusal("plan", errno.ENOENT, "no such sandbox")
            if kind == DESTROY:
                sandbox.waiting.append(request)
                sandbox.kill()
            elif kind == KILL and not sandbox.groups.can_kill:
                raise Refusal("kill_execution", errno.ENOTSUP, "the host has no control groups")
            elif kind == KILL:
                sandbox.begin_kill(number, request)
            else:
                connection.send(bytes(self._usage(request, sandbox, number).data))
        else:
            raise ProtocolError("an unknown request")

    def _refuse(self, connection: Connection, request: int, step: str, number: int, detail: str) -> None:
        connection.send(bytes(_reply(request, REFUSED).text(step).u32(number).text(detail).data))

    def _about(self) -> list[bytes]:
        version = landlock.abi()
        facts = {
            "protocol": str(VERSION),
            "kernel": os.uname().release,
            "landlock_abi": str(version),
            "cgroup_version": str(self._tree.version),
            "filter": self._filters["default"].hex(),  # hashed there: hashlib would bring all of OpenSSL in here
            "layers": ",".join(sorted(self._layers)),
            "missing": ",".join(self._missing),
            "accepted": ",".join(layer for layer in self._config.accept_missing if layer not in self._layers),
        }
        return [f"{name}={value}".encode() for name, value in facts.items()]

    # --- create

    def _create(self, connection: Connection, request: int, source: Reader, descriptors: list[int]) -> None:
        plan = CreatePlan.read(source)
        source.end()
        if len(descriptors) != 1:
            raise ProtocolError("a plan comes with exactly one descriptor")
        if self._missing:
            raise Refusal(f"layer:{self._missing[0]}", errno.ENOSYS, f"this host lacks {', '.join(self._missing)}")
        self._check(plan)
        owner = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptors[0])
        descriptors.clear()  # it is the socket's now
        try:
            sandbox = self._nursery.give_birth(plan, owner)
        except OSError as error:
            raise Refusal(getattr(error, "step", "clone"), error.errno or 0, str(error.strerror)) from error
        finally:
            owner.close()
        sandbox.connection, sandbox.creating = connection, request
        if sandbox.shown_to not in (None, connection):
            self._show_network(connection, sandbox.pid, sandbox.uid)
        sandbox.limits = sandbox.groups.limits_in_force()  # read back while the worker confines itself
        self._sandboxes[plan.sandbox_id] = sandbox
        for descriptor in (sandbox.pidfd, sandbox.channel.fileno()):
            self._by_descriptor[descriptor] = sandbox
            self._poll.register(descriptor, select.POLLIN)

    def _check(self, plan: CreatePlan) -> None:
        config = self._config
        if not _is_name(plan.sandbox_id):
            raise Refusal("plan", errno.EINVAL, "not a sandbox id")
        if plan.sandbox_id in self._sandboxes:
            raise Refusal("plan", errno.EEXIST, "a sandbox of this id is still there")
        if len(self._sandboxes) >= config.max_sandboxes:
            raise Refusal("plan", errno.EDQUOT, f"the limit of {config.max_sandboxes} sandboxes is reached")
        if plan.template != "host" or plan.filter_name not in self._filters:
            raise Refusal("plan", errno.ENOENT, "no such template or filter")
        for name, value, most in (
            ("cpu", plan.cpu_millis, config.max_cpu_millis),
            ("memory", plan.memory_bytes, config.max_memory_bytes),
            ("disk", plan.disk_bytes, config.max_disk_bytes),
            ("processes", plan.processes, config.max_processes),
        ):
            if not 0 < value <= most:
                raise Refusal("plan", errno.ERANGE, f"{name} is {value}, the ceiling {most}")
        for path in plan.read_only + plan.read_write:
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise Refusal("plan", errno.EINVAL, "not a clean path")

    # --- workers

    def _hear_worker(self, sandbox: HeldSandbox, descriptor: int) -> None:
        if descriptor == sandbox.pidfd:
            return self._bury(sandbox)
        descriptors: list[int] = []
        try:
            data, descriptors = receive(sandbox.channel)
            source = Reader(data)
            kind = source.u8()
            if descriptors or sandbox.creating is None:
                raise ProtocolError("a worker says READY once and then nothing")
            if kind == STEP_FAILED:
                sandbox.failure = (source.text(64), source.u32(), source.text(1024))
                source.end()
            elif kind == NETWORK_UP:
                source.end()
                if sandbox.connection is not None:
                    self._show_network(sandbox.connection, sandbox.pid, sandbox.uid)
            elif kind == READY:
                source.end()
                self._welcome(sandbox)
            else:
                raise ProtocolError("an unknown word from a worker")
        except (OSError, ProtocolError):
            # Its end is closed, or it does what our worker never does. Its pidfd tells the rest.
            self._ignore(descriptor)
            sandbox.kill()
        finally:
            close(descriptors)
        return None

    def _ignore(self, descriptor: int) -> None:
        if self._by_descriptor.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _welcome(self, sandbox: HeldSandbox) -> None:
        """Measured before it is handed out: what is not in force is not served."""
        request, connection = sandbox.creating, sandbox.connection
        if request is None or connection is None:
            return
        facts, wrong = sandbox.measure(self._nursery.own_namespaces, self._layers)
        if wrong:
            sandbox.failure = ("prove", errno.ENOTSUP, "; ".join(wrong))
            return sandbox.kill()
        sandbox.creating = None
        lines = [f"{name}={value}".encode() for name, value in facts.items()]
        connection.send(bytes(_reply(request, OK).many(lines).data))
        return None

    def _bury(self, sandbox: HeldSandbox) -> None:
        """The worker is gone, and with it every process of its namespace."""
        self._ignore(sandbox.pidfd)
        self._ignore(sandbox.channel.fileno())
        while sandbox.creating is not None and sandbox.failure is None:
            # It may have said why just before it ended, and that its network is up before that.
            try:
                data, descriptors = receive(sandbox.channel)
                close(descriptors)
                source = Reader(data)
                if source.u8() == STEP_FAILED:
                    sandbox.failure = (source.text(64), source.u32(), source.text(1024))
            except ConnectionResetError:
                continue  # told once, ahead of what it sent, when it ended with our words unread
            except (OSError, ProtocolError):
                break  # there is no more
        sandbox.reap()
        self._try_to_forget(sandbox)

    def _try_to_forget(self, sandbox: HeldSandbox) -> None:
        if not sandbox.groups.remove():
            if sandbox not in self._leaving:
                self._leaving.append(sandbox)
            return
        if sandbox in self._leaving:
            self._leaving.remove(sandbox)
        del self._sandboxes[sandbox.id]
        self._nursery.take_back(sandbox.uid)
        connection = sandbox.connection
        if connection is None:
            return
        if sandbox.creating is not None:
            step, number, detail = sandbox.failure or ("worker", 0, "the worker ended before it was ready")
            self._refuse(connection, sandbox.creating, step, number, detail)
        for request in sandbox.waiting:
            connection.send(bytes(_reply(request, OK).data))
        for request in sandbox.take_waiting_kills():
            connection.send(bytes(_reply(request, OK).data))
        if sandbox.creating is None and not sandbox.waiting:
            connection.send(bytes(Writer(LOST).text(sandbox.id).i32(sandbox.status).data))

    # --- executions

    def _execute(self, connection: Connection, source: Reader, descriptors: list[int]) -> None:
        sandbox_id, number, in_memfd = source.text(64), source.u32(), source.u8()
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.connection is not connection or sandbox.creating is not None:
            raise Refusal("plan", errno.ENOENT, "no such sandbox")
        if len(descriptors) != (4 if in_memfd else 3) or in_memfd > 1:
            raise ProtocolError("a command comes with its three streams, and a memfd when it says so")
        if sandbox.executions_held >= self._config.max_executions:
            raise Refusal("plan", errno.EDQUOT, "too many executions")
        if not sandbox.is_new(number):
            raise Refusal("plan", errno.EEXIST, "an execution number is used once")
        try:
            sandbox.run(number, in_memfd, source.rest(), descriptors)
        except OSError as error:
            raise Refusal("join_cgroup", error.errno or 0, str(error.strerror)) from error

    def _usage(self, request: int, sandbox: HeldSandbox, number: int) -> Writer:
        usage = sandbox.finish(number)
        if usage is None:
            raise Refusal("plan", errno.ENOENT, "no such execution")
        return _reply(request, OK).u64(usage.cpu_ns).u64(usage.peak_bytes).u32(usage.ooms).u8(usage.alive)

    def _answer_kill(self, sandbox: HeldSandbox, number: int) -> None:
        for request in sandbox.kills.pop(number):
            if sandbox.connection is not None:
                sandbox.connection.send(bytes(_reply(request, OK).data))


def _reply(request: int, status: int) -> Writer:
    return Writer(REPLY).u32(request).u8(status)


def _is_name(text: str) -> bool:
    """An id of ours becomes a folder's name under the control groups."""
    plain = all(c.isascii() and (c.isalnum() or c in "_-") for c in text)
    return plain and 0 < len(text) <= 63 and text[0] not in "-_" and text == text.lower()
