"""One living sandbox as the launcher holds it: its worker, its groups, and the requests that wait for it."""

from __future__ import annotations

import _socket
import os

from app.launcher.daemon import probe
from app.launcher.daemon.cgroup import WORKER_CPU_MILLIS
from app.launcher.daemon.cgroup_files import list_of
from app.launcher.daemon.connection import Connection
from app.launcher.daemon.freezer import Freezer
from app.launcher.daemon.groups import Groups, Usage
from app.launcher.daemon.usage import Figures
from app.launcher.kernel import landlock
from app.launcher.kernel.syscalls import kill_by_pidfd
from app.launcher.protocol import HOLD, CreatePlan, ExecutionPlan, ProtocolError, Writer, packets
from app.launcher.sandbox.trust import TrustStores

# Three standard streams, two sockets, /dev/null, pids.max, pids.current, what tells of children, /proc/meminfo, and two
# files of the memory group.
_OWN_DESCRIPTORS = 12
_LANDLOCK: dict[bool, dict[str, str]] = {}  # the same for all plans of a kind, and 50 us to find out
_TRIED_AGAIN = 4  # a host has 65,535 memory groups, so none may be kept for nothing


class SandboxProcess:
    def __init__(
        self,
        plan: CreatePlan,
        groups: Groups,
        freezer: Freezer,
        pid: int,
        pidfd: int,
        channel: _socket.socket,
        uid: int,
        cpus: list[int],
        shown_to: Connection | None,
    ) -> None:
        self.id, self.plan, self.groups, self.freezer = plan.sandbox_id, plan, groups, freezer
        self.pid, self.pidfd, self.channel, self.uid = pid, pidfd, channel, uid
        self.cpus = cpus  # the processors that it may use
        self.connection: Connection | None = None
        self.creating: int | None = None  # the request that waits for READY
        self.failure: tuple[str, int, str] | None = None
        self.waiting: list[int] = []  # requests that wait for the end of it
        self.kills: dict[int, list[int]] = {}  # execution -> requests that wait until it is empty
        self.holds = 0  # how often its worker was asked to hold still, and has not answered
        self.killed = False
        self.shown_to = shown_to  # who has read its network namespace already
        self.listeners: list[int] = []  # of the plan's ports, until the answer to its create takes them
        self.ports = set(plan.ports)  # of its listeners, which are somebody else's by then
        self.status = 0
        self.limits: dict[str, int] = {}  # of the payload, read back from the kernel
        self.ended: list[int] = []  # finished, groups not yet removed
        self._left: dict[int, None] = {}  # finished, but something that they left behind still runs
        self._last = 0
        self._spare: tuple[int, list[int]] | None = None
        self._open: set[int] = set()  # executions whose groups exist
        self._measured: dict[int, Usage] = {}  # of executions that are being killed
        self._unread: dict[int, Usage] = {}  # groups gone, usage not yet asked for
        self._verdicts: dict[int, tuple[str, str]] = {}  # reason and detail of executions that we ended

    # --- executions

    @property
    def executions_held(self) -> int:
        return len(self._open) + len(self._unread)

    @property
    def runs(self) -> bool:
        """Whether something may run in it. It is asked for every sandbox in each turn of the loop."""
        return bool(self._open)

    @property
    def running(self) -> list[int]:
        """Executions that have not ended, or that left a process behind, without those that are being killed."""
        return [number for number in self._open if number not in self.kills]

    def is_new(self, number: int) -> bool:
        return number > self._last

    def run(
        self,
        kind: int,
        number: int,
        in_memfd: int,
        limits: ExecutionPlan | None,
        body: bytes,
        descriptors: list[int],
    ) -> None:
        """Makes the groups of an execution and passes it to the worker, as `kind`. Raises OSError, and then nothing of
        it is left."""
        joins = self._take_spare(number)
        self._last = number
        try:
            packet = Writer(kind).u32(number).u8(in_memfd)
            if limits is not None:
                limits.write(packet)
                if limits.memory_bytes:
                    self.groups.limit_execution(number, limits.memory_bytes)
            packets.send(self.channel, bytes(packet.data) + body, descriptors + joins)
        except OSError:
            self.groups.remove_execution(number)
            raise
        finally:
            for descriptor in joins:
                os.close(descriptor)
        self._open.add(number)

    def make_spare(self) -> None:
        """Makes the next execution's groups, after an answer and before the next request, as this takes 0.15 ms."""
        if self._spare is None and self.pidfd >= 0:
            try:
                self._spare = (self._last + 1, self.groups.open_execution(self._last + 1))
            except OSError:
                return  # the execution that needs them will find out, and say so

    def _take_spare(self, number: int) -> list[int]:
        """Raises OSError."""
        spare, self._spare = self._spare, None
        if spare is not None and spare[0] == number:
            return spare[1]
        if spare is not None:
            packets.close(spare[1])
            self.groups.remove_execution(spare[0])
        return self.groups.open_execution(number)

    def figures(self, number: int) -> Figures | None:
        """Of an execution, or of the whole (0), as it is now; None for one of which nothing is left. Raises OSError."""
        return self.groups.figures(number) if number in self._open or not number else None

    def finish(self, number: int) -> tuple[Usage, tuple[str, str]] | None:
        """Returns what an ended execution used, and reason and detail if the launcher ended it (else empty). None for
        an execution that is not known, or not any more."""
        usage = self._unread.pop(number, None)
        if usage is None and number in self._open:
            usage = self._measured.get(number) or self.groups.usage(number)
            self.ended.append(number)
        return (usage, self._verdicts.pop(number, ("", ""))) if usage is not None else None

    def end(self, number: int, reason: str, detail: str) -> None:
        """Begins to kill the execution; `go_on_killing` continues. After its exit was asked for, the reason is no
        longer reported."""
        if number in self._open:
            self.kills.setdefault(number, [])
            if number not in self._left and number not in self.ended:
                self._verdicts.setdefault(number, (reason, detail))

    def tidy(self) -> None:
        """Removes the groups of ended executions. Where a process that was left behind still runs, it tries again
        later, a few groups at a time. This is done after the answer, as removing takes as long as everything else (70
        us, measured).
        """
        for number in [*self.ended, *tuple(self._left)[:_TRIED_AGAIN]]:
            self._left.pop(number, None)
            if number not in self._open:
                continue
            if self.groups.remove_execution(number):
                self._close(number)
            else:
                self._left[number] = None
        self.ended.clear()
        if self._last > 1:  # it may well have been the only one, and a memory group costs an idle sandbox 0.3 MiB
            self.make_spare()

    def go_on_killing(self) -> list[int]:
        """Continues the kills, and returns the executions of which nothing is left now."""
        return [number for number in tuple(self.kills) if self._kill_one(number)]

    def _kill_one(self, number: int) -> bool:
        if number not in self._open:
            return True
        frozen = self.freezer.settled  # asked before: then all that is there now is killed, and nothing is added
        if not self.groups.kill_execution(number, self.pid):
            if frozen:
                self.freezer.release(self.groups.alive(number))
            return False
        usage = self._measured.setdefault(number, self.groups.usage(number))  # while all of its groups are there
        if not self.groups.remove_execution(number):
            return False
        if number not in self._left:  # else it was asked for already, when the first process had ended
            self._unread[number] = usage
        self._close(number)
        return True

    def _close(self, number: int) -> None:
        self._open.discard(number)
        self._left.pop(number, None)
        self._measured.pop(number, None)

    def take_waiting_kills(self) -> list[int]:
        requests = [request for waiting in self.kills.values() for request in waiting]
        self.kills.clear()
        return requests

    # --- the whole

    def take_listeners(self, descriptors: list[int]) -> None:
        """Takes over what the worker made for the ports of the plan, and empties the list. Raises ProtocolError."""
        if self.listeners or len(descriptors) != listeners_of(self.plan):
            raise ProtocolError("the listeners come once, one for each port and one for names")
        self.listeners = list(descriptors)
        descriptors.clear()

    def hold(self) -> None:
        """Asks the worker to hold still, and to report when it has started all commands that came before. Raises
        OSError."""
        packets.send(self.channel, bytes((HOLD,)), [])
        self.holds += 1

    def kill(self) -> None:
        """Sends SIGKILL to PID 1 of the namespace. The kernel ends all other processes before the pidfd becomes
        readable. Frozen processes get SIGKILL before the thaw."""
        self.killed = True
        if self.pidfd >= 0:
            self.freezer.kill_frozen()
            try:
                kill_by_pidfd(self.pidfd, 9)
            except ProcessLookupError:
                return
            finally:
                self.freezer.thaw()

    def reap(self) -> None:
        _, self.status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pidfd = -1
        self.channel.close()
        packets.close(self.listeners)
        self.listeners.clear()
        if self._spare is not None:
            packets.close(self._spare[1])

    # --- evidence

    def measure(self, host: dict[str, int], layers: set[str], stores: TrustStores) -> tuple[dict[str, str], list[str]]:
        """Returns (facts for the receipt, what is not in force). It reads /proc and the control groups and not the
        plan."""
        status = probe.status_of(self.pid)
        own = probe.namespaces_of(self.pid)
        entered = [name for name, inode in own.items() if inode != host[name]]
        wanted = [n for n in probe.NAMESPACES if n != "user" or "user_namespace" in layers]
        facts = {
            "namespaces": ",".join(entered),
            "uid": status["Uid"].split()[0],
            "gid": status["Gid"].split()[0],
            "no_new_privs": status["NoNewPrivs"],
            "seccomp": status["Seccomp"],
            **_landlock(loopback_tcp=self.plan.loopback_tcp),
        }
        facts["landlock_ports"] = ",".join([str(port) for port in self.plan.ports] if facts["landlock_tcp"] else [])
        facts |= {name: value for name, value in status.items() if name.startswith("Cap")}
        facts |= {f"limit_{name}": str(value) for name, value in self.limits.items()}
        cpus = os.sched_getaffinity(self.pid)
        facts["cpuset_cpus"] = list_of(sorted(cpus)) if "cgroup_cpuset" in layers else ""
        facts |= probe.storage_of(self.pid)
        wrong = probe.shortcomings(status, entered, wanted) + self._strays()
        if "user_namespace" in layers and probe.owner_of_user_namespace(self.pid) != self.uid:
            wrong.append("its user namespace is not its own user's")
        if cpus != set(self.cpus):
            wrong.append("it may use other processors than its own")
        if len(self.listeners) != listeners_of(self.plan):
            wrong.append("the sockets of its ports are not there")
        if self.plan.authority:
            trusting = probe.covered(self.pid, stores.paths)
            facts |= {"trust_stores": ",".join(trusting), "trust_bundle": stores.bundle}
            if trusting != [path for path in stores.paths if os.path.exists(path)]:
                wrong.append("its authority is not in its trust stores")
        if facts["storage"] != ("disk" if self.plan.on_disk else "memory"):
            wrong.append(f"its files are on {facts['storage_file_system']}")
        return facts, wrong

    def _strays(self) -> list[str]:
        """What only a worker that skipped a step has: another sandbox's descriptors, or a place in a group of ours."""
        wrong: list[str] = []
        most = _OWN_DESCRIPTORS + len(self.groups.worker_group)
        if (probe.descriptors_of(self.pid) or len(os.listdir(f"/proc/{self.pid}/fd"))) > most:
            wrong.append("it holds descriptors that are not its own")
        outside = self.groups.not_with_workers(probe.groups_of(self.pid))
        wrong += [f"it is not in the workers' {name} group" for name in outside]
        if self.limits.get("worker_cpu_millis", WORKER_CPU_MILLIS) != WORKER_CPU_MILLIS:
            wrong.append("the limit of its worker's cpu time is not in force")
        return wrong


def listeners_of(plan: CreatePlan) -> int:
    """How many sockets the worker hands over: that of the resolver, and one for each port."""
    return 1 + len(plan.ports) if plan.ports else 0


def _landlock(*, loopback_tcp: bool) -> dict[str, str]:
    """What a worker's domain handles; that there is one, its own canary proved before it said READY."""
    if loopback_tcp not in _LANDLOCK:
        version = landlock.abi()
        tcp = 0 if loopback_tcp else landlock.handled_network(version)
        _LANDLOCK[loopback_tcp] = {
            "landlock_abi": str(version),
            "landlock_files": landlock.names(landlock.FS_NAMES, landlock.handled_files(version)),
            "landlock_tcp": landlock.names(landlock.NET_NAMES, tcp),
            "landlock_scopes": landlock.names(landlock.SCOPE_NAMES, landlock.handled_scopes(version)),
        }
    return _LANDLOCK[loopback_tcp]
