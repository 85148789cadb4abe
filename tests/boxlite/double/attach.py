"""The two attach routes: what is refused before the upgrade, and the session that follows it."""

from __future__ import annotations

from tests.boxlite.double.connection import Upgrade
from tests.boxlite.double.engine import Engine
from tests.boxlite.double.execution import Execution
from tests.boxlite.double.faults import Attach
from tests.boxlite.double.http import Failure, Request, Unframed
from tests.boxlite.double.session import Session
from tests.boxlite.double.settings import Settings
from tests.boxlite.double.websocket import WebSocket

STDIN = {"1": False, "true": False, "0": True, "false": True}


def attach(engine: Engine, settings: Settings, request: Request, args: list[str], fault: Attach | None) -> Upgrade:
    _refuse_plain(request)
    read_only = _read_only(request)
    execution = engine.execution(*args)
    taken = f"execution {execution.id} already has an attached client"
    return _session(engine, execution, settings, taken, read_only=read_only, fault=fault)


async def attach_main(
    engine: Engine, settings: Settings, request: Request, args: list[str], fault: Attach | None
) -> Upgrade:
    """To the main command; a box that never ran is booted for it, and its command waits for /start."""
    _refuse_plain(request)
    read_only = _read_only(request)
    box = engine.box(args[0])
    box.touch()
    main = (await box.prepare()).main
    engine.executions[args[0], main.id] = main
    taken = f"box {box.id} main session already has an attached client"
    upgrade = _session(engine, main, settings, taken, read_only=read_only, fault=fault)
    upgrade.headers.append(("x-boxlite-execution-id", main.id))
    return upgrade


def _refuse_plain(request: Request) -> None:
    if "upgrade" not in request.headers.get("connection", "").lower():
        raise Unframed(400, "Connection header did not include 'upgrade'")


def _read_only(request: Request) -> bool:
    given = request.query.get("stdin", "1")
    if given not in STDIN:
        raise Failure("invalid_argument", f'stdin must be one of 0, 1, false, true; got "{given}"')
    return STDIN[given]


def _session(
    engine: Engine, execution: Execution, settings: Settings, taken: str, *, read_only: bool, fault: Attach | None
) -> Upgrade:
    """The slot is taken before the upgrade, so that of two clients at once one is refused."""
    if execution.attached or execution.doomed:
        raise Failure("invalid_state", taken)
    execution.free.clear()

    async def talk(socket: WebSocket) -> None:
        await Session(socket, execution, settings, engine.frames, read_only=read_only, fault=fault).run()

    return Upgrade(talk, [])
