"""The process runtime under the contract suite: one launcher for all tests, real sandboxes, and a look from outside."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from app.backends.process.backend import ProcessBackend
from app.core.backend import Backend
from app.launcher.config import Config
from app.serving.supervisor import remove_groups
from tests.kernel import host
from tests.kernel.direct import launcher
from tests.require import require


class ProcessRuntime:
    """Starts the launcher when the first test needs it, and another one when a test has killed it."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._config = Config()
        self._child: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        require("root", os.geteuid() == 0, "real isolation is made by a launcher that is started as root")

    async def open(self) -> Backend:
        if self._child is None or self._child.poll() is not None:
            self._start()  # in this thread: the launcher dies with the one that started it, prctl(2)
        return ProcessBackend(Path(self._config.socket))

    def _start(self) -> None:
        self.close()
        atexit.unregister(self.close)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._config, self._child = self._stack.enter_context(launcher(storage_dir=f"{folder}/storage"))
        atexit.register(self.close)

    def close(self) -> None:
        self._stack.close()
        self._child = None

    def _uids(self) -> range:
        return range(self._config.uid_first, self._config.uid_first + self._config.uid_count)

    def left(self, _: Backend) -> list[str]:
        """Groups and workers, without those of the one clone that is made ahead and rehearses with a child, and what
        else has a sandbox's uid."""
        parent, first = self._config.cgroup_parent.split("/")
        left = host.sandbox_groups(self._child.pid if self._child is not None else 0, int(first), parent)
        uids = set(self._uids())
        found = [pid for pid in host.pids() if uids & set(host.uids_of(pid))]
        workers = host.children_of(self._child.pid) if self._child is not None else []
        own = {*workers, *(child for worker in workers for child in host.children_of(worker))}
        if self._child is not None:
            own.add(self._child.pid)  # the launcher has a sandbox's effective uid for as long as it clones
        left += [f"process {host.describe(pid)}" for pid in found if pid not in own and host.state_of(pid)]
        return left + [f"worker {pid}" for pid in workers[:-1]]

    async def processes(self, backend: ProcessBackend, sandbox_id: str) -> int:
        sandbox = backend._sandboxes.get(sandbox_id)
        if sandbox is None:
            return 0
        uid = sandbox.receipt["host_uid"]
        return len(host.living_of(uid)) - 1  # its worker; what was killed may be a zombie for as long as that takes

    async def lose(self, backend: ProcessBackend, sandbox_id: str) -> None:
        assert self._child is not None
        uid = backend._sandboxes[sandbox_id].receipt["host_uid"]
        (worker,) = set(host.processes_of(uid)) & set(host.children_of(self._child.pid))
        os.kill(worker, signal.SIGKILL)

    def break_create(self, _: Backend) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait(60)
        uids = set(self._uids())
        host.until(lambda: not [pid for pid in host.pids() if uids & set(host.uids_of(pid))], "its workers end")
        remove_groups(self._config.cgroup_parent)  # those of the clone ahead, as the next launcher does when it starts
