"""A worker that is kept busy, as one that was taken over would be: its own group limits it, and it alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.backends.process.backend import ProcessBackend
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import Logs, SandboxHandle
from app.core.limits import Limits
from app.core.models import Command, ExitReason, SandboxSpec
from app.core.output import OutputLog
from app.core.policy import Policy
from app.launcher.daemon import cgroup_mounts
from app.launcher.daemon.cgroup_files import field
from tests.kernel.attacks.mutants import Launcher
from tests.service import PATIENCE

STORM = "import os\nfor _ in range(6): os.fork()\nwhile True: os.kill(1, 17)"


def throttled(parent: str, sandbox: ProcessSandbox) -> int:
    """In how many periods its worker's group was stopped because its time was used up."""
    text = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    folders = [folder for names, folder in cgroup_mounts.locate(*text)[1] if "cpu" in names]
    group = f"s-{sandbox.receipt['host_uid']}"
    return field(Path(folders[0], parent, "_workers", group, "cpu.stat").read_text(), "nr_throttled")


async def execute(sandbox: SandboxHandle, *argv: str) -> tuple[ExitReason, int | None]:
    logs = Logs(OutputLog(1 << 20), OutputLog(1 << 20))
    execution = await sandbox.execute("x1", Command(argv, {}), logs)
    exit_ = await execution.wait()
    return exit_.reason, exit_.code


async def test_busy_worker_is_stopped_by_its_own_limit_and_no_other_is(tmp_path: Path) -> None:
    with Launcher(tmp_path, "worker_never_rests") as launcher:
        backend = ProcessBackend(launcher.socket)
        spec = SandboxSpec("process", Limits(), Policy())
        busy, quiet = [await backend.create(name, spec) for name in ("busy", "quiet")]
        storm = asyncio.create_task(execute(busy, "python3", "-c", STORM))
        async with asyncio.timeout(PATIENCE):
            while throttled(launcher.cgroup, busy) < 3:
                assert await execute(quiet, "true") == (ExitReason.EXITED, 0)
        assert throttled(launcher.cgroup, quiet) == 0
        await busy.destroy()
        assert (await storm)[0] is ExitReason.SIGNALED
        await quiet.destroy()
        await backend.aclose()
