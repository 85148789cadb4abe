"""`async def` tests run in a fresh event loop each; an error that the loop was left with makes them fail."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Coroutine
from typing import Any

import pytest


async def _run(test: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    failures: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(note)
    await test
    assert not failures, failures


def pytest_sessionstart() -> None:
    """A shell's `&` and nohup leave signals ignored, and every program that a test starts would inherit that."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames  # the public way, `funcargs`, also holds autouse fixtures
    asyncio.run(_run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted})))
    return True
