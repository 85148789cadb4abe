"""Bounds: what is beyond them is reset at once and told by reason, and others go on."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from app.egress.network import LONG_PAUSE_SECONDS
from app.egress.told import BURST, PER_SECOND, Told
from tests.unit.egress.support import GIVEN, NAME, FakeGateway, Site, echo, site

RAW = [{"host": NAME, "raw": True}]


async def works(at: Site) -> bool:
    """Whether a connection does. It stays open."""
    try:
        reader, writer = await at.connect()
        writer.write(b"x")
        return await asyncio.wait_for(reader.read(1), 60) == b"x"
    except (ConnectionResetError, ConnectionRefusedError):
        return False


@pytest.mark.parametrize(
    ("bounds", "fits", "reason"),
    [
        ({"connections_per_sandbox": 2}, 2, "connections_per_sandbox"),
        ({"connections": 6}, 3, "connections"),
        ({"connections_per_second": 2}, 2, "connections_per_second"),
    ],
)
async def test_connections_beyond_a_bound_are_reset_and_told_once(
    bounds: dict[str, int], fits: int, reason: str
) -> None:
    async with site(echo, rules=RAW, bounds=bounds) as at:
        assert [await works(at) for _ in range(fits + 3)] == [True] * fits + [False] * 3
        event = await at.gateway.event()
        assert (event["kind"], event["verdict"], event["reason"]) == ("connection", "refused", reason)
        assert event["port"] == at.port
        assert len(at.gateway.events) == 1


async def taken(at: Site) -> int:
    """How many connections the sandbox gets. They stay open."""
    count = 0
    while await works(at):
        count += 1
    return count


@pytest.mark.parametrize(
    ("greedy", "other", "floods", "left", "reason"),
    [
        ("", "", [8, 4, 2, 1, 1], 0, "connections"),  # the attack, where nothing tells clients apart
        ("a", "b", [4, 2, 1, 1, 0], 2, "connections_per_client"),
    ],
)
async def test_client_with_many_sandboxes_leaves_room_for_another_client(
    greedy: str, other: str, floods: list[int], left: int, reason: str
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(site(echo, rules=RAW, bounds={"connections": 16}, client=greedy))
        flooding = [first]
        for number in range(2, 6):
            neighbour = first.neighbour(f"a{number}", f"127.77.0.{number}", greedy)
            flooding.append(await stack.enter_async_context(neighbour))
        victim = await stack.enter_async_context(first.neighbour("b", "127.77.0.6", other))
        assert [await taken(at) for at in flooding] == floods
        assert await taken(victim) == left
        for at in (*flooding, victim):
            assert {event["reason"] for event in at.gateway.events} == {reason}
    assert first.network.shared.connections.used == 0


async def test_what_ends_in_one_sandbox_makes_room_for_its_clients_others() -> None:
    async with site(echo, rules=RAW, bounds={"connections": 2}, client="a") as one:
        async with one.neighbour("a2", "127.77.0.2", "a") as two:
            reader, writer = await one.connect()
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            assert await works(two) is False
            writer.close()
            await one.gateway.event()
            while not await works(two):
                pass


async def test_ended_connection_makes_room() -> None:
    async with site(echo, rules=RAW, bounds={"connections_per_sandbox": 1}) as at:
        for _ in range(5):
            assert await at.ask(b"x") == b"x"
            await at.gateway.event(_)
        assert at.network.shared.connections.used == 0


async def test_bytes_beyond_the_bound_cut_the_connection_and_refuse_the_next() -> None:
    async with site(echo, rules=RAW, bounds={"bytes_per_sandbox": 10_000}) as at:
        assert await at.ask(b"x" * 4000) == b"x" * 4000
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x" * 4000)
        with pytest.raises(ConnectionResetError):
            await at.ask(b"x")
        reasons = [(await at.gateway.event(number))["reason"] for number in range(3)]
        assert reasons == [None, "bytes", "bytes"]
        assert at.gateway.moved[-1] > 10_000


async def test_bytes_are_told_at_each_hundredth_of_the_bound_also_of_a_connection_that_is_open() -> None:
    """The next egress process goes on from there."""
    async with site(echo, rules=RAW, bounds={"bytes_per_sandbox": 10_000}) as at:
        reader, writer = await at.connect()
        for size in (49, 1, 1, 49):
            writer.write(b"x" * size)
            await reader.readexactly(size)
        assert at.gateway.moved == [100, 200]
        assert at.gateway.events == []


async def test_bytes_are_not_told_without_a_bound() -> None:
    async with site(echo, rules=RAW) as at:
        assert await at.ask(b"x" * 50_000) == b"x" * 50_000
        assert at.gateway.moved == []


async def test_flood_of_refusals_is_told_in_number_only() -> None:
    gateway, now = FakeGateway(), 0.0
    told = Told("a", gateway, lambda: now)

    def refuse() -> int:
        """Returns how many of 1000 are told."""
        before = len(gateway.events)
        for number in range(1000):
            told.refusal("name", "name", name=f"{number}.example.com")
        return len(gateway.events) - before

    assert refuse() == BURST
    now += 1
    assert refuse() == PER_SECOND
    told.close()
    assert gateway.dropped == 2000 - BURST - PER_SECOND


async def test_gateway_that_does_not_read_gets_no_events() -> None:
    async with site(echo, rules=RAW) as at:
        at.gateway.is_behind = True
        assert await at.ask(b"x") == b"x"
        await at.network.aclose()
        assert (at.gateway.events, at.gateway.dropped) == ([], 1)


@contextmanager
def no_more_descriptors(left: int = 0) -> Iterator[None]:
    """The process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.dup(0) for _ in range(left + 1)]
    lowest = max(used)
    for descriptor in used:
        os.close(descriptor)
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        while True:  # gaps below the limit
            try:
                fill.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        for descriptor in fill[:left]:
            os.close(descriptor)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fill[left:]:
            os.close(descriptor)


