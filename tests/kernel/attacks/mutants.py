"""Sandboxes of a launcher with one layer switched off, without a service around it."""

from __future__ import annotations

import asyncio
import base64
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from app.backends.process.backend import ProcessBackend
from app.core.backend import Logs
from app.core.limits import Limits
from app.core.models import Command, SandboxSpec
from app.core.output import OutputLog
from app.core.policy import Policy
from app.serving.slot import release, take_slot
from app.serving.supervisor import launcher_config
from app.settings import Settings
from tests.kernel.egress_double import EgressDouble
from tests.service import PATIENCE, PROJECT

SCRIPT = Path(__file__).with_name("mutant_launcher.py")
_POLICY = Policy()
_UIDS = 1_880_000_000  # away from those of the services


class Launcher:
    """Use as a context manager: the (mutated) launcher runs inside of it. `extra`: more paths of the host for the
    template."""

    def __init__(self, data: Path, mutation: str = "none", extra: tuple[str, ...] = ()) -> None:
        self._slot = take_slot(_UIDS, 65_536)
        config = launcher_config(Settings(data=data), self._slot)
        config.root_paths += extra
        self.cgroup = config.cgroup_parent
        self.socket = self._slot.launcher_socket
        read, write = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(write, "wb") as file:
            file.write(config.dump().encode())
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", SCRIPT, PROJECT, mutation, str(read), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(read,),
            cwd="/",
            env={"LANG": "C.UTF-8"},
        )
        os.close(read)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        ready = (
            select.select([self._process.stdout], [], [], PATIENCE)[0] and self._process.stdout.readline() == b"ready\n"
        )
        if not ready:
            said = self._end()
            raise AssertionError(f"the launcher did not start: {said.decode()}")
        return self

    def _end(self) -> bytes:
        self._process.terminate()
        _, said = self._process.communicate(timeout=PATIENCE)
        # In a process of its own: it leaves descriptors open, as it is the last that a supervisor does.
        code = "import sys; from app.serving.supervisor import remove_groups; remove_groups(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, self.cgroup], cwd=PROJECT, check=True)
        release(self._slot)
        return said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def attack(self, probe: Path, *names: str, env: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Creates a default sandbox and runs the probe in it. Raises what the create raises."""
        text = await asyncio.to_thread(lambda: base64.b64encode(probe.read_bytes()).decode())
        script = 'echo "$1" | base64 -d > probe && chmod 755 probe; shift; exec ./probe "$@"'
        out = await self.run("sh", "-c", script, "sh", text, *names, env=env)
        return dict(line.split(" ", 1) for line in out.splitlines())

    async def run(self, *argv: str, env: Mapping[str, str] | None = None, policy: Policy = _POLICY) -> str:
        """What a command prints in a sandbox of its own."""
        backend = ProcessBackend(self.socket, egress=EgressDouble())
        try:
            sandbox = await backend.create("mutant", SandboxSpec("process", Limits(), policy))
            logs = Logs(OutputLog(1 << 20), OutputLog(1 << 20))
            execution = await sandbox.execute("x1", Command(argv, env or {}), logs)
            await execution.wait()
            await sandbox.destroy()
        finally:
            await backend.aclose()
        return logs.stdout.read(0, 1 << 20).decode()
