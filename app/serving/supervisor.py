"""`bulkhead serve`: starts launcher and gateway, and ends one when the other ends.

The supervisor and the launcher are root. The launcher is started again when it dies. The gateway becomes an
unprivileged user before it listens. Its end is the end of the service. docs/architecture.md has a picture.

Both children ask the kernel to be killed with this process, so a SIGKILL to it leaves nothing behind. Each of them may
also be a service of its own (`standalone.py`).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from app.core.limits import MIB
from app.launcher.config import Config
from app.launcher.daemon import cgroup_mounts
from app.serving.messages import say
from app.serving.slot import Slot, release, take_slot
from app.settings import Settings, storage_folder

_GRACE_SECONDS = 20.0
_READY_SECONDS = 20.0
REFUSED = 2  # the exit status of a start that was refused with a sentence
PROJECT = str(Path(__file__).resolve().parents[2])
# What a program needs of /etc: the loader's cache, certificates, time zone, and where Debian's packages look for
# their own settings. Never /etc as a whole: it holds the host's secrets and names.
_ETC = (
    "alternatives", "ca-certificates.conf", "debian_version", "fonts", "inputrc", "java*", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "os-release", "perl", "pki/tls/certs",
    "protocols", "python3*", "services", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)  # fmt: skip


class StartFailed(Exception):
    """`str(error)` is a sentence for people."""


def launcher_config(settings: Settings, slot: Slot) -> Config:
    """The launcher's configuration, with the operator's ceilings. The launcher refuses what the gateway asks for beyond
    them."""
    config, limits, process = Config(), settings.limits, settings.process
    config.socket, config.run_dir = str(process.launcher_socket or slot.launcher_socket), str(slot.folder)
    config.gateway_uid = config.gateway_gid = slot.gateway_uid
    if process.gateway_uid is not None:
        config.gateway_uid = config.gateway_gid = process.gateway_uid
    config.uid_first, config.uid_count = slot.uid_first + 1, slot.uid_count - 1
    config.cgroup_parent = process.cgroup_parent or slot.cgroup
    config.max_sandboxes = min(settings.capacity.sandboxes, slot.uid_count - 1)
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
    given: dict[str, Any], parent: int, uid: int, socket: Path | None, reason: str
) -> tuple[list[str], dict[str, str]]:
    """Returns (argv, environment). `parent` is the pid of the supervisor, with which the gateway dies, or 0 for a
    service of its own. `uid` is the user that it becomes, or -1. `reason` says why there is no socket."""
    environment = os.environ | {f"BULKHEAD_{name.upper()}": str(value) for name, value in given.items()}
    argv = [sys.executable, "-P", "-m", "app.serving.gateway", str(parent), str(uid), str(socket or ""), reason]
    return argv, environment | {"PYTHONPATH": PROJECT}


class Supervisor:
    """Without `with_gateway` it runs only the launcher."""

    def __init__(self, settings: Settings, given: dict[str, Any], *, with_gateway: bool = True) -> None:
        self._settings, self._given, self._with_gateway = settings, given, with_gateway
        self._slot: Slot | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._gateway: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._deaths: list[float] = []
        self._not_before = 0.0

    def run(self) -> int:
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            socket, reason = self._prepare()
            if self._with_gateway:
                self._gateway = self._start_gateway(socket, reason)
            elif socket is None:
                raise StartFailed(reason)
            else:
                say(f"the launcher listens on {socket}")
            return self._watch(wake)
        finally:
            self._end()

    def _prepare(self) -> tuple[Path | None, str]:
        """(the launcher's socket, why there is none)."""
        process = self._settings.process
        if os.geteuid() == 0:
            self._slot = take_slot(process.uid_base, process.uid_count)
        if not process.enabled:
            return None, "the operator has not enabled it"
        if self._slot is None:
            say("the runtime 'process' is not available: it needs a service that is started as root")
            return None, "the runtime 'process' needs a service that is started as root"
        config = launcher_config(self._settings, self._slot)
        self._launcher = start_launcher(config, (self._slot.lock,))
        return Path(config.socket), ""

    def _start_gateway(self, socket: Path | None, reason: str) -> subprocess.Popen[bytes]:
        uid = self._slot.gateway_uid if self._slot is not None else -1
        argv, environment = gateway_command(self._given, os.getpid(), uid, socket, reason)
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)

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
            delay = None
            if self._launcher is not None and self._slot is not None and self._launcher.poll() is not None:
                delay = self._launch_again(self._slot, self._launcher.returncode)
            select.select([wake], [], [], delay)  # a signal, or the end of a child
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)

    def _launch_again(self, slot: Slot, status: int) -> float | None:
        """At once, and slower when it keeps dying: returns the seconds to wait before it is tried again."""
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        say(f"the launcher ended with {status}: starting another; its sandboxes are lost")
        self._deaths = [when for when in self._deaths if now - when < 60] + [now]
        if len(self._deaths) > 3:
            self._not_before = now + min(10.0, 0.1 * 2 ** len(self._deaths))
        try:
            self._launcher = start_launcher(launcher_config(self._settings, slot), (slot.lock,))
        except StartFailed as error:
            say(str(error))
            return 1.0
        return None

    # --- the end

    def _end(self) -> None:
        """Gateway first, so that clients get their answers; then the launcher; then what the kernel leaves."""
        for child in (self._gateway, self._launcher):
            if child is not None and child.poll() is None:
                child.terminate()
                try:
                    child.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
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
    _, places = cgroup_mounts.locate(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    for _, folder in places:
        for path in (Path(folder, parent), Path(folder, parent).parent):
            with contextlib.suppress(OSError):
                path.rmdir()
