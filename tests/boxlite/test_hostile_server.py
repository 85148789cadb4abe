"""A server that lies, stalls or dies, at every bound that we set; and what we never ask of any server."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging

import pytest

from app.backends.boxlite.box import Box
from app.backends.boxlite.inside import BoxMeasurements
from app.backends.boxlite.receipt import isolation
from app.core.errors import BackendFailure, BackendRefused, BackendUnavailable
from app.core.models import ExitReason
from tests.boxlite.double import Answer, Route, drip, endless
from tests.boxlite.rig import SPEC, quick, rig, start, until

EXIT = '{"type":"exit","exit_code":0}'


# --- answers over HTTP, each to a call in the middle of a boot

LIES = {
    "no JSON": Answer.text("<html>welcome</html>"),
    "JSON that is something else": Answer.json([1, 2, 3]),
    "nothing": Answer.text("", content_type="application/json"),
    "another type": Answer.json({"box_id": 7, "execution_id": 7}),
    "a path for an id": Answer.json({"box_id": "..", "execution_id": ".."}),
    "half a surrogate for an id": Answer.text('{"box_id": "\\ud800", "execution_id": "\\ud800"}'),
    "somebody else's box": Answer.json({"box_id": "AAAAAAAAAAAA", "name": "not-ours", "status": "running"}),
    "a redirect": Answer.verbatim(b"HTTP/1.1 307 x\r\nlocation: /v1/elsewhere\r\ncontent-length: 0\r\n\r\n"),
    "a length that is too long": Answer.verbatim(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}"),
    "no head": Answer.verbatim(b"\0\1\2\3\r\n\r\n"),
    "an endless head": Answer.verbatim(b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 500_000),
    "more than a bomb": Answer.verbatim(
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b" " * 50_000_000)
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("route", [Route.CREATE, Route.START, Route.EXEC])
async def test_a_lie_in_the_middle_of_a_boot_is_a_failure_and_nothing_else(route: Route, lie: str) -> None:
    async with rig() as r:
        await r.double.seed("not-ours")
        r.double.faults.on(route, LIES[lie], times=3)
        with pytest.raises(BackendFailure):
            await r.sandbox()
        r.double.faults.clear()
        await until(lambda: r.names() == ["not-ours"])


async def test_a_name_for_which_the_server_gives_another_box_removes_nobody_elses() -> None:
    async with rig() as r:
        stranger = await r.double.seed("not-ours", start=True, cmd=["sleep", "1000"])
        taken = Answer.failure("invalid_argument", "invalid argument: box with name 'x' already exists")
        r.double.faults.on(Route.CREATE, taken, times=1)
        r.double.faults.on(Route.GET, Answer.json(stranger.view()), times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await r.sandbox()
        assert stranger.status == "running" and not r.double.sent(Route.STOP)


async def test_a_create_that_is_answered_with_somebody_elses_box_leaves_that_alone() -> None:
    async with rig() as r:
        stranger = await r.double.seed("not-ours", start=True, cmd=["sleep", "1000"])
        r.double.faults.on(Route.CREATE, Answer.json(stranger.view(), 201), times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await r.sandbox()
        assert stranger.status == "running" and r.routes() == [Route.CREATE]


async def test_an_answer_about_another_box_says_nothing_of_ours() -> None:
    """Neither that it was started, nor that it has ended."""
    async with rig() as r:
        other = Answer.json({"box_id": "AAAAAAAAAAAA", "name": "not-ours", "status": "stopped"})
        r.double.faults.on(Route.START, other, times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await r.sandbox()
        sandbox = await r.sandbox("sbx_2")
        r.double.faults.on(Route.GET, other, times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await sandbox.look()
        assert (await (await start(sandbox, "true")).end()).code == 0


@pytest.mark.parametrize("route", [Route.CREATE, Route.EXEC, Route.LIST])
async def test_an_endless_body_and_one_that_comes_byte_by_byte(route: Route) -> None:
    async with rig(timeouts=quick(control=0.5, health_answer=0.5)) as r:
        for body in (lambda: endless(b" " * 65536), lambda: drip(b"{" + b" " * 1000, 0.01)):
            r.double.faults.on(route, Answer.body(body))
            if route is Route.LIST:
                await until(lambda: r.backend._health_check._failure is not None)
            with pytest.raises(BackendFailure):
                await r.sandbox()
            r.double.faults.clear()
            await until(lambda: not r.double.boxes)
            await until(lambda: r.backend._health_check._failure is None)


def test_what_the_server_says_of_a_box_goes_into_the_receipt_only_in_measure() -> None:
    said = {
        "image": "i" * 100_000,
        "cpus": {"a": ["b"] * 10_000},
        "memory_mib": float("nan"),
        "network": {"outbound": {"mode": "disabled"}},
        "created_at": "\ud800",
    }
    facts = BoxMeasurements("6.1", 1, 80_000_000, {"lo": True}, 0)
    receipt = isolation(Box("x", "n", "running", said), SPEC, facts, 0.5, "")
    assert receipt["reported"] == {**dict.fromkeys(said), "network": {"outbound": {"mode": "disabled"}}}
    json.dumps(receipt, ensure_ascii=False, allow_nan=False).encode()


# --- the key


async def test_the_key_is_in_no_log_of_a_whole_life(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with rig() as r:
        sandbox = await r.sandbox()
        await (await start(sandbox, "true")).end()
        await r.double.crash()
        with pytest.raises(BackendFailure) as caught:
            await start(sandbox, "true", execution_id="exe_2")
        await r.double.restart()
        assert r.double.key not in caplog.text and r.double.key not in repr(caught.value)
        assert r.double.key not in json.dumps(dict(sandbox.receipt))
        assert r.double.key not in repr(r.backend._settings)
    assert r.double.key not in caplog.text


async def test_a_401_that_begins_in_the_middle() -> None:
    """The key was changed: nothing can be done any more, and everybody is told so."""
    async with rig(grace_seconds=0.5) as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "sh", "-c", "echo up; sleep 1000")
        await run.saw(b"up")
        right, r.double.key = r.double.key, "another"
        with pytest.raises(BackendUnavailable, match="refuses the key") as caught:
            await start(sandbox, "true", execution_id="exe_2")
        assert caught.value.upstream.status == 401
        async with asyncio.timeout(60):
            assert "refuses the key" in await sandbox.lost()
        with pytest.raises(BackendUnavailable, match="refuses the key"):
            await r.backend.ready()
        assert (await run.end()).reason is ExitReason.LOST
        await sandbox.destroy()
        r.double.key = right
        await until(lambda: not r.double.boxes)
