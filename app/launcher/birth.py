"""Making one sandbox: groups, clone, identity. The copy confines itself (`confine.py`) and becomes the worker."""

from __future__ import annotations

import errno
import os

import _signal
import _socket

from app.launcher import cgroup, confine, landlock, packets, probe
from app.launcher.config import Config
from app.launcher.groups import Groups
from app.launcher.held import HeldSandbox
from app.launcher.mounts import INSIDE_ID
from app.launcher.protocol import GO, READY, STEP_FAILED, CreatePlan, Writer
from app.launcher.steps import Room
from app.launcher.syscalls import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, clone3
from app.launcher.worker import Worker

_CLONE = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS


# When the whole host runs out of memory, what nobody trusts goes first, whatever the service itself inherited.
_OOM_SCORE = "500"


class BirthError(OSError):
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


class Nursery:
    """Hands out uids and makes sandboxes in the template."""

    def __init__(
        self,
        config: Config,
        tree: cgroup.Tree,
        layers: set[str],
        filters: dict[str, bytes],
        masks: list[tuple[str, str]],
    ) -> None:
        self._config, self._tree, self._filters, self._masks = config, tree, filters, masks
        self._user_namespace = "user_namespace" in layers
        self._landlock_abi = landlock.abi()
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # A uid that was given back goes to the end of the line, so that a number is used again as late as possible.
        self._uids = list(range(config.uid_first, config.uid_first + config.uid_count))
        self.own_namespaces = probe.namespaces_of("self")
        self.own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def take_back(self, uid: int) -> None:
        self._uids.append(uid)

    def give_birth(self, plan: CreatePlan, owner: _socket.socket) -> HeldSandbox:
        """Raises BirthError, and then nothing of the sandbox is left."""
        if not self._uids:
            raise BirthError("allocate_uid", OSError(errno.EDQUOT, "no host uid is free"))
        groups = Groups(self._tree, plan.sandbox_id)
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        uid = self._uids.pop(0)
        step, pid, pidfd = "", -1, -1
        try:
            step = "clone"
            pid, pidfd = clone3(_CLONE | (CLONE_NEWUSER if self._user_namespace else 0))
            if pid == 0:
                self._become_worker(plan, owner, theirs, uid)
            # From here both work at once: the copy makes its network, this process its groups and maps.
            step = "make_cgroup"
            groups.make(plan.memory_bytes + plan.disk_bytes, plan.processes, plan.cpu_millis)
            step = "map_identity"
            self._map_identity(pid, uid)
            last = [groups.processes_file] if groups.processes_file >= 0 else []
            packets.send(ours, bytes((GO, len(last))), groups.home + last)
        except OSError as error:
            self._undo(pid, pidfd, groups, ours, uid)
            raise BirthError(step, error) from error
        finally:
            theirs.close()
            groups.close()
        return HeldSandbox(plan, groups, pid, pidfd, ours, uid)

    def _undo(self, pid: int, pidfd: int, groups: Groups, ours: _socket.socket, uid: int) -> None:
        if pid > 0:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
        ours.close()
        groups.remove()
        self._uids.append(uid)

    def _map_identity(self, pid: int, uid: int) -> None:
        """One uid and one gid of the host, as 1000 inside. Nothing else exists in there, root least of all."""
        if self._user_namespace:
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{pid}/{name}", f"{INSIDE_ID} {uid} 1")
        _write(f"/proc/{pid}/oom_score_adj", _OOM_SCORE)

    def _become_worker(self, plan: CreatePlan, owner: _socket.socket, channel: _socket.socket, uid: int) -> None:
        """In the copy. Never returns: an exception must not run the launcher's loop a second time."""
        try:
            _signal.set_wakeup_fd(-1)
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
            room = Room(self._config, plan)
            room.channel, room.owner = channel, owner
            room.null, room.masks, room.filter = self._null, self._masks, self._filters[plan.filter_name]
            room.landlock_abi, room.in_user_namespace = self._landlock_abi, self._user_namespace
            if not self._user_namespace:
                room.uid = uid
            try:
                confine.confine(room)
            except confine.Refused as refused:
                said = Writer(STEP_FAILED).text(refused.step).u32(refused.errno).text(refused.detail[:200])
                room.channel.send(bytes(said.data))
                os._exit(1)
            room.channel.send(bytes((READY,)))
            Worker(room).serve()
        finally:
            os._exit(0)
