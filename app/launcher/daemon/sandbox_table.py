"""All sandboxes of this launcher, from the plan to the answer that the sandbox is gone."""

from __future__ import annotations

import _socket
import errno
import select

from app.launcher.config import Config
from app.launcher.daemon import cgroup, probe, template
from app.launcher.daemon.checks import Refusal, answer, check_execution, check_plan, reply
from app.launcher.daemon.connection import Connection
from app.launcher.daemon.dead_groups import DeadGroups
from app.launcher.daemon.disks import Disks
from app.launcher.daemon.execution_limits import LimitedExecutions
from app.launcher.daemon.file_locks import LockHolders
from app.launcher.daemon.host import Host
from app.launcher.daemon.listening import change_listeners
from app.launcher.daemon.loop_storage import LoopStorage, StorageError
from app.launcher.daemon.oom import killed_too_often
from app.launcher.daemon.pausing import Pauses
from app.launcher.daemon.sandbox_process import SandboxProcess
from app.launcher.daemon.terminals import OWN_LIMIT, open_terminal
from app.launcher.daemon.watch import Verdict, Watch
from app.launcher.daemon.zygote import Spawner
from app.launcher.protocol import (
    EXECUTE,
    HELD,
    LISTENERS,
    LOST,
    NETWORK,
    NETWORK_UP,
    READY,
    REFUSED,
    RUN,
    RUN_AGENT,
    STEP_FAILED,
    STREAMS,
    CreatePlan,
    ExecutionPlan,
    ProtocolError,
    Reader,
    Writer,
)
from app.launcher.protocol.packets import close, receive
from app.launcher.sandbox.trust import TrustStores

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Iterable


