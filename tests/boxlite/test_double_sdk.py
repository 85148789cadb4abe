"""The official client is content with the double: what it does against a real server, it does here."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.boxlite.client import box_double
from tests.boxlite.double import Answer, Double, Route
from tests.require import require

IDLE = ["sleep", "infinity"]
ERRORS = {
    "invalid_argument": "InvalidArgumentError",
    "unsupported": "UnsupportedError",
    "unauthenticated": "ConfigError",
    "not_found": "NotFoundError",
    "invalid_state": "InvalidStateError",
    "stopped": "StoppedError",
    "image_pull_failed": "ImageError",
    "resource_exhausted": "ResourceExhaustedError",
    "internal": "InternalError",
    "storage_error": "StorageError",
    "config_error": "ConfigError",
    "engine_unavailable": "EngineError",
    "upstream_unavailable": "UpstreamUnavailableError",
}


@asynccontextmanager
async def official() -> AsyncIterator[tuple[Double, Any, Any]]:
    """The double, the module of the official client, and its runtime."""
    require("boxlite-sdk", importlib.util.find_spec("boxlite") is not None, "the package boxlite is not installed")
    import boxlite

    async with box_double() as double:
        credential = boxlite.ApiKeyCredential(double.key)
        yield double, boxlite, boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(double.url, credential=credential))


async def running(boxlite: Any, runtime: Any, name: str | None = None) -> Any:
    network = boxlite.NetworkSpec(mode="disabled")
    options = boxlite.BoxOptions(image="debian", cmd=IDLE, auto_remove=False, detach=True, network=network)
    box = await runtime.create(options, name=name)
    await box.start()
    return box


async def everything(stream: Any) -> str:
    return "".join([piece async for piece in stream])


async def test_the_life_of_a_box() -> None:
    async with official() as (double, boxlite, runtime):
        box = await running(boxlite, runtime, "named-1")
        listed = await runtime.list_info()
        assert [(info.id, info.name, info.state.status) for info in listed] == [(box.id, "named-1", "running")]
        assert double.sent(Route.CREATE)[0].json["network"] == {"mode": "disabled"}
        with pytest.raises(boxlite.InvalidArgumentError, match="already exists"):
            await runtime.create(boxlite.BoxOptions(image="debian"), name="named-1")
        await box.stop()
        assert (await runtime.get_info("named-1")).state.status == "stopped"
        with pytest.raises(boxlite.InvalidStateError, match="main command has already run"):
            await box.exec("true")
        await runtime.remove(box.id)
        assert await runtime.list_info() == []
        assert await runtime.get("named-1") is None


async def test_a_command_with_stdin_and_both_outputs() -> None:
    async with official() as (_, boxlite, runtime):
        box = await running(boxlite, runtime)
        script = "echo out; echo err >&2; cat; echo $WORD; exit 3"
        execution = await box.exec("sh", ["-c", script], [("WORD", "last")], False)
        stdin = execution.stdin()
        await stdin.send_input(b"typed\n")
        await stdin.close()
        stdout, stderr = await asyncio.gather(everything(execution.stdout()), everything(execution.stderr()))
        assert (stdout, stderr) == ("out\ntyped\nlast\n", "err\n")
        assert (await execution.wait()).exit_code == 3
        with pytest.raises(boxlite.InternalError, match="'no-such-command' not found in"):
            await box.exec("no-such-command")


async def test_a_terminal_and_its_size() -> None:
    async with official() as (_, boxlite, runtime):
        box = await running(boxlite, runtime)
        execution = await box.exec("sh", ["-c", "stty size; read x; stty size; exit 4"], None, True)
        stdin, stdout = execution.stdin(), aiter(execution.stdout())
        assert await anext(stdout) == "24 80\r\n"
        await execution.resize_tty(40, 120)
        await stdin.send_input(b"go\n")
        assert await everything(stdout) == "go\r\n40 120\r\n"
        assert (await execution.wait()).exit_code == 4


async def test_signals_and_kill() -> None:
    async with official() as (_, boxlite, runtime):
        box = await running(boxlite, runtime)
        signalled = await box.exec("sleep", ["100"])
        await signalled.signal(15)
        assert (await signalled.wait()).exit_code == -15
        killed = await box.exec("sh", ["-c", "echo attached; exec sleep 100"])
        assert await anext(aiter(killed.stdout())) == "attached\n"  # else there is nothing left to attach to
        await killed.kill()
        assert (await killed.wait()).exit_code == -9
        timed = await box.exec("sleep", ["100"], None, False, None, 0.2)
        assert (await timed.wait()).exit_code == -15


async def test_files_land_where_the_server_puts_them(tmp_path: Path) -> None:
    sent, fetched = tmp_path / "sent.txt", tmp_path / "fetched.txt"
    sent.write_text("content\n")
    async with official() as (double, boxlite, runtime):
        box = await running(boxlite, runtime)
        await box.copy_in(str(sent), "/root/new")
        await box.copy_out("/root/new/extracted/sent.txt", str(fetched))
        assert [request.query["path"] for request in double.sent(Route.DOWNLOAD)] == ["/root/new/extracted/sent.txt"]
    assert fetched.read_text() == "content\n"


@pytest.mark.parametrize("code", ERRORS)
async def test_every_code_is_the_error_it_means(code: str) -> None:
    async with official() as (double, boxlite, runtime):
        double.faults.on(Route.LIST, Answer.failure(code, "made up"), times=1)
        with pytest.raises(getattr(boxlite, ERRORS[code]), match="made up"):
            await runtime.list_info()
        assert await runtime.list_info() == []