async def test_connection_is_reset_when_no_descriptors_are_left_and_others_go_on() -> None:
    async with site(echo, rules=RAW) as at:
        reader, writer = await at.connect()
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        loop = asyncio.get_running_loop()
        with at.unconnected() as program:
            with no_more_descriptors():
                with pytest.raises(ConnectionResetError):
                    await loop.sock_connect(program, (GIVEN, at.port))
                    await loop.sock_recv(program, 1)
                writer.write(b"b")
                assert await reader.read(1) == b"b"
        assert (await at.gateway.event())["reason"] == "descriptors"
        assert await works(at)


async def test_host_is_not_dialled_when_no_descriptors_are_left() -> None:
    async with site(echo, rules=RAW) as at:
        loop = asyncio.get_running_loop()
        with at.unconnected() as program:
            with no_more_descriptors(1):  # the accepted one
                with pytest.raises(ConnectionResetError):
                    await loop.sock_connect(program, (GIVEN, at.port))
                    await loop.sock_recv(program, 1)
        assert (await at.gateway.event())["reason"] in ("descriptors", "resolver")
        assert await works(at)


async def test_closed_network_holds_no_connection() -> None:
    async with site(echo, rules=RAW) as at:
        for _ in range(10):
            assert await works(at)
        assert at.network.shared.connections.used == 10
        await at.network.aclose()
        assert at.network.shared.connections.used == 0
        with pytest.raises(ConnectionRefusedError):
            await at.connect()


async def refusal_of(at: Site) -> type[OSError]:
    """As which a new connection ends."""
    try:
        reader, _ = await at.connect()
        await asyncio.wait_for(reader.read(1), 60)
    except (ConnectionResetError, ConnectionRefusedError) as error:
        return type(error)
    raise AssertionError("it was accepted, and ended in order")


async def test_flood_of_connections_beyond_a_bound_is_refused_by_the_kernel() -> None:
    """Nothing waits in a backlog, and the egress process resets a bounded number."""
    async with site(echo, rules=RAW, bounds={"connections_per_sandbox": 1}) as at:
        reader, writer = await at.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        began = asyncio.get_running_loop().time()
        ends = Counter([await refusal_of(at) for _ in range(500)])
        seconds = asyncio.get_running_loop().time() - began
        assert ends[ConnectionRefusedError] > 0
        assert ends[ConnectionResetError] <= seconds / LONG_PAUSE_SECONDS + 1
        assert {event["reason"] for event in at.gateway.events} == {"connections_per_sandbox"}
        writer.write(b"y")
        assert await reader.read(1) == b"y", "what is open goes on"
        writer.close()
        while not await works(at):
            pass


async def test_pause_that_a_change_ends_leaves_no_timer() -> None:
    async with site(echo, rules=RAW, bounds={"connections_per_sandbox": 1}) as at:
        assert [await works(at) for _ in range(2)] == [True, False]
        timers = [at.network._timers[at.network._listen]]
        await at.network.change(at.network.rules, [])
        assert timers[0].cancelled()
        assert await works(at) is False
        timers.append(at.network._timers[at.network._listen])
        at.network._pause_listening(LONG_PAUSE_SECONDS)
        timers.append(at.network._timers[at.network._listen])
        assert [timer.cancelled() for timer in timers] == [True, True, False]
        await at.network.aclose()
        assert timers[-1].cancelled()
        at.network._listen()
        assert all(timer.cancelled() for timer in at.network._timers.values())