class SandboxTable:
    """`poll` belongs to the loop. Workers' descriptors are registered there, and the loop calls `hear` for them."""

    def __init__(
        self,
        config: Config,
        tree: cgroup.CgroupTree,
        poll: select.poll,
        lock_counter: int,
        storage: LoopStorage | StorageError,
        trust_stores: TrustStores,
    ) -> None:
        self._config, self._poll = config, poll
        self._disks = Disks(config, storage, poll)
        self.host = Host(config, tree, self._disks.lacks)
        self._trust_stores = trust_stores
        self._spawner = Spawner(config, tree, self.host.layers, self.host.filters, template.masks(), trust_stores)
        self.pauses = Pauses()
        trees = [hierarchy.parent for hierarchy in tree.hierarchies]
        self._locks = LockHolders(config.max_file_locks, lock_counter, poll, trees)
        self._watch = Watch((self._locks.sample,) if config.max_file_locks else ())
        self._limited = LimitedExecutions()
        self._dead_groups = DeadGroups(tree)
        self._sandboxes: dict[str, SandboxProcess] = {}
        self._by_descriptor: dict[int, SandboxProcess] = {}
        self._unfinished: dict[SandboxProcess, None] = {}  # with groups to remove or executions to kill
        self._leaving: dict[SandboxProcess, None] = {}  # reaped, but a group of theirs is still busy

    def __len__(self) -> int:
        return len(self._sandboxes)

    def about(self) -> list[bytes]:
        """What a gateway is told of the host. Sandboxes of an earlier gateway may still be ending."""
        made = [sandbox.plan.disk_bytes for sandbox in self._sandboxes.values() if sandbox.plan.on_disk]
        return self.host.about(self._disks.usable_bytes(made))

    @property
    def busy(self) -> bool:
        """Whether work is left that has to be tried again later."""
        ending = self._dead_groups.reclaiming or self._locks.ending
        return bool(self._leaving or self._unfinished or self.pauses or ending)

    @property
    def milliseconds_left(self) -> int | None:
        """Time until `go_on` has something to do, if nothing else happens."""
        waits = (
            self._watch.milliseconds_left(self._sandboxes.values()),
            self._locks.milliseconds_left,
            self._limited.milliseconds_left,
        )
        return min((wait for wait in waits if wait is not None), default=None)

    @property
    def prepared(self) -> bool:
        return bool(self.host.missing or self._disks.making) or self._spawner.prepared

    def prepare(self, connection: Connection) -> None:
        """Makes a clone ahead while there are no requests, and shows its network to the one gateway."""
        zygote = None if self.host.missing else self._spawner.prepare(connection)
        if zygote is not None:
            self._show_network(connection, zygote.pid, zygote.uid)

    def _show_network(self, connection: Connection, pid: int, uid: int) -> None:
        """The gateway reads a new namespace itself, while its worker goes on building."""
        try:
            netlink = probe.open_netlink(pid, self._spawner.own_network)
        except FileNotFoundError:
            return  # it is dead already: its pidfd tells, or the create that was to have it makes another
        connection.send(bytes(Writer(NETWORK).u32(uid).data), [netlink])

    def go_on(self) -> None:
        """Continues work that could not be finished at once, and checks what has to be checked from time to time."""
        self._carry_out(self._watch.look(self._sandboxes.values()))
        self._carry_out(self._locks.go_on())
        self._carry_out(self._limited.look())
        for sandbox in tuple(self._unfinished):
            sandbox.tidy()
            for number in sandbox.go_on_killing():
                for request in sandbox.kills.pop(number):
                    answer(sandbox.connection, reply(request))
            if not sandbox.kills:
                del self._unfinished[sandbox]
        for sandbox in tuple(self._leaving):
            self._try_to_forget(sandbox)
        self.pauses.go_on()
        self._dead_groups.go_on()

    def _carry_out(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if self._sandboxes.get(verdict.sandbox.id) is not verdict.sandbox:
                continue  # it was destroyed while the search for file locks went on
            verdict.sandbox.end(verdict.number, verdict.reason, verdict.detail)
            self._unfinished[verdict.sandbox] = None

    def abandon(self, connection: Connection) -> None:
        """Ends the sandboxes of a gateway that is gone."""
        for sandbox in self._sandboxes.values():
            if sandbox.connection is connection:
                sandbox.connection = None
                sandbox.kill()

    def end_all(self) -> None:
        self._spawner.discard()
        for sandbox in self._sandboxes.values():
            sandbox.kill()

    # --- the gateway's requests

    def find(self, connection: Connection, sandbox_id: str) -> SandboxProcess:
        """Finds a sandbox of this connection only. Raises Refusal."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.connection is not connection:
            raise Refusal("plan", errno.ENOENT, "no such sandbox")
        return sandbox

    def create(self, connection: Connection, request: int, plan: CreatePlan, descriptors: list[int]) -> None:
        """Begins a sandbox. The answer comes when it is ready. Raises Refusal."""
        if len(descriptors) != 1:
            raise ProtocolError("a plan comes with exactly one descriptor")
        if self.host.missing:
            raise Refusal(
                f"layer:{self.host.missing[0]}", errno.ENOSYS, f"this host lacks {', '.join(self.host.missing)}"
            )
        check_plan(plan, self._config, self.host.filters)
        if plan.sandbox_id in self._sandboxes:
            raise Refusal("plan", errno.EEXIST, "a sandbox of this id is still there")
        if len(self._sandboxes) >= self._config.max_sandboxes:
            limit = self._config.max_sandboxes
            raise Refusal("plan", errno.EDQUOT, f"the limit of {limit} sandboxes is reached")
        if plan.on_disk:
            self._disks.check(plan.disk_bytes)
        owner = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptors[0])
        descriptors.clear()  # it is the socket's now
        try:
            sandbox = self._spawner.spawn(plan, owner)
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
        if (ooms := sandbox.groups.oom_events) is not None:
            self._by_descriptor[ooms.descriptor] = sandbox
            self._poll.register(ooms.descriptor, ooms.events)
        if plan.on_disk:
            self._disks.begin(sandbox)

    def execute(self, connection: Connection, kind: int, source: Reader, descriptors: list[int]) -> None:
        """Starts a command or a file agent. Raises Refusal. Otherwise the worker answers."""
        sandbox = self.find(connection, source.text(64))
        number, in_memfd = source.u32(), source.u8()
        if sandbox.creating is not None:
            raise Refusal("plan", errno.ENOENT, "the sandbox is not ready")
        if sandbox.holds or sandbox.freezer.frozen:
            raise Refusal("plan", errno.EBUSY, "the sandbox is paused")
        if len(descriptors) != STREAMS[kind] + in_memfd or in_memfd > (kind == EXECUTE):
            raise ProtocolError("a command comes with its streams, and a memfd when it says so")
        if sandbox.executions_held >= self._config.max_executions:
            limit = self._config.max_executions
            raise Refusal("plan", errno.EDQUOT, f"the limit of {limit} executions in one sandbox is reached")
        if not sandbox.is_new(number):
            raise Refusal("plan", errno.EEXIST, "an execution number is used once")
        limits = ExecutionPlan.read(source) if kind == EXECUTE else None
        if limits is not None:
            check_execution(limits, sandbox.plan)
            if limits.cpu_ns and not sandbox.groups.can_count_cpu:
                raise Refusal("limit_cpu", errno.ENOTSUP, "the host does not count processor time")
        try:
            sandbox.run(RUN if kind == EXECUTE else RUN_AGENT, number, in_memfd, limits, source.rest(), descriptors)
        except OSError as error:
            raise Refusal("join_cgroup", error.errno or 0, str(error.strerror)) from error
        if limits is not None and (limits.cpu_ns or limits.memory_bytes):
            self._limited.add(sandbox, number, limits.cpu_ns)

    def open_terminal(self, sandbox: SandboxProcess) -> int:
        """Raises Refusal."""
        if sandbox.creating is not None:
            raise Refusal("open_terminal", errno.ENOENT, "the sandbox is not ready")
        try:
            return open_terminal(sandbox.pid, self._config.max_terminals)
        except OSError as error:
            detail = OWN_LIMIT if error.errno == errno.ENOSPC else str(error.strerror)
            raise Refusal("open_terminal", error.errno or 0, detail) from error

    def listen(self, sandbox: SandboxProcess, ports: list[int], ended: list[int]) -> list[int]:
        """Raises Refusal."""
        return change_listeners(sandbox, ports, ended, self._spawner.own_network)

    def finish(self, sandbox: SandboxProcess, number: int, request: int) -> Writer:
        finished = sandbox.finish(number)
        if finished is None:
            raise Refusal("plan", errno.ENOENT, "no such execution")
        self._unfinished[sandbox] = None
        usage, (reason, detail) = finished
        numbers = reply(request).u64(usage.cpu_ns).u64(usage.peak_bytes).u32(usage.ooms).u8(usage.alive)
        return numbers.text(reason).text(detail)

    def usage(self, sandbox: SandboxProcess, number: int, request: int) -> Writer:
        try:
            figures = sandbox.figures(number)
        except OSError as error:  # its worker is just ending, and its groups with it
            raise Refusal("usage", error.errno or 0, str(error.strerror)) from error
        if figures is None:
            raise Refusal("plan", errno.ENOENT, "no such execution")
        return figures.write(reply(request))

    def kill(self, sandbox: SandboxProcess, number: int, request: int) -> None:
        if not sandbox.groups.can_kill:
            raise Refusal("kill_execution", errno.ENOTSUP, "the host has no control groups")
        sandbox.kills.setdefault(number, []).append(request)
        self._unfinished[sandbox] = None

    # --- workers and their groups

    def knows(self, descriptor: int) -> bool:
        known = descriptor in self._by_descriptor or descriptor == self._locks.descriptor
        return known or self._disks.knows(descriptor)

    def hear(self, descriptor: int) -> None:
        """Called when a descriptor is readable: that of a worker, of its groups, of a search for file locks, or of a
        child that makes a disk."""
        if descriptor == self._locks.descriptor:
            self._carry_out(self._locks.take())
        elif self._disks.knows(descriptor):
            self._disks.hear(descriptor)
        else:
            self._hear_sandbox(descriptor)

    def _hear_sandbox(self, descriptor: int) -> None:
        sandbox = self._by_descriptor[descriptor]
        if descriptor == sandbox.pidfd:
            return self._bury(sandbox)
        if (ooms := sandbox.groups.oom_events) is not None and descriptor == ooms.descriptor:
            ooms.take()
            return self._carry_out(killed_too_often([sandbox]))
        descriptors: list[int] = []
        try:
            data, descriptors = receive(sandbox.channel)
            source = Reader(data)
            kind = source.u8()
            if (descriptors and kind != LISTENERS) or (sandbox.creating is None) != (kind == HELD):
                raise ProtocolError("a worker says READY once, and then only that it holds still")
            if kind == STEP_FAILED:
                sandbox.failure = (source.text(64), source.u32(), source.text(1024))
                source.end()
            elif kind in (NETWORK_UP, LISTENERS):
                source.end()
                if kind == LISTENERS:
                    sandbox.take_listeners(descriptors)
                if sandbox.connection is not None:  # again with the listeners: the routes are in the receipt
                    self._show_network(sandbox.connection, sandbox.pid, sandbox.uid)
            elif kind == READY:
                source.end()
                self._welcome(sandbox)
            elif kind == HELD:
                source.end()
                self.pauses.held(sandbox)
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

    def _welcome(self, sandbox: SandboxProcess) -> None:
        """Measured before it is handed out: what is not in force is not served."""
        request, connection = sandbox.creating, sandbox.connection
        if request is None or connection is None:
            return
        try:
            sandbox.groups.limit_cpus(sandbox.cpus)
        except OSError as error:
            sandbox.failure = ("limit_cpus", error.errno or 0, str(error.strerror))
            return sandbox.kill()
        facts, wrong = sandbox.measure(self._spawner.own_namespaces, self.host.layers, self._trust_stores)
        if wrong:
            sandbox.failure = ("prove", errno.ENOTSUP, "; ".join(wrong))
            return sandbox.kill()
        sandbox.creating = None
        lines = [f"{name}={value}".encode() for name, value in facts.items()]
        listeners, sandbox.listeners = sandbox.listeners, []
        connection.send(bytes(reply(request).many(lines).data), listeners)
        return None

    def _bury(self, sandbox: SandboxProcess) -> None:
        """The worker is gone, and with it every process of its namespace."""
        self._ignore(sandbox.pidfd)
        self._ignore(sandbox.channel.fileno())
        if sandbox.groups.oom_events is not None:
            self._ignore(sandbox.groups.oom_events.descriptor)
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

    def _try_to_forget(self, sandbox: SandboxProcess) -> None:
        self._unfinished.pop(sandbox, None)
        self.pauses.forget(sandbox)
        if not sandbox.groups.remove():
            self._leaving[sandbox] = None
            return
        self._leaving.pop(sandbox, None)
        del self._sandboxes[sandbox.id]
        self._spawner.take_back(sandbox)
        connection = sandbox.connection
        if connection is None:
            return
        if sandbox.creating is not None:
            step, number, detail = sandbox.failure or ("worker", 0, "the worker ended before it was ready")
            answer(connection, reply(sandbox.creating, REFUSED).text(step).u32(number).text(detail))
        for request in (*sandbox.waiting, *sandbox.take_waiting_kills()):
            answer(connection, reply(request))
        if sandbox.creating is None and not sandbox.waiting:
            answer(connection, Writer(LOST).text(sandbox.id).i32(sandbox.status))
