"""`bulkhead serve`: starts launcher, egress process and gateway, and ends the others when the gateway ends.

The supervisor and the launcher are root. Launcher and egress process are started again when they die. Gateway and
egress process become unprivileged users before they listen or dial. The end of the gateway is the end of the service.
docs/architecture.md has a picture.

All children ask the kernel to be killed with this process, so a SIGKILL to it leaves nothing behind. Gateway and
launcher may also be services of their own (`standalone.py`).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.core.limits import MIB
from app.launcher.config import Config
from app.launcher.daemon import cgroup_mounts
from app.serving.egress_process import egress_config, listen_for_gateway, start_egress
from app.serving.ending import end_in_order
from app.serving.messages import say
from app.serving.restarting import RestartedProcess, StartFailed
from app.serving.secrets_feed import LOOK_SECONDS, SecretsSender
from app.serving.slot import Slot, release, take_slot
from app.settings import Settings, storage_folder
from app.settings.secrets_file import SecretsFileError

_READY_SECONDS = 100.0  # it took more than 20 s on an emulated processor that was busy
REFUSED = 2  # the exit status of a start that was refused with a sentence
PROJECT = str(Path(__file__).resolve().parents[2])
# What a program needs of /etc: the loader's cache, certificates, time zone, and where Debian's packages look for
# their own settings. Never /etc as a whole: it holds the host's secrets and names.
_ETC = (
    "alternatives", "ca-certificates.conf", "debian_version", "fonts", "inputrc", "java*", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "os-release", "perl", "pki/ca-trust/extracted",
    "pki/tls/certs", "protocols", "python3*", "services", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "timezone",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceSockets:
    """What the gateway connects to; None: there is none. `no_proxy` says why boxes find no proxy; empty: they do."""

    launcher: Path | None = None
    egress: Path | None = None
    no_proxy: str = "only a service that is started as root, and starts its egress process itself, can have it"


def launcher_config(settings: Settings, slot: Slot) -> Config:
    """The launcher's configuration, with the operator's ceilings. The launcher refuses what the gateway asks for beyond
    them."""
    config, limits, process = Config(), settings.limits, settings.process
    config.socket, config.run_dir = str(process.launcher_socket or slot.launcher_socket), str(slot.folder)
    config.gateway_uid = config.gateway_gid = slot.gateway_uid
    if process.gateway_uid is not None:
        config.gateway_uid = config.gateway_gid = process.gateway_uid
    config.uid_first, config.uid_count = slot.sandbox_uids.start, len(slot.sandbox_uids)
    config.cgroup_parent = process.cgroup_parent or slot.cgroup
    config.max_sandboxes = min(settings.capacity.sandboxes, len(slot.sandbox_uids))
    config.max_executions = settings.capacity.executions_running + settings.capacity.executions_kept
    config.max_file_locks = process.max_file_locks
    config.max_terminals = process.max_terminals
    config.storage_dir = str(storage_folder(settings))
    config.storage_reserve_bytes = process.storage_reserve_mib * MIB
    config.max_cpu_millis = round(limits.cpus.ceiling * 1000)
    config.max_memory_bytes = int(limits.memory_mib.ceiling) * MIB
    config.max_disk_bytes = int(limits.disk_mib.ceiling) * MIB
    config.max_processes = int(limits.processes.ceiling)
    config.root_paths = ["/usr", *(str(path) for path in process.root_paths)]
    config.etc_paths = sorted(str(path) for pattern in _ETC for path in Path("/etc").glob(pattern))
    config.accept_missing = list(process.accept_missing)
    return config


def start_launcher(config: Config, keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """Starts the launcher in a fresh interpreter without site packages. Returns when it serves. Raises StartFailed."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(write, "wb") as file:
        file.write(config.dump().encode())
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from app.launcher.__main__ import main; "
        "main(int(sys.argv[1]), int(sys.argv[2]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, PROJECT, str(read), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(read, *keep),
        start_new_session=True,  # a Ctrl-C in the terminal is for us, who end things in order
        cwd="/",
        env={"LANG": "C.UTF-8", "PATH": os.defpath},
    )
    os.close(read)
    said = child.stdout
    if said is None or not select.select([said], [], [], _READY_SECONDS)[0] or said.readline() != b"ready\n":
        child.kill()
        child.communicate()
        raise StartFailed("the launcher did not start; its message is above")
    return child


def gateway_command(
    given: dict[str, Any], parent: int, uid: int, sockets: ServiceSockets, reason: str, secrets: int = -1
) -> tuple[list[str], dict[str, str]]:
    """Returns (argv, environment). `parent` is the pid of the supervisor, with which the gateway dies, or 0 for a
    service of its own. `uid` is the user that it becomes, or -1. `reason` says why there is no launcher. `secrets` is
    the descriptor through which the operator's secrets come, or -1."""
    environment = os.environ | {f"BULKHEAD_{name.upper()}": str(value) for name, value in given.items()}
    told = (parent, uid, sockets.launcher or "", sockets.egress or "", reason, sockets.no_proxy, secrets)
    argv = [sys.executable, "-P", "-m", "app.serving.gateway", *map(str, told)]
    return argv, environment | {"PYTHONPATH": PROJECT}


