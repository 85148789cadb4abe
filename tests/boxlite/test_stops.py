"""Stops and deletes whose answers are lost, and what is never asked of any server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import app.backends.boxlite as package
from app.core.errors import BackendTimeout, UnknownImage
from tests.boxlite.double import Answer, Drop, Route, Stall
from tests.boxlite.rig import SPEC, quick, rig, start, until


async def test_a_stop_that_is_lost_is_sent_again_before_anything_else() -> None:
    async with rig(timeouts=quick(stop=2)) as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        r.double.faults.on(Route.STOP, Stall(), times=1)
        await sandbox.destroy()
        assert r.routes() == [Route.STOP, Route.STOP, Route.DELETE]


async def test_a_stop_that_never_answers_is_an_error_and_the_destroy_can_be_repeated() -> None:
    async with rig(timeouts=quick(stop=1.5)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.STOP, Stall(), times=2)
        with pytest.raises(BackendTimeout):
            await sandbox.destroy()
        await sandbox.destroy()
        assert not r.double.boxes


@pytest.mark.parametrize("code", ["invalid_state", "stopped", "internal", "upstream_unavailable", "engine_unavailable"])
async def test_a_stop_that_the_server_refuses_is_no_reason_to_keep_the_box(code: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        r.double.faults.on(Route.STOP, Answer.failure(code))
        await sandbox.destroy()
        assert r.routes() == [Route.STOP, Route.STOP, Route.DELETE] and not r.double.boxes


async def test_a_box_is_stopped_and_then_deleted_with_force_and_both_by_its_id() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        await asyncio.gather(*(sandbox.destroy() for _ in range(3)))
        stop, delete = (request for request in r.double.requests if request.route in {Route.STOP, Route.DELETE})
        assert stop.route is Route.STOP and delete.query == {"force": "true"}
        assert stop.path == f"/v1/boxes/{sandbox.box_id}/stop" and delete.path == f"/v1/boxes/{sandbox.box_id}"


async def test_a_delete_whose_answer_is_lost_was_done_all_the_same() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.DELETE, Drop(done=True), times=1)
        await sandbox.destroy()
        assert not r.double.boxes


async def test_what_is_cancelled_does_not_disconnect_from_a_stop() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        stop = Stall(until=asyncio.Event())
        r.double.faults.on(Route.STOP, stop, times=1)
        destroying = asyncio.get_running_loop().create_task(sandbox.destroy())
        await stop.reached.wait()
        destroying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await destroying
        await r.beats(2)
        assert stop.until is not None and len(r.double.sent(Route.STOP)) == 1
        stop.until.set()
        await until(lambda: not r.double.boxes)
        await sandbox.destroy()


# --- what is never asked


async def test_files_metrics_and_the_rest_are_never_asked_for() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "sh", "-c", "echo up; sleep 1000", stdin=True)
        await run.saw(b"up")
        await run.handle.signal(15)
        await run.end()
        await sandbox.destroy()
        asked = {request.route for request in r.double.requests}
        assert asked <= {
            Route.ME, Route.LIST, Route.CREATE, Route.START, Route.EXEC, Route.ATTACH, Route.STOP, Route.DELETE,
            Route.GET, Route.SIGNAL, Route.KILL, Route.RESIZE,
        }  # fmt: skip


def test_no_code_of_the_runtime_names_the_servers_files() -> None:
    """`GET .../files` hands out files of the server's host."""
    for path in Path(package.__path__[0]).glob("*.py"):
        assert '"files"' not in path.read_text() and "/files" not in path.read_text(), path


async def test_the_spec_of_a_client_has_no_way_to_name_a_path_of_the_server() -> None:
    async with rig(opened=False) as r:
        for image in ("/etc", "rootfs:/etc", "../x", "file:///etc", "/images/busybox", "a\0b", "\ud800"):
            with pytest.raises(UnknownImage):
                r.backend.fit(replace(SPEC, image=image))
