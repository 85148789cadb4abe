"""Makes one sandbox: groups, clone, identity. The clone confines itself (`sandbox/confine.py`) and becomes the
worker."""

from __future__ import annotations

import _signal
import _socket
import errno
import os

from app.launcher.config import Config
from app.launcher.daemon import cgroup, probe
from app.launcher.daemon.cloning import clone_owned_by
from app.launcher.daemon.connection import Connection
from app.launcher.daemon.cpu_allocation import CpuAllocator
from app.launcher.daemon.freezer import Freezer
from app.launcher.daemon.groups import Groups
from app.launcher.daemon.sandbox_process import SandboxProcess
from app.launcher.daemon.terminals import make_terminals
from app.launcher.kernel import landlock
from app.launcher.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    clone3,
    kill_by_pidfd,
)
from app.launcher.protocol import (
    GO,
    GROUPS,
    IDENTITY,
    MAX_PACKET,
    NETWORK_UP,
    READY,
    STEP_FAILED,
    TERMINALS,
    CreatePlan,
    ProtocolError,
    Reader,
    Writer,
    packets,
)
from app.launcher.sandbox import confine
from app.launcher.sandbox.mounts import INSIDE_ID
from app.launcher.sandbox.setup import SandboxSetup
from app.launcher.sandbox.trust import TrustStores
from app.launcher.sandbox.worker import Worker

_CLONE = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS


# When the whole host runs out of memory, what nobody trusts goes first, whatever the service itself inherited.
_OOM_SCORE = "500"


