"""The end of an execution of the runtime `boxlite`, without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from app.backends.boxlite.execution import BoxliteExecution
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.backend import Logs
from app.core.models import Exit, ExitReason
from app.core.output import OutputLog
from tests.unit.core.support import command


async def test_whoever_waits_for_the_end_goes_on_in_the_next_turn_of_the_loop() -> None:
    """And one that gives up takes nothing from the others."""
    server: Any = SimpleNamespace(timeouts=ServerTimeouts())
    box: Any = SimpleNamespace(ending=False)
    logs = Logs(OutputLog(1024), OutputLog(1024))
    execution = BoxliteExecution(server, box, "exe_1", command("true"), logs, 1024, exact=False)
    gives_up, waiting = (asyncio.create_task(execution.wait()) for _ in range(2))
    await asyncio.sleep(0)
    gives_up.cancel()
    await asyncio.wait([gives_up])
    execution.fail_start(Exit(ExitReason.EXITED, code=3))
    await asyncio.sleep(0)
    assert waiting.done()
    assert (await waiting).code == 3
