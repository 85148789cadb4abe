"""What the server does on its own every 30 s: evict, reap what nobody is attached to, AutoStop and AutoDelete."""

from __future__ import annotations

import asyncio

from tests.boxlite.double.box import Box
from tests.boxlite.double.engine import Engine
from tests.boxlite.double.execution import Execution
from tests.boxlite.double.machine import GuestLost, NoSuchProcess
from tests.boxlite.double.settings import Settings


async def keep_house(engine: Engine, settings: Settings) -> None:
    reached: dict[Execution, int] = {}
    while True:
        await asyncio.sleep(settings.tick_seconds)
        moment = asyncio.get_running_loop().time()
        for key, execution in list(engine.executions.items()):
            if execution.ended_at is not None:
                if moment - execution.ended_at >= settings.evict_seconds:
                    del engine.executions[key]
            elif not execution.main and await _reap(execution, moment - execution.last_seen, settings, reached):
                del engine.executions[key]
        for box in list(engine.boxes):
            await _expire(engine, box, moment - box.last_activity)


async def _reap(execution: Execution, alone: float, settings: Settings, reached: dict[Execution, int]) -> bool:
    """HUP, TERM, KILL, each once; an attach in between starts anew. True when it was killed."""
    if execution.attached:
        reached.pop(execution, None)
        return False
    steps = (1, 15, 9)
    step = reached.get(execution, 0)
    if alone < settings.reconnect_grace + step * settings.shutdown_grace:
        return False
    reached[execution] = step + 1
    try:
        await execution.signal(steps[step])
    except (NoSuchProcess, GuestLost):
        return True
    return steps[step] == 9


async def _expire(engine: Engine, box: Box, idle: float) -> None:
    """Counted from the last activity; a running execution holds both off."""
    if box.run is not None and box.run.busy():
        return
    if box.options.auto_delete and idle >= box.options.auto_delete:
        await engine.delete(box, force=True)
    elif box.run is not None and box.options.auto_stop and idle >= box.options.auto_stop:
        await box.stop()