class SpawnError(OSError):
    """An OSError that knows its step."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.step = step


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


class Zygote:
    """A clone of the launcher that will become a worker and belongs to no sandbox yet, and its control groups, which
    have no limits yet."""

    __slots__ = ("channel", "groups", "has_groups", "pid", "pidfd", "shown_to", "uid")

    def __init__(self, pid: int, pidfd: int, channel: _socket.socket, uid: int, groups: Groups) -> None:
        self.pid, self.pidfd, self.channel, self.uid, self.groups = pid, pidfd, channel, uid, groups
        self.has_groups = False
        self.shown_to: Connection | None = None  # who has read its network namespace

    def first_word(self) -> int | None:
        """Returns the clone's first message: NETWORK_UP, or the failure before its end. None while there is no
        message."""
        try:
            return (self.channel.recv(1, _socket.MSG_DONTWAIT) or b"\0")[0]
        except BlockingIOError:
            return None
        except OSError:
            return 0


class Spawner:
    """Assigns uids and makes sandboxes in the template. One clone is made ahead while the launcher has nothing to do
    (`prepare`), as clone, namespaces, network and control groups are most of the time of a create, and the same for
    all. A second create at the same moment makes its own clone.
    """

    def __init__(
        self,
        config: Config,
        tree: cgroup.CgroupTree,
        layers: set[str],
        filters: dict[str, bytes],
        masks: list[tuple[str, str]],
        trust_stores: TrustStores,
    ) -> None:
        self._config, self._tree, self._filters, self._masks = config, tree, filters, masks
        self._trust_stores = trust_stores
        self._cpus = CpuAllocator()
        self._has_cpuset = "cgroup_cpuset" in layers
        self._groups_cpus = tree.usable_cpus() if self._has_cpuset else []
        self._group_mounts = tree.group_mounts
        self._user_namespace = "user_namespace" in layers
        self._landlock_abi = landlock.abi()
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # A uid that was given back goes to the end of the line, so that a number is used again as late as possible.
        self._uids = list(range(config.uid_first, config.uid_first + config.uid_count))
        self._leaving: list[Zygote] = []  # ended, but a group of theirs is still busy
        self._ahead: Zygote | None = None
        self._tried = False  # to make one, since the last create
        self.own_namespaces = probe.namespaces_of("self")
        self.own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def take_back(self, sandbox: SandboxProcess) -> None:
        """Its uid and processors, for others."""
        self._uids.append(sandbox.uid)
        self._cpus.give_back(sandbox.cpus, sandbox.plan.cpu_millis)

    @property
    def prepared(self) -> bool:
        """Whether nothing is left to do ahead, or there is no use in trying before the next create."""
        return self._tried and (self._ahead is None or self._ahead.has_groups)

    def prepare(self, connection: Connection) -> Zygote | None:
        """Makes the next clone, in three calls, so that a request in between does not wait for all of it. The first
        makes the clone. One of the next, when its network is up, returns the clone to be shown to `connection`. The
        last makes its control groups. It reports no error: the create that then makes its own clone finds the error and
        names it."""
        self._tried = True
        try:
            if self._ahead is None:
                self._ahead = self._make_zygote()
            elif self._ahead.shown_to is not None:
                self._give_groups(self._ahead)
            elif (word := self._ahead.first_word()) is not None:
                if word == NETWORK_UP:
                    self._ahead.shown_to = connection
                    return self._ahead
                self.discard()
        except OSError:
            self.discard()
        return None

    def discard(self) -> None:
        if self._ahead is not None:
            self._end(self._ahead)
            self._ahead = None

    def spawn(self, plan: CreatePlan, owner: _socket.socket) -> SandboxProcess:
        """Raises SpawnError, and then nothing of the sandbox is left."""
        self._tried = False
        zygote, self._ahead = self._ahead, None
        cpus: list[int] = []
        try:
            cpus = self._cpus.allocate(self._usable_cpus, plan.cpu_millis)
            zygote = self._hand_over(zygote, plan, owner, cpus)
            zygote.groups.limit(plan.memory_bytes, plan.processes, plan.cpu_millis)
        except OSError as error:
            # A SpawnError is that of a fresh clone. Then both are ended already.
            if zygote is not None and not isinstance(error, SpawnError):
                self._end(zygote)
            self._cpus.give_back(cpus, plan.cpu_millis)
            raise error if isinstance(error, SpawnError) else SpawnError("make_cgroup", error) from error
        groups, freezer = zygote.groups, Freezer(self._tree, zygote.groups.name)
        return SandboxProcess(
            plan, groups, freezer, zygote.pid, zygote.pidfd, zygote.channel, zygote.uid, cpus, zygote.shown_to
        )

    @property
    def _usable_cpus(self) -> list[int]:
        """The launcher's own, which change with those of the service, as far as the groups have them."""
        own = os.sched_getaffinity(0)
        return [cpu for cpu in self._groups_cpus if cpu in own] if self._has_cpuset else sorted(own)

    def _hand_over(self, ahead: Zygote | None, plan: CreatePlan, owner: _socket.socket, cpus: list[int]) -> Zygote:
        """Gives the plan to the clone that was made ahead, or else to a fresh one, which it returns. Raises OSError,
        and SpawnError for a fresh one, of which then nothing is left."""
        head = Writer(GO).many([] if self._has_cpuset else [str(cpu).encode() for cpu in cpus])
        packet = bytes(plan.write(head).data)
        if ahead is not None:
            try:
                self._give_plan(ahead, packet, owner)
            except (BrokenPipeError, ConnectionResetError):
                self._end(ahead)  # it did not get through its steps; a fresh one can tell its waiting client which
            else:
                return ahead
        fresh = self._make_zygote()
        try:
            self._give_plan(fresh, packet, owner)
        except OSError as error:
            step = "await_plan" if fresh.has_groups else "make_cgroup"
            refusal = _last_words(fresh.channel) or SpawnError(step, error)
            self._end(fresh)
            raise refusal from error
        return fresh

    def _give_plan(self, zygote: Zygote, packet: bytes, owner: _socket.socket) -> None:
        """Raises OSError."""
        if not zygote.has_groups:
            self._give_groups(zygote)
        packets.send(zygote.channel, packet, [owner.fileno()])

    def _give_groups(self, zygote: Zygote) -> None:
        """Makes the control groups, and sends the clone the ways in and out. Raises OSError."""
        groups = zygote.groups
        try:
            groups.make()
            joins, counted = groups.join_descriptors, groups.processes_files
            packet = bytes(Writer(GROUPS).u8(len(joins)).u8(bool(counted)).data)
            packets.send(zygote.channel, packet, [*joins, *groups.worker_group, *counted])
        finally:
            groups.close()
        zygote.has_groups = True

    def _make_zygote(self) -> Zygote:
        """Raises SpawnError, and then nothing of it is left."""
        self._try_to_forget()
        if not self._uids:
            raise SpawnError("allocate_uid", OSError(errno.EDQUOT, "no host uid is free"))
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise SpawnError("clone", error) from error
        uid = self._uids.pop(0)
        # No file of the kernel's, such as `tasks`, is called so. Nobody else has this uid while the groups exist.
        groups = Groups(self._tree, f"s-{uid}")
        step, pid, pidfd = "clone", -1, -1
        try:
            pid, pidfd = clone_owned_by(uid, _CLONE | CLONE_NEWUSER) if self._user_namespace else clone3(_CLONE)
            if pid == 0:
                self._become_worker(theirs, uid)
            step = "map_identity"
            self._map_identity(pid, uid)
            packets.send(ours, bytes((IDENTITY,)), [])
            step = "make_terminals"
            self._send_terminals(ours, uid)
        except OSError as error:
            refusal = _last_words(ours) or SpawnError(step, error)
            self._end(Zygote(pid, pidfd, ours, uid, groups))
            raise refusal from error
        finally:
            theirs.close()
        return Zygote(pid, pidfd, ours, uid, groups)

    def _end(self, zygote: Zygote) -> None:
        if zygote.pid > 0:
            kill_by_pidfd(zygote.pidfd, 9)  # not reaped yet, so it is there, if only as a zombie
            os.waitpid(zygote.pid, 0)
            os.close(zygote.pidfd)
        zygote.channel.close()
        self._leaving.append(zygote)
        self._try_to_forget()

    def _try_to_forget(self) -> None:
        """Removes the groups of clones that have ended. Their uids name them, so they come back after that."""
        for zygote in tuple(self._leaving):
            if zygote.groups.remove():
                self._leaving.remove(zygote)
                self._uids.append(zygote.uid)

    def _map_identity(self, pid: int, uid: int) -> None:
        """One uid and one gid of the host, as 1000 inside. Nothing else exists in there, root least of all."""
        if self._user_namespace:
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{pid}/{name}", f"{INSIDE_ID} {uid} 1")
        _write(f"/proc/{pid}/oom_score_adj", _OOM_SCORE)

    def _send_terminals(self, channel: _socket.socket, owner: int) -> None:
        descriptor = make_terminals(owner)
        try:
            packets.send(channel, bytes((TERMINALS,)), [descriptor])
        finally:
            os.close(descriptor)

    def _become_worker(self, channel: _socket.socket, uid: int) -> None:
        """In the clone. Never returns: an exception must not run the launcher's loop a second time."""
        try:
            _signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
            setup = SandboxSetup(self._config, channel, self._null, INSIDE_ID if self._user_namespace else uid)
            setup.masks, setup.filters, setup.landlock_abi = self._masks, self._filters, self._landlock_abi
            setup.group_mounts, setup.trust_stores = self._group_mounts, self._trust_stores
            try:
                confine.confine(setup)
            except confine.StepRefused as refused:
                said = Writer(STEP_FAILED).text(refused.step).u32(refused.errno).text(refused.detail[:200])
                setup.channel.send(bytes(said.data))
                os._exit(1)
            setup.channel.send(bytes((READY,)))
            Worker(setup).serve()
        finally:
            os._exit(0)


def _last_words(channel: _socket.socket) -> SpawnError | None:
    """The step that a clone which has ended named, if it did: it may end before the launcher has done its part."""
    for _ in range(4):  # that its network is up comes before, and a reset is told once, ahead of what was sent
        try:
            source = Reader(channel.recv(MAX_PACKET, _socket.MSG_DONTWAIT))
            if source.u8() == STEP_FAILED:
                step, number, detail = source.text(64), source.u32(), source.text(1024)
                return SpawnError(step, OSError(number, detail))
        except ConnectionResetError:
            continue
        except (OSError, ProtocolError):
            return None
    return None
