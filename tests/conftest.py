"""`async def` tests run in a fresh event loop each. An error that the loop was left with makes them fail, and so does
a callback that held it for too long (`callbacks.py`).

Tests with real microVMs get the mark `boxes` by what they ask for, so that scripts/test can run them beside the others.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.callbacks import CALLBACKS
from tests.late_connections import close_late_connections
from tests.require import require

if TYPE_CHECKING:
    from tests.boxlite.machine import Machine


# What is asserted in the tools of tests is explained like what is asserted in a test. Here, as the first of all: a
# module that was imported before cannot be rewritten.
pytest.register_assert_rewrite(
    "tests.boxlite.client",
    "tests.boxlite.recorded",
    "tests.boxlite.replay",
    "tests.boxlite.rig",
    "tests.integration.promises",
)

MEASURED = ("unit", "contract", "properties")  # where the service itself runs on the test's loop
ATTEMPTS = 5
BOXES_SECONDS = 900  # their machine is emulated, and the first one waits for it
if CALLBACKS.limit:
    CALLBACKS.install()
close_late_connections()

# A deadline, and how long it takes to make examples, is wall clock: where others work it fails a test that is right.
hypothesis.settings.register_profile("no_clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no_clock")


async def _run(test: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    failures: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(note)
    CALLBACKS.forget()
    await test
    assert not failures, failures


def pytest_sessionstart() -> None:
    """A shell's `&` and nohup leave signals ignored, and every program that a test starts would inherit that."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` chooses."""
    for item in items:
        if isinstance(item, pytest.Function) and _needs_boxes(item):
            item.add_marker(pytest.mark.boxes)
            given = item.get_closest_marker("timeout")
            if given is None or given.args[0] < BOXES_SECONDS:
                item.add_marker(pytest.mark.timeout(BOXES_SECONDS))


def _needs_boxes(test: pytest.Function) -> bool:
    """By a fixture of a machine, or as the kind of backend or place that takes one when it is set up."""
    fixtures = [definitions[-1].func for definitions in test._fixtureinfo.name2fixturedefs.values()]
    asked = {f"{each.__module__}.{each.__name__}" for each in fixtures}
    if asked & {"tests.conftest.machine", "tests.integration.conftest.docker_machine"}:
        return True
    chosen = test.callspec.params if hasattr(test, "callspec") else {}
    return "machine" in {getattr(chosen.get(name), "name", chosen.get(name)) for name in ("kind", "place")}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames  # the public way, `funcargs`, also holds autouse fixtures
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    asyncio.run(_run(pyfuncitem.obj(**arguments)))
    if pyfuncitem.path.parent.relative_to(pyfuncitem.config.rootpath / "tests").parts[0] in MEASURED:
        _expect_no_slow_callback(pyfuncitem.obj, arguments)
    return True


def _expect_no_slow_callback(test: Callable[..., Coroutine[Any, Any, None]], arguments: dict[str, Any]) -> None:
    """What holds the loop in a test holds it each time that the test runs; what the machine did comes and goes."""
    held = CALLBACKS.too_slow()
    told = list(held)
    for number in range(2, ATTEMPTS + 1):
        if not held:
            return
        try:
            asyncio.run(_run(test(**_fresh(arguments, number))))
        except Exception as error:  # it may find what an earlier run left behind
            told.append(f"(run {number} failed: {error!r})")
            break
        held = CALLBACKS.too_slow()
        told += held
    if held:
        pytest.fail("the loop was held from everybody else: " + "\n".join(told), pytrace=False)


def _fresh(arguments: dict[str, Any], number: int) -> dict[str, Any]:
    if "tmp_path" not in arguments:
        return arguments
    (fresh := arguments["tmp_path"] / f"run {number}").mkdir()  # sockets and files of earlier runs are still there
    return arguments | {"tmp_path": fresh}


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """The real BoxLite server with real microVMs, one for all tests, started when the first one asks for it.

    Only what is built is used: a plain run of the tests does not begin with compiling for minutes."""
    from tests.boxlite.machine import missing, running_machine

    reason = missing()
    require("boxlite", not reason, f"{reason}; `make boxlite` builds what is needed, once, in some 8 minutes")
    with running_machine() as running:
        yield running
