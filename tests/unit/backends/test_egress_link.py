"""The gateway's end of the egress process's socket, against an egress process that the test plays."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.backends import egress_link
from app.backends.egress_link import EgressLink
from app.backends.process.network_sockets import NetworkSockets
from app.core.errors import BackendTimeout, BackendUnavailable
from app.core.network_log import NetworkEvent, NetworkLog
from app.core.network_rules import parse_rule
from app.egress.authority import new_authority
from app.egress.protocol import (
    MAX_NAMES,
    BytesMoved,
    ChangeNetwork,
    CloseNetwork,
    EventsDropped,
    Hello,
    KeyPair,
    Known,
    KnownRules,
    NameGiven,
    NetworkChanged,
    NetworkClosed,
    NetworkEventTold,
    NetworkNotChanged,
    NetworkNotOpened,
    NetworkOpened,
    NetworkSetup,
    OpenNetwork,
    Order,
    Report,
    SetupAssembly,
    decode_order,
    encode,
    receive,
)
from tests.kernel import host

RULES = (parse_rule("index.example.org:443"), parse_rule("*.example.net:80"))
PORTS = (80, 443)
EVENT: dict[str, Any] = {
    "at": 1.5, "kind": "connection", "name": "index.example.org", "address": "203.0.113.7", "port": 443,
    "method": None, "path": None, "verdict": "allowed",
    "rule": "index.example.org:443", "reason": None, "bytes_sent": 3, "bytes_received": 4,
    "duration_seconds": 0.25,
}  # fmt: skip


class FakeSockets(NetworkSockets):
    """Pipes in place of sockets: so a test sees who still holds which."""

    def __init__(self) -> None:
        pipes = [os.pipe() for _ in range(1 + len(PORTS))]
        self.read_ends = [read for read, _ in pipes]
        self.resolver, *listeners = [write for _, write in pipes]
        self._listeners = dict(zip(PORTS, listeners, strict=True))

    def add(self, port: int) -> None:
        read, write = os.pipe()
        self.read_ends.append(read)
        self._listeners[port] = write

    def drop(self, port: int) -> None:
        os.close(self._listeners.pop(port))

    def all_closed(self) -> bool:
        """Whether nobody holds a write end any more, here or in a packet."""
        for read in self.read_ends:
            os.set_blocking(read, False)
            try:
                if os.read(read, 1) != b"":
                    return False
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        super().close()
        for read in self.read_ends:
            os.close(read)
        self.read_ends.clear()


class Played:
    """An egress process of which every word is the test's."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.setblocking(False)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.connection: socket.socket | None = None

    async def accept(self, greeting: Report | None = None) -> None:
        self.connection, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.say(greeting or Hello())

    async def hear(self) -> tuple[Order, list[int]]:
        """The next order, and its descriptors."""
        assert self.connection is not None
        while True:
            try:
                packet, descriptors = receive(self.connection)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert packet, "the gateway has hung up"
            return decode_order(packet), descriptors

    async def hear_opening(self) -> tuple[OpenNetwork, NetworkSetup]:
        """The next `OpenNetwork`, and what was said before it."""
        assembly = SetupAssembly()
        while True:
            order, descriptors = await self.hear()
            if isinstance(order, Known):
                assert not descriptors
                assembly.add(order)
                continue
            assert isinstance(order, OpenNetwork), order
            assert len(descriptors) == 1 + len(order.ports)
            for descriptor in descriptors:
                os.close(descriptor)
            return order, assembly.take(order.sandbox)

    async def serve_one(self) -> Mapping[str, str]:
        """Returns the names that the sandbox has had."""
        order, setup = await self.hear_opening()
        self.say(NetworkOpened(order.sandbox))
        return setup.names

    def say(self, *messages: Report | bytes, descriptors: Sequence[int] = ()) -> None:
        assert self.connection is not None
        for message in messages:
            packet = message if isinstance(message, bytes) else encode(message)
            socket.send_fds(self.connection, [packet], descriptors)

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Stage:
    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self.played = Played(path)
        self.reported: list[NetworkEvent] = []
        self.link = EgressLink(path, self.report, shared=shared)
        self.sockets: list[FakeSockets] = []

    def report(self, runtime: str, event: NetworkEvent) -> None:
        assert runtime == "process"
        self.reported.append(event)

    def open(
        self,
        sandbox_id: str = "one",
        log: NetworkLog | None = None,
        authority: KeyPair | None = None,
        client: str = "",
    ) -> asyncio.Task[None]:
        self.sockets.append(FakeSockets())
        log = log or NetworkLog()
        opening = self.link.open("process", sandbox_id, RULES, self.sockets[-1], log, (), authority, client=client)
        return asyncio.create_task(opening)

    async def opened(self, sandbox_id: str = "one", log: NetworkLog | None = None) -> None:
        task = self.open(sandbox_id, log)
        if self.played.connection is None:
            await self.played.accept()
        await self.played.serve_one()
        await task

    async def is_hung_up_on(self) -> None:
        assert self.played.connection is not None
        async with asyncio.timeout(60):
            while await asyncio.get_running_loop().sock_recv(self.played.connection, 70_000):
                pass
        self.played.hang_up()

    async def settle(self) -> None:
        """Everything that the played process said has been read."""
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def stage(tmp_path: Path, *, shared: bool = False) -> AsyncIterator[Stage]:
    before = host.own_descriptors()
    made = Stage(tmp_path / "egress.sock", shared=shared)
    try:
        yield made
    finally:
        made.link.aclose()
        made.played.hang_up()
        made.played.listener.close()
        for sockets in made.sockets:
            sockets.close()
    assert host.own_descriptors() == before


