"""Boxes of an earlier life: ours are stopped and deleted, nobody else's is ever touched."""

from __future__ import annotations

import asyncio

import pytest

from app.backends.boxlite.backend import BoxliteBackend
from app.core.errors import BackendRefused
from tests.boxlite.double import Answer, Drop, Route, Stall
from tests.boxlite.rig import INSTANCE, QUICK, SPEC, quick, rig, settings_for, start, until

OURS = f"bh-{INSTANCE}-"
KEPT = ["bh-0123456789ac-sbx_1", "bh-", f"bh-{INSTANCE}", f"xbh-{INSTANCE}-a", f"BH-{INSTANCE}-a", "workspace", None]


async def test_what_an_earlier_life_left_is_stopped_and_deleted_and_nothing_else() -> None:
    async with rig(opened=False) as r:
        for name in KEPT:
            await r.double.seed(name)
        left = [await r.double.seed(f"{OURS}{n}", start=n < 2, cmd=["sleep", "1000"]) for n in range(3)]
        r.backend.open()
        await until(lambda: len(r.double.boxes) == len(KEPT))
        assert sorted(r.names(), key=str) == sorted(KEPT, key=str)
        for box in left:
            mine = [request for request in r.double.requests if f"/{box.id}" in request.path]
            assert [request.route for request in mine] == [Route.STOP, Route.DELETE]
        assert r.routes(Route.STOP, Route.DELETE) == []


async def test_a_running_box_of_somebody_else_stays_as_it_is() -> None:
    async with rig(opened=False) as r:
        stranger = await r.double.seed("bh-ffffffffffff-sbx_1", start=True, cmd=["sleep", "1000"])
        r.backend.open()
        await r.beats(3)
        assert stranger.status == "running" and not r.double.sent(Route.STOP)


async def test_what_could_not_be_removed_is_tried_again_once_per_beat() -> None:
    async with rig(opened=False) as r:
        await r.double.seed(f"{OURS}old")
        r.double.faults.on(Route.DELETE, Answer.failure("internal"), times=3)
        r.backend.open()
        await until(lambda: not r.double.boxes)
        assert len(r.double.sent(Route.DELETE)) == 4 and len(r.double.sent(Route.LIST)) >= 4


async def test_a_removal_that_takes_long_is_not_begun_twice() -> None:
    async with rig(opened=False) as r:
        await r.double.seed(f"{OURS}old")
        stop = Stall(until=asyncio.Event())
        r.double.faults.on(Route.STOP, stop, times=1)
        r.backend.open()
        await stop.reached.wait()
        await r.beats(3)
        assert len(r.double.sent(Route.STOP)) == 1 and stop.until is not None
        stop.until.set()
        await until(lambda: not r.double.boxes)


async def test_a_life_that_was_killed_leaves_boxes_to_the_next_one() -> None:
    async with rig(opened=False) as r:
        first = BoxliteBackend(settings_for(r.double), INSTANCE, QUICK)
        first.open()
        sandbox = await first.create("sbx_1", first.fit(SPEC))
        assert r.double.boxes
        await first._health_check.aclose()  # nothing else of it happens any more: as if it was killed
        await first._client.aclose()
        assert sandbox.box_id == r.double.boxes[0].id
        r.backend.open()
        await until(lambda: not r.double.boxes)
        again = await r.sandbox("sbx_1")
        assert (await (await start(again, "true")).end()).code == 0


async def test_sandboxes_of_this_life_are_never_leftovers() -> None:
    """From before the create is sent to after the delete is answered."""
    async with rig(timeouts=quick(health_interval=0.02)) as r:
        for n in range(4):
            sandbox = await r.sandbox(f"sbx_{n}")
            await r.beats(3)
            await sandbox.destroy()
        assert len(r.double.sent(Route.STOP)) == len(r.double.sent(Route.DELETE)) == 4


async def test_a_box_whose_create_was_not_answered_and_not_found_goes_when_it_is_seen() -> None:
    async with rig() as r:
        r.double.faults.on(Route.CREATE, Drop(done=True), times=1)
        r.double.faults.on(Route.GET, Answer.failure("internal"), times=1)
        with pytest.raises(BackendRefused, match="internal"):
            await r.sandbox()
        await until(lambda: not r.double.boxes)
        assert not r.double.sent(Route.START)
