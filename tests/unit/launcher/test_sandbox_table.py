"""What the launcher does with a sandbox whose worker is ready."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

from app.launcher.daemon.sandbox_table import SandboxTable


def test_sandbox_that_cannot_be_kept_to_its_processors_is_ended_and_not_served() -> None:
    def refuse(cpus: list[int]) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    killed: list[bool] = []
    sandbox = SimpleNamespace(
        creating=1,
        connection=object(),
        cpus=[1],
        groups=SimpleNamespace(limit_cpus=refuse),
        kill=lambda: killed.append(True),
        failure=None,
    )
    SandboxTable.__new__(SandboxTable)._welcome(cast(Any, sandbox))
    assert sandbox.failure == ("limit_cpus", errno.EACCES, "Permission denied")
    assert (killed, sandbox.creating) == ([True], 1), "its create is answered when it has ended"