async def test_sandbox_is_open_when_the_egress_process_has_said_so(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        await here.played.accept()
        assert await here.played.hear_opening() == (OpenNetwork("one", PORTS), NetworkSetup(RULES))
        await here.settle()
        assert not task.done()
        here.played.say(NetworkOpened("one"))
        await task


async def test_nothing_is_sent_before_the_greeting(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        here.played.connection, _ = await asyncio.get_running_loop().sock_accept(here.played.listener)
        await here.settle()
        with pytest.raises(BlockingIOError):
            receive(here.played.connection)
        here.played.say(Hello())
        await here.played.serve_one()
        await task


async def test_no_egress_process_is_said_with_the_kernels_word(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        here.path.unlink()
        with pytest.raises(BackendUnavailable, match="the egress process does not answer: No such file"):
            await here.open()


async def test_silent_egress_process_is_said_and_nothing_of_the_sandbox_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path) as here:
        with monkeypatch.context() as soon, pytest.raises(BackendUnavailable, match="process did not answer within"):
            soon.setattr(egress_link, "ANSWER_SECONDS", 0.05)
            await here.open()
        await here.played.accept()
        await here.opened("two")


async def test_refusal_of_the_egress_process_is_passed_on(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        await here.played.accept()
        await here.played.hear_opening()
        here.played.say(NetworkNotOpened("one", "no descriptors are left"))
        with pytest.raises(BackendUnavailable, match="cannot serve the sandbox: no descriptors are left"):
            await task


async def test_create_that_was_cancelled_is_closed(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        await here.played.accept()
        await here.played.hear_opening()
        task.cancel()
        assert await here.played.hear() == (CloseNetwork("one"), [])


async def test_create_of_a_sandbox_that_has_ended_does_not_wait(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        await here.played.accept()
        await here.played.hear_opening()
        here.link.close("one")
        with pytest.raises(BackendUnavailable, match="the sandbox has ended"):
            await task


async def test_close_waits_until_the_egress_process_holds_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        log = NetworkLog()
        await here.opened(log=log)
        here.link.close("one")
        here.link.close("one")
        NetworkSockets.close(here.sockets[0])
        waiting = asyncio.create_task(here.link.closed("one"))
        assert await here.played.hear() == (CloseNetwork("one"), [])
        await here.settle()
        assert not waiting.done()
        here.played.say(NetworkEventTold("one", EVENT), NetworkClosed("one"))
        await waiting
        assert [logged.event.bytes_received for logged in log] == [4]
        assert here.sockets[0].all_closed()


@pytest.mark.parametrize("loss", ["silent", "gone"])
async def test_close_does_not_wait_for_an_egress_process_that_is_silent_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr(egress_link, "CLOSED_SECONDS", 0.05 if loss == "silent" else 1000)
    async with stage(tmp_path) as here:
        await here.opened()
        here.link.close("one")
        if loss == "gone":
            here.played.hang_up()
        await here.link.closed("one")
        await here.link.closed("never there")


async def test_another_egress_process_gets_every_sandbox_with_its_names(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        await here.opened("two")
        here.played.say(NameGiven("one", "index.example.org", "198.18.0.1"))
        here.played.say(NameGiven("one", "a.example.net", "198.18.0.2"))
        here.played.say(NameGiven("two", "b.example.net", "198.18.0.1"))
        here.played.hang_up()
        async with asyncio.timeout(60):
            await here.played.accept()
            first, second = [await here.played.hear_opening() for _ in range(2)]
        assert first == (
            OpenNetwork("one", PORTS),
            NetworkSetup(RULES, {"index.example.org": "198.18.0.1", "a.example.net": "198.18.0.2"}),
        )
        assert second == (OpenNetwork("two", PORTS), NetworkSetup(RULES, {"b.example.net": "198.18.0.1"}))


async def test_sandbox_without_sockets_is_opened_by_its_credential_each_time(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        expected = OpenNetwork("one", ()), NetworkSetup(RULES, credential="a password")
        task = asyncio.create_task(here.link.open("process", "one", RULES, None, NetworkLog(), credential="a password"))
        await here.played.accept()
        for _ in range(2):
            assembly = SetupAssembly()
            while isinstance((heard := await here.played.hear())[0], Known):
                assembly.add(heard[0])
            assert (heard[0], assembly.take("one"), heard[1]) == (*expected, [])
            here.played.say(NetworkOpened("one"))
            await task
            here.played.hang_up()
            async with asyncio.timeout(60):
                await here.played.accept()


async def test_every_egress_process_gets_the_same_authority(tmp_path: Path) -> None:
    authority = new_authority()
    async with stage(tmp_path) as here:
        task = here.open(authority=authority)
        for _ in range(2):
            async with asyncio.timeout(60):
                await here.played.accept()
                order, setup = await here.played.hear_opening()
            assert setup == NetworkSetup(RULES, authority=authority)
            here.played.say(NetworkOpened(order.sandbox))
            await task
            here.played.hang_up()


async def test_every_egress_process_can_tell_clients_apart_and_knows_none(tmp_path: Path) -> None:
    clients = {"one": "key-of-a", "two": "key-of-a", "three": "key-of-b"}
    async with stage(tmp_path, shared=True) as here:
        tasks = [here.open(sandbox, client=client) for sandbox, client in clients.items()]
        seen = []
        for _ in range(2):
            async with asyncio.timeout(60):
                await here.played.accept()
                orders = [(await here.played.hear_opening())[0] for _ in clients]
            for order in orders:
                here.played.say(NetworkOpened(order.sandbox))
            await asyncio.gather(*tasks)
            seen.append({order.sandbox: order.client for order in orders})
            here.played.hang_up()
        assert seen[0] == seen[1]
        assert seen[0]["one"] == seen[0]["two"] != seen[0]["three"]
        assert not {"", *clients.values()} & {*seen[0].values()}


async def test_a_client_that_is_alone_is_not_told_of(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        here.open(client="key-of-a").add_done_callback(lambda task: task.exception())
        await here.played.accept()
        assert (await here.played.hear_opening())[0].client == ""


async def test_what_was_said_before_a_reset_is_heard(tmp_path: Path) -> None:
    """A process that is killed with unread orders resets the connection. What it had said is behind the error."""
    async with stage(tmp_path) as here:
        await here.opened("one")
        task = here.open("two")
        await here.settle()  # the order is in its socket, unread
        here.played.say(NameGiven("one", "index.example.org", "198.18.0.9"))
        here.played.hang_up()
        async with asyncio.timeout(60):
            await here.played.accept()
            assert await here.played.serve_one() == {"index.example.org": "198.18.0.9"}
            await here.played.serve_one()
            await task


async def test_an_egress_process_that_comes_late_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        here.path.unlink()
        here.played.listener.close()
        here.played.hang_up()
        with monkeypatch.context() as soon, pytest.raises(BackendUnavailable, match="did not answer within"):
            soon.setattr(egress_link, "ANSWER_SECONDS", 0.1)
            await here.open("two")
        here.played = Played(here.path)
        async with asyncio.timeout(60):
            await here.played.accept()
            await here.played.serve_one()


async def test_another_egress_process_is_told_how_many_bytes_a_sandbox_has_moved(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        await here.opened("two")
        here.played.say(BytesMoved("one", 100), BytesMoved("gone", 5), BytesMoved("one", 2**40))
        here.played.hang_up()
        await here.played.accept()
        orders = [(await here.played.hear_opening())[0] for _ in range(2)]
        assert {order.sandbox: order.moved for order in orders} == {"one": 2**40, "two": 0}


async def test_without_a_sandbox_nothing_connects_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        here.link.close("one")
        here.played.hang_up()
        await here.settle()
        assert here.link._retry is None
        with pytest.raises(BlockingIOError):
            here.played.listener.accept()


async def test_sandbox_that_the_next_egress_process_has_no_room_for_is_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_link, "_AGAIN_SECONDS", 0.01)
    async with stage(tmp_path) as here:
        await here.opened("one")
        here.played.hang_up()
        async with asyncio.timeout(60):
            await here.played.accept()
            await here.played.hear_opening()
            here.played.say(NetworkNotOpened("one", "no descriptors are left"))
            await here.played.serve_one()


async def test_events_go_to_the_sandboxs_log_and_are_reported(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        logs = {name: NetworkLog() for name in ("one", "two")}
        for name, log in logs.items():
            await here.opened(name, log)
        here.played.say(NetworkEventTold("two", EVENT), NetworkEventTold("gone", EVENT), EventsDropped("two", 7))
        await here.settle()
        assert [logged.event for logged in logs["two"]] == here.reported == [NetworkEvent(**EVENT)]
        assert (logs["one"].total, logs["two"].total) == (0, 8)


NONSENSE: dict[str, Any] = {
    "no JSON": b"\xff",
    "another version": Hello(99),
    "second greeting": Hello(),
    "unknown kind": json.dumps({"kind": "shell", "sandbox": "one"}).encode(),
    "order": CloseNetwork("one"),
    "changed name": NameGiven("one", "index.example.org", "198.18.0.2"),
    "too long": bytes(70_000),
}


@pytest.mark.parametrize("message", NONSENSE.values(), ids=NONSENSE)
async def test_egress_process_that_speaks_nonsense_is_hung_up_on_and_called_again(
    tmp_path: Path, message: Report | bytes
) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        here.played.say(NameGiven("one", "index.example.org", "198.18.0.1"))
        here.played.say(message)
        await here.is_hung_up_on()
        async with asyncio.timeout(60):
            await here.played.accept()
            await here.played.serve_one()


async def test_report_before_the_greeting_is_nonsense(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        task = here.open()
        await here.played.accept(NetworkOpened("one"))
        await here.is_hung_up_on()
        await here.played.accept()
        await here.played.serve_one()
        await task


async def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        null = os.open(os.devnull, os.O_RDONLY)
        here.played.say(EventsDropped("one", 1), descriptors=(null,) * 3)
        os.close(null)
        await here.is_hung_up_on()


async def test_names_beyond_the_bound_are_nonsense(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("one")
        for number in range(MAX_NAMES + 1):
            while True:
                try:
                    here.played.say(NameGiven("one", f"n{number}.example.net", f"198.18.{number >> 8}.{number & 255}"))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
        await here.is_hung_up_on()
        async with asyncio.timeout(60):
            await here.played.accept()
            assert len(await here.played.serve_one()) == MAX_NAMES


async def test_names_that_find_no_room_leave_the_first_ones_of_every_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_link, "OWN_NAMES", 2)
    monkeypatch.setattr(egress_link, "SHARED_NAMES", 3)
    async with stage(tmp_path) as here:
        for name in ("one", "two"):
            await here.opened(name)
            for number in range(4):
                here.played.say(NameGiven(name, f"n{number}.example.net", f"198.18.0.{number}"))
            await here.settle()
        here.played.hang_up()
        async with asyncio.timeout(60):
            await here.played.accept()
            assert [len(await here.played.serve_one()) for _ in range(2)] == [4, 3]
        here.link.close("one")
        here.played.say(NameGiven("two", "n3.example.net", "198.18.0.3"))
        await here.settle()
        here.played.hang_up()
        await here.played.accept()
        assert len(await here.played.serve_one()) == 4, "the room of a sandbox that ended is free again"


async def test_orders_wait_for_room_and_those_of_closed_sandboxes_are_left_out(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened("first")
        assert here.link._socket is not None
        here.link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        tasks = [here.open(f"n{number}") for number in range(50)]
        await here.settle()
        assert here.link._unsent, "the socket is full"
        waiting = here.link._unsent[-1].network.id
        here.link.close(waiting)
        here.sockets[-1].close()
        for _ in range(49):
            await here.played.serve_one()
        await asyncio.gather(*tasks[:-1])
        tasks[-1].cancel()
        await here.settle()
        assert not here.link._unsent


# --- whether it is there


async def test_process_that_greets_lacks_nothing_and_the_next_sandbox_uses_that_connection(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        asked = asyncio.create_task(here.link.unavailable_reason())
        await here.played.accept()
        assert await asked == ""
        await here.opened()
        assert await here.link.unavailable_reason() == ""


async def test_process_that_is_away_or_silent_is_told_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_link, "GREETING_SECONDS", 0.05)
    async with stage(tmp_path) as here:
        assert await here.link.unavailable_reason() == "the egress process did not greet within 0.05 seconds"
        await here.played.accept()
        await here.settle()
        assert await here.link.unavailable_reason() == ""
        here.path.unlink()
        here.played.hang_up()
        await here.settle()
        assert await here.link.unavailable_reason() == "the egress process does not answer: No such file or directory"


# --- other rules

OTHER = (parse_rule("other.example.org:8443"),)


class Changing:
    """A change that was asked for. Its sandbox has the port 8443 in place of its others, as the launcher made it so."""

    def __init__(self, here: Stage) -> None:
        for port in PORTS:
            here.sockets[0].drop(port)
        here.sockets[0].add(8443)
        self.task = asyncio.create_task(here.link.change("one", OTHER, [8443]))


async def hear_change(here: Stage) -> tuple[ChangeNetwork, list[str]]:
    """The next change, and the rules that came before it."""
    rules: list[str] = []
    while True:
        order, descriptors = await here.played.hear()
        if isinstance(order, KnownRules):
            rules += map(str, order.rules)
            continue
        assert isinstance(order, ChangeNetwork), order
        assert len(descriptors) == len(order.ports)
        for descriptor in descriptors:
            os.close(descriptor)
        return order, rules


async def test_change_is_over_when_the_egress_process_has_cut_what_is_not_permitted(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened()
        changing = Changing(here)
        assert await hear_change(here) == (ChangeNetwork("one", (8443,)), ["other.example.org:8443"])
        await here.settle()
        assert not changing.task.done()
        here.played.say(NetworkChanged("one"))
        await changing.task


async def test_next_egress_process_gets_the_new_rules_and_never_the_old_ones(tmp_path: Path) -> None:
    """Whether it dies before it has read the change, or when it has carried it out."""
    for answer in (None, NetworkChanged("one")):
        folder = tmp_path / str(answer is None)
        folder.mkdir()
        async with stage(folder) as here:
            await here.opened()
            changing = Changing(here)
            if answer is not None:
                await hear_change(here)
                here.played.say(answer)
            else:
                await here.settle()
            here.played.hang_up()
            await changing.task
            async with asyncio.timeout(60):
                await here.played.accept()
                order, setup = await here.played.hear_opening()
            assert (order.ports, setup.rules) == ((8443,), OTHER)


async def test_change_without_an_egress_process_does_not_wait(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened()
        here.played.hang_up()
        await here.settle()
        await Changing(here).task
        async with asyncio.timeout(60):
            await here.played.accept()
            assert (await here.played.hear_opening())[1].rules == OTHER


async def test_change_that_nobody_confirms_is_said_and_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path) as here:
        await here.opened()
        with monkeypatch.context() as soon, pytest.raises(BackendTimeout, match=r"within .*; the new rules hold"):
            soon.setattr(egress_link, "ANSWER_SECONDS", 0.05)
            await Changing(here).task
        here.played.say(NetworkChanged("one"))  # late
        later = asyncio.create_task(here.link.change("one", RULES[:1]))
        assert [(await hear_change(here))[1] for _ in range(2)] == [["other.example.org:8443"], [str(RULES[0])]]
        await here.settle()
        assert not later.done(), "that was the answer to the first one"
        here.played.say(NetworkChanged("one"))
        await later


async def test_network_that_could_not_be_changed_is_opened_again_with_the_new_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_link, "_AGAIN_SECONDS", 0.01)
    async with stage(tmp_path) as here:
        await here.opened()
        changing = Changing(here)
        await hear_change(here)
        here.played.say(NetworkNotChanged("one", "no descriptors are left"))
        await changing.task
        order, setup = await here.played.hear_opening()
        assert (order.ports, setup.rules) == ((8443,), OTHER)


async def fill_the_socket(here: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [parse_rule(f"{'a' * 60}.{'b' * 60}.{number}.example.org:443") for number in range(64)]
    with monkeypatch.context() as patched:
        patched.setattr(egress_link, "ANSWER_SECONDS", 0.001)
        for number in range(30):
            here.sockets.append(FakeSockets())
            with pytest.raises(BackendUnavailable):
                await here.link.open("process", f"s{number}", many, here.sockets[-1], NetworkLog())
    assert here.link._unsent, "its socket is full"


async def hear_of_one(here: Stage) -> Order:
    """The next order about the sandbox `one`."""
    while True:
        order, descriptors = await here.played.hear()
        for descriptor in descriptors:
            os.close(descriptor)
        if order.sandbox == "one":
            return order


async def test_change_that_waits_for_room_is_never_sent_when_another_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules and descriptors are no longer right. The egress process opens the sandbox anew."""
    async with stage(tmp_path) as here:
        await here.opened()
        await fill_the_socket(here, monkeypatch)
        monkeypatch.setattr(egress_link, "ANSWER_SECONDS", 0.001)
        with pytest.raises(BackendTimeout):
            await Changing(here).task
        monkeypatch.setattr(egress_link, "ANSWER_SECONDS", 1000)
        here.sockets[0].add(443)
        second = asyncio.create_task(here.link.change("one", RULES[:1], [443]))
        await here.settle()
        assert await hear_of_one(here) == CloseNetwork("one")
        assert not second.done()
        here.played.say(NetworkClosed("one"))
        assert [await hear_of_one(here) for _ in range(2)] == [
            KnownRules("one", RULES[:1]), OpenNetwork("one", (8443, 443))
        ]  # fmt: skip
        here.played.say(NetworkOpened("one"))
        await second


async def test_sandbox_is_opened_anew_when_the_egress_process_has_closed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has said until then counts: the name that it gave, and that it answers each change that it has read."""
    async with stage(tmp_path) as here:
        await here.opened()
        with monkeypatch.context() as patched:
            patched.setattr(egress_link, "ANSWER_SECONDS", 0.001)
            with pytest.raises(BackendTimeout):
                await here.link.change("one", RULES[:1])
        await hear_change(here)  # and does not answer so far
        await fill_the_socket(here, monkeypatch)
        unsent, anew = (asyncio.create_task(here.link.change("one", OTHER)) for _ in range(2))
        await here.settle()
        assert await hear_of_one(here) == CloseNetwork("one")
        more = asyncio.create_task(here.link.change("one", RULES))
        here.played.say(NameGiven("one", "index.example.org", "198.18.0.9"))
        await here.settle()
        with pytest.raises(BlockingIOError):
            while here.played.connection is not None:
                assert b'"one"' not in receive(here.played.connection)[0]
        here.played.say(NetworkClosed("one"))
        await asyncio.gather(unsent, anew, more)
        _, setup = await here.played.hear_opening()
        assert (setup.rules, setup.names) == (RULES, {"index.example.org": "198.18.0.9"})
        later = asyncio.create_task(here.link.change("one", OTHER))
        await hear_change(here)
        here.played.say(NetworkOpened("one"), NetworkChanged("one"))
        await here.settle()
        assert not later.done(), "that was the answer to the first one"
        here.played.say(NetworkChanged("one"))
        await later
        assert here.link._socket is not None


async def test_change_of_a_sandbox_that_ends_does_not_wait(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened()
        changing = Changing(here)
        await hear_change(here)
        here.link.close("one")
        await changing.task
        here.played.say(NetworkChanged("one"))
        await here.settle()
        assert here.link._socket is not None, "a late answer is no nonsense"
        await here.link.change("one", OTHER)


async def test_change_that_was_not_asked_for_is_nonsense(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        await here.opened()
        here.played.say(NetworkChanged("one"))
        await here.is_hung_up_on()