class Supervisor:
    """Without `with_gateway` it runs only the launcher."""

    def __init__(self, settings: Settings, given: dict[str, Any], *, with_gateway: bool = True) -> None:
        self._settings, self._given, self._with_gateway = settings, given, with_gateway
        self._slot: Slot | None = None
        self._egress: RestartedProcess | None = None
        self._proxy: socket.socket | None = None  # kept for the next egress process
        self._launcher: RestartedProcess | None = None
        self._gateway: subprocess.Popen[bytes] | None = None
        self._secrets: SecretsSender | None = None
        self._stopping = False

    def run(self) -> int:
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            sockets, reason = self._prepare()
            if self._with_gateway:
                self._gateway = self._start_gateway(sockets, reason)
            elif sockets.launcher is None:
                raise StartFailed(reason)
            else:
                say(f"the launcher listens on {sockets.launcher}")
            return self._watch(wake)
        finally:
            self._end()

    def _prepare(self) -> tuple[ServiceSockets, str]:
        """Starts what the gateway needs. Returns its sockets, and why there is no launcher."""
        process = self._settings.process
        if os.geteuid() == 0:
            self._slot = take_slot(process.uid_base, process.uid_count)
        sockets = ServiceSockets()
        if self._slot is not None and self._with_gateway and self._needs_egress:
            sockets = self._start_egress(self._slot)
        if not process.enabled:
            return sockets, "the operator has not enabled it"
        if self._slot is None:
            say("the runtime 'process' is not available: it needs a service that is started as root")
            return sockets, "the runtime 'process' needs a service that is started as root"
        slot, settings = self._slot, self._settings
        self._launcher = RestartedProcess(
            "the launcher",
            "its sandboxes are lost",
            lambda: start_launcher(launcher_config(settings, slot), (slot.lock,)),
        )
        return replace(sockets, launcher=process.launcher_socket or slot.launcher_socket), ""

    @property
    def _needs_egress(self) -> bool:
        settings = self._settings
        over_boxlite = settings.boxlite.in_use and settings.egress.boxlite_network is not None
        return bool(settings.egress.allow) and (settings.process.enabled or over_boxlite)

    def _start_egress(self, slot: Slot) -> ServiceSockets:
        """It gets ready while the launcher does."""
        listener = listen_for_gateway(slot.egress_socket, slot.gateway_uid)
        self._proxy, no_proxy = self._listen_for_boxes(slot)
        config = egress_config(self._settings, slot.gateway_uid, self._proxy)
        self._egress = RestartedProcess(
            "the egress process",
            "its connections are lost",
            lambda: start_egress(PROJECT, listener, slot.egress_uid, config),
        )
        return ServiceSockets(egress=slot.egress_socket, no_proxy=no_proxy)

    def _listen_for_boxes(self, slot: Slot) -> tuple[socket.socket | None, str]:
        """The proxy's listening socket, or why there is none."""
        network = self._settings.egress.boxlite_network
        if network is None or not self._settings.boxlite.in_use:
            return None, "the operator has not set BULKHEAD_EGRESS__BOXLITE_NETWORK"
        # Few services have one, and pyroute2 is a third of what a start loads here.
        from app.serving.box_network import NoBoxNetwork, listen_for_boxes

        try:
            return listen_for_boxes(network, f"bh-{slot.uid_first}"), ""
        except NoBoxNetwork as error:
            say(f"no sandbox of the runtime 'boxlite' can have a network of the mode proxy: {error}")
            return None, str(error)

    def _start_gateway(self, sockets: ServiceSockets, reason: str) -> subprocess.Popen[bytes]:
        uid = self._slot.gateway_uid if self._slot is not None else -1
        secrets = self._open_secrets()
        argv, environment = gateway_command(self._given, os.getpid(), uid, sockets, reason, secrets)
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            pass_fds=() if secrets < 0 else (secrets,),
        )

    def _open_secrets(self) -> int:
        """Returns the gateway's end, or -1. Raises StartFailed."""
        path = self._settings.egress.secrets_file
        if path is None:
            return -1
        try:
            self._secrets = SecretsSender(path)
        except SecretsFileError as error:
            raise StartFailed(str(error)) from None
        return self._secrets.gateways.fileno()

    # --- while it runs

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _watch(self, wake: int) -> int:
        while True:
            status = self._gateway.poll() if self._gateway is not None else None
            if status is not None:
                if not self._stopping and status != REFUSED:  # then it has said why
                    say(f"the gateway ended with {status}")
                return 0 if self._stopping else (status if status > 0 else 1)
            if self._stopping:
                return 0
            delays = [child.revive() for child in (self._launcher, self._egress) if child is not None]
            if self._secrets is not None:
                self._secrets.look()
                delays.append(LOOK_SECONDS)
            delay = min((seconds for seconds in delays if seconds is not None), default=None)
            select.select([wake], [], [], delay)  # a signal, or the end of a child
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)

    # --- the end

    def _end(self) -> None:
        """Its processes first, then what the kernel leaves."""
        egress, launcher = (None if child is None else child.process for child in (self._egress, self._launcher))
        end_in_order(self._gateway, egress, launcher)
        if self._secrets is not None:
            self._secrets.close()
        if self._slot is not None:
            remove_groups(self._settings.process.cgroup_parent or self._slot.cgroup)
            shutil.rmtree(self._slot.folder, ignore_errors=True)
            release(self._slot)


def remove_groups(parent: str) -> None:
    """Removes the launcher's folders, which are empty now, on version 1 or 2."""
    tree = cgroup_mounts.open_tree(parent)
    with contextlib.suppress(OSError):
        tree.end_frozen()
        tree.clean()
    for hierarchy in tree.hierarchies:
        os.close(hierarchy.parent)
    _, places = cgroup_mounts.locate(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    for _, folder in places:
        for path in (Path(folder, parent), Path(folder, parent).parent):
            with contextlib.suppress(OSError):
                path.rmdir()
