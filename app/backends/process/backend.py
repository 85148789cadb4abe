"""Runtime `process`: the backend needs no privilege and decides nothing about isolation. It asks the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from functools import lru_cache, partial
from pathlib import Path

from app import __version__
from app.backends.egress_link import EgressLink
from app.backends.process.files import FileRoom, ProcessFiles
from app.backends.process.link import RUNTIME, LauncherLink, LauncherRefused
from app.backends.process.network_sockets import NetworkSockets
from app.backends.process.pipes import PipeBudget
from app.backends.process.plan import create_plan, trust_environment
from app.backends.process.receipt import Networks, isolation
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.disk_room import no_room
from app.core.errors import (
    BackendUnavailable,
    BulkheadError,
    CapabilityMissing,
    CapacityExceeded,
    InvalidRequest,
    IsolationUnavailable,
    LaunchFailed,
)
from app.core.limits import MIB
from app.core.models import SandboxSpec
from app.core.workdirs import prepare_workdir
from app.egress.authority import new_authority
from app.launcher.protocol import CREATE, ProtocolError, Writer

CAPABILITIES = frozenset(
    {
        Capability.STDIN,
        Capability.SIGNALS,
        Capability.SIGNAL_GROUP,
        Capability.KILL_TREE,
        Capability.PROMPT_EXIT,
        Capability.EXACT_OUTPUT,
        Capability.MERGED_OUTPUT,
        Capability.OOM_EVIDENCE,
        Capability.USAGE,
        Capability.LIMIT_CPUS,
        Capability.LIMIT_MEMORY,
        Capability.LIMIT_DISK,
        Capability.LIMIT_PROCESSES,
        Capability.STORAGE_MEMORY,
        Capability.STORAGE_DISK,
        Capability.EXECUTION_LIMITS,
        Capability.EXECUTION_RLIMITS,
        Capability.FILESYSTEM_POLICY,
        Capability.SYSCALL_PROFILES,
        Capability.FILES,
        Capability.PAUSE,
        Capability.PTY,
    }
)

NO_EGRESS = "this service has no egress process"
LAYERS = {"cgroup_freezer": Capability.PAUSE, "loop_storage": Capability.STORAGE_DISK}  # a host may lack one of these


class ProcessBackend:
    """`socket_path` is the launcher's; `reason` says why there is none (the host cannot run one), or is empty. Without
    `egress` no sandbox can have a network."""

    def __init__(self, socket_path: Path | None, reason: str = "", egress: EgressLink | None = None) -> None:
        self._reason, self._egress = reason, egress
        self._limitation = ""
        self._networks = Networks()
        self._link = (
            LauncherLink(socket_path, self._on_lost, self._on_gone, self._networks.read) if socket_path else None
        )
        self._sandboxes: dict[str, ProcessSandbox] = {}
        self._budget = PipeBudget()

    @property
    def info(self) -> RuntimeInfo:
        about = self._link.about if self._link is not None else {}
        layers, disk_bytes = about.get("layers"), about.get("disk_bytes")
        return _info_of(layers, disk_bytes, self._limitation, has_egress=self._egress is not None)

    def open(self) -> None:
        """Does nothing: the launcher is called when it is needed."""

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        return spec

    async def ready(self) -> None:
        link = self._require_link()
        await link.greet()
        missing = link.about.get("missing", "")
        if missing:
            layer = missing.split(",")[0]
            raise IsolationUnavailable(layer, f"this host lacks {missing}; `bulkhead probe` says how to get it")
        reason = await self._egress.unavailable_reason() if self._egress is not None else ""
        self._limitation = f"no sandbox can have a network of the mode proxy: {reason}" if reason else ""

    def _require_link(self) -> LauncherLink:
        if self._link is None:
            raise BackendUnavailable(RUNTIME, self._reason or "there is no launcher", 60)
        return self._link

    def _egress_for(self, spec: SandboxSpec) -> EgressLink | None:
        if spec.policy.network.mode != "proxy":
            return None
        if self._egress is None:
            raise BackendUnavailable(RUNTIME, NO_EGRESS, 60)
        return self._egress

    # --- create

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> ProcessSandbox:
        link, egress = self._require_link(), self._egress_for(spec)
        await link.connect()
        authority = new_authority() if spec.policy.may_read_http else None
        plan = create_plan(sandbox_id, spec, authority.certificate if authority else "")
        body = bytes(plan.write(Writer(0)).data[1:])
        try:
            owner, workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise BackendUnavailable(RUNTIME, f"no descriptors are left for a sandbox: {error.strerror}") from error
        owner.setblocking(False)
        with workers_end:
            files = partial(ProcessFiles, room=FileRoom(spec.storage, spec.limits.disk_mib * MIB))
            forget = partial(self._forget, sandbox_id)
            sandbox = ProcessSandbox(link, sandbox_id, owner, self._budget, files, forget)
            self._sandboxes[sandbox_id] = sandbox
            try:
                due = 1 + len(plan.ports) if plan.ports else 0
                answer = await link.request(CREATE, body, [workers_end.fileno()], due=due)
                if plan.ports:
                    sandbox.connect(NetworkSockets(answer.descriptors, plan.ports))
                facts = dict(item.decode().partition("=")[::2] for item in answer.source.many(64, 4096))
                network = self._networks.take(int(facts["uid"]), any_address=bool(plan.ports))
                sandbox.prove(isolation(facts, link.about, spec, network | {"ports": plan.ports}, authority))
                sandbox.add_environment(trust_environment(facts))
                if egress is not None:
                    rules = spec.policy.network.rules
                    await sandbox.open_network(egress, rules, spec.secrets, authority, spec.client)
                await prepare_workdir(sandbox.files, spec.workdir)
            except LauncherRefused as refused:
                await sandbox.abandon()
                raise _translate(refused, spec) from refused
            except (ProtocolError, OSError, ValueError, KeyError) as error:
                await sandbox.abandon()
                raise LaunchFailed("receipt", "", f"the sandbox could not be measured: {error}") from error
            except BaseException:
                await sandbox.abandon()
                raise
        return sandbox

    # --- endings

    def _forget(self, sandbox_id: str) -> None:
        self._sandboxes.pop(sandbox_id, None)

    def _on_lost(self, sandbox_id: str, status: int) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            how = f"signal {_signal_of(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
            sandbox.end(f"its worker ended with {how}")

    def _on_gone(self) -> None:
        for sandbox in tuple(self._sandboxes.values()):
            sandbox.end("the launcher ended")

    async def aclose(self) -> None:
        for sandbox in tuple(self._sandboxes.values()):
            with contextlib.suppress(BulkheadError):
                await sandbox.destroy()
        if self._egress is not None:
            self._egress.aclose()
        if self._link is not None:
            self._link.close()
        await asyncio.sleep(0)


@lru_cache(maxsize=1)  # it is asked for 13 times in a create
def _info_of(layers: str | None, disk_bytes: str | None, limitation: str, *, has_egress: bool) -> RuntimeInfo:
    """By what the launcher has told. None: not yet."""
    capabilities = CAPABILITIES if layers is None else _of_host(layers.split(","))
    if has_egress:
        capabilities |= {Capability.NETWORK_PROXY, Capability.SECRETS}
    return RuntimeInfo(
        RUNTIME,
        "kernel",
        __version__,
        capabilities,
        aliases=("linux", "kernel"),
        no_proxy=f"has no network: {NO_EGRESS}",
        disk_bytes=None if disk_bytes is None else int(disk_bytes),
        limitation=limitation,
    )


def _of_host(layers: list[str]) -> frozenset[Capability]:
    """What the launcher's host can do. It is known once the launcher has told its layers. These two are not worth
    refusing every sandbox."""
    return CAPABILITIES - {capability for layer, capability in LAYERS.items() if layer not in layers}


def _translate(refused: LauncherRefused, spec: SandboxSpec) -> BulkheadError:
    name = errno.errorcode.get(refused.errno, str(refused.errno))
    if refused.step == "layer:loop_storage":
        detail = f"the runtime {RUNTIME!r} lacks {Capability.STORAGE_DISK}: {refused.detail}"
        return CapabilityMissing([Capability.STORAGE_DISK], RUNTIME, detail)
    if refused.step.startswith("layer:"):
        return IsolationUnavailable(refused.step.partition(":")[2], refused.detail)
    if refused.step == "storage" and refused.errno == errno.ENOSPC:
        return no_room(spec.limits.disk_mib)
    if refused.errno == errno.EDQUOT:
        detail = f"the launcher cannot make another sandbox: {refused.detail}; try again when one has ended"
        return CapacityExceeded("sandboxes of the launcher", detail=detail)
    if refused.step == "restrict_files" and refused.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return InvalidRequest.at("/policy/filesystem", f"a path does not exist in the sandbox: {refused.detail}")
    return LaunchFailed(refused.step, name, f"step {refused.step} failed: {name} ({refused.detail})")


def _signal_of(status: int) -> str:
    try:
        return signal.Signals(os.WTERMSIG(status)).name
    except ValueError:
        return str(os.WTERMSIG(status))
