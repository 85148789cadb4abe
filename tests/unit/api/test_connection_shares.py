"""Over real sockets: a client, or an address without a key, that has all its connections keeps nobody else out."""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from app.core.sandboxes import Capacity
from app.serving.gateway import UNSENT_BYTES
from app.serving.http_bounds import BoundedHttp
from app.settings import Settings
from tests.unit.api.service import LiveService, Service
from tests.unit.api.test_shares import HASHES, KEYS, reaches

CAPACITY = Capacity(connections=8, strangers=8)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(live: LiveService, path: str, key: str | None = None, more: str = "") -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}{more}\r\n".encode())
    return reader, writer


async def comes_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(200):
        while not condition():  # noqa: ASYNC110 - the edge has no event for its own bookkeeping
            await asyncio.sleep(0)


async def status(connection: Connection) -> int:
    async with asyncio.timeout(60):
        return int((await connection[0].readuntil(b"\r\n\r\n")).split()[1])


async def closed(*connections: Connection) -> None:
    for _, writer in connections:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def held_execution(live: LiveService) -> str:
    live.client.headers["authorization"] = f"Bearer {KEYS[0]}"
    return await live.start("sleep") + "?wait_seconds=60"


async def test_a_key_at_its_bound_is_told_so_and_another_key_goes_on() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served(bounded=True) as live:
        path = await held_execution(live)
        shares = service.app.state.context.shares
        held = [await ask(live, path, KEYS[0]) for _ in range(4)]
        await reaches(shares.connections, 4)  # one of them in the place of the idle one that made the execution
        refused = await ask(live, "/sandboxes", KEYS[0])
        async with asyncio.timeout(60):
            answer = await refused[0].read()  # until the service closes
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in head
        problem = json.loads(body)
        assert (problem["budget"], problem["holder"]) == ("connections at one time", "client")
        counted = 'bulkhead_capacity_refusals_total{budget="connections at one time",holder="client"} 1.0'
        assert counted in service.telemetry.render().decode()
        other = await ask(live, "/sandboxes", KEYS[1])
        assert await status(other) == 200
        await closed(*held, refused, other)
        await reaches(shares.connections, 0)


BUNDLE, BUNDLE_BYTES = "/docs/swagger-ui-bundle.js", 1_500_000  # it has a little more


@asynccontextmanager
async def unread(live: LiveService, count: int, path: str, key: str | None = None) -> AsyncIterator[None]:
    """So many requests, one for each connection, of a client that takes nothing of the answers."""
    loop, clients = asyncio.get_running_loop(), [socket.socket() for _ in range(count)]
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    try:
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", live.port))
            await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n".encode())
        yield
    finally:
        for client in clients:
            client.close()


async def test_an_address_that_takes_no_answer_keeps_no_key_out() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served(bounded=True) as live:
        shares = service.app.state.context.shares
        async with unread(live, 20, BUNDLE):
            mine = await ask(live, "/sandboxes", KEYS[0])
            assert await status(mine) == 200
            await reaches(shares.strangers, 4)
            assert shares.strangers_answers.used > 4 * BUNDLE_BYTES
            await closed(mine)
        await reaches(shares.strangers, 0)
        await reaches(shares.strangers_answers, 0)


async def test_answers_without_a_key_take_nothing_from_what_a_key_may_have() -> None:
    service = Service(capacity=Capacity(strangers=64), key_hashes=HASHES)
    async with service.served(bounded=True) as live:
        shares = service.app.state.context.shares
        live.client.headers["authorization"] = f"Bearer {KEYS[0]}"
        path = await live.start("print", "250000")
        before = shares.answers.share(HASHES[0])
        async with unread(live, 30, BUNDLE):
            await reaches(shares.strangers, 30)
            await comes_true(lambda: shares.strangers_answers.used > 5 * BUNDLE_BYTES)
            refused = await ask(live, BUNDLE)
            assert await status(refused) == 429
            counted = '{budget="MiB of answers without a key at one time",holder="client"} '
            assert f"bulkhead_capacity_refusals_total{counted}" in service.telemetry.render().decode()
            assert shares.strangers_answers.used <= 8 * 1024 * 1024, "half of 16 MiB is one address's"
            assert (shares.answers.used, shares.answers.share(HASHES[0])) == (0, before)
            mine = await live.client.get(f"{path}/output?channel=stdout&wait_seconds=60")
            assert (mine.status_code, len(mine.content)) == (200, 250_000)
            await closed(refused)


async def test_the_only_key_may_have_all_of_the_memory_for_answers() -> None:
    for hashes, part in ((HASHES[:1], 1), (HASHES, 2)):
        answers = Service(key_hashes=hashes).app.state.context.shares.answers
        assert answers.share(hashes[0]) == answers.size // part


async def test_of_an_answer_that_nobody_takes_the_kernel_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    serving: list[BoundedHttp] = []
    made = BoundedHttp.connection_made

    def noted(self: BoundedHttp, transport: asyncio.Transport) -> None:
        serving.append(self)
        made(self, transport)

    def unsent(connection: BoundedHttp) -> int:
        descriptor = connection.transport.get_extra_info("socket").fileno()
        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0])

    monkeypatch.setattr(BoundedHttp, "connection_made", noted)
    service = Service(key_hashes=HASHES)
    async with service.served(bounded=True) as live:
        answers = service.app.state.context.shares.strangers_answers
        async with unread(live, 4, BUNDLE):
            await comes_true(lambda: answers.used > 4 * BUNDLE_BYTES)
            await comes_true(lambda: all(connection.transport.get_write_buffer_size() for connection in serving))
            held = [unsent(connection) for connection in serving]
            assert all(0 < size <= 2 * UNSENT_BYTES for size in held), held


async def test_a_stream_is_a_connection_of_its_key() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served(bounded=True) as live:
        path = (await held_execution(live)).partition("?")[0]
        connections = service.app.state.context.shares.connections
        async with live.stream(path, additional_headers={"authorization": f"Bearer {KEYS[1]}"}) as viewer:
            await viewer.recv()
            assert connections.held(HASHES[1]) == 1
        async with asyncio.timeout(60):
            while connections.held(HASHES[1]):  # noqa: ASYNC110 - the edge has no event for it
                await asyncio.sleep(0)


async def test_a_proxy_that_is_trusted_says_who_is_behind_it() -> None:
    settings = Settings(trusted_proxies=("127.0.0.1",))
    service = Service(capacity=CAPACITY, key_hashes=HASHES, settings=settings)
    async with service.served(bounded=True) as live:
        strangers = service.app.state.context.shares.strangers
        proxied = [await ask(live, "/healthz", more=f"X-Forwarded-For: 192.0.2.{n}\r\n") for n in (1, 2, 2)]
        proxied.append(await ask(live, "/healthz", more="X-Forwarded-For: 2001:db8::1\r\n"))
        proxied.append(await ask(live, "/healthz", more="X-Forwarded-For: 2001:db8::2\r\n"))
        assert [await status(connection) for connection in proxied] == [200] * 5
        assert (strangers.held("192.0.2.1"), strangers.held("192.0.2.2"), strangers.held("127.0.0.1")) == (1, 2, 0)
        assert strangers.held("2001:db8::/64") == 2, "one network is one client"
        await closed(*proxied)


def from_address(number: int) -> str:
    return f"X-Forwarded-For: 192.0.2.{number}\r\n"


async def test_addresses_that_keep_all_connections_idle_keep_nobody_out() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES, settings=Settings(trusted_proxies=("127.0.0.1",)))
    async with service.served(bounded=True) as live:
        strangers = service.app.state.context.shares.strangers
        idle = []
        for number in (1, 1, 1, 1, 2, 2, 3, 4):
            idle.append(await ask(live, "/healthz", more=from_address(number)))
            assert await status(idle[-1]) == 200
        assert strangers.used == strangers.size == 8
        newcomer = await ask(live, "/docs", more=from_address(5))
        assert await status(newcomer) == 200
        async with asyncio.timeout(60):
            await idle[0][0].read()  # until the service closes the one that was idle for the longest
        assert (strangers.held("192.0.2.1"), strangers.held("192.0.2.5"), strangers.used) == (3, 1, 8)
        await closed(*idle, newcomer)


async def test_health_is_told_even_when_no_connection_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedHttp, "idle", False)
    service = Service(capacity=CAPACITY, key_hashes=HASHES, settings=Settings(trusted_proxies=("127.0.0.1",)))
    async with service.served(bounded=True) as live:
        strangers = service.app.state.context.shares.strangers
        held = [await ask(live, "/healthz", more=from_address(number)) for number in (1, 1, 1, 1, 2, 2, 3, 4)]
        assert [await status(connection) for connection in held] == [200] * 8
        await reaches(strangers, 8)
        for path in ("/healthz", "/readyz"):
            asked = await ask(live, path, more=from_address(5))
            async with asyncio.timeout(60):
                answer = await asked[0].read()  # until the service closes
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
            await closed(asked)
        refused = await ask(live, "/docs", more=from_address(5))
        assert await status(refused) == 429
        assert strangers.used == 8
        await closed(*held, refused)


async def test_a_trusted_proxy_that_says_no_address_is_the_client_itself() -> None:
    said = {
        "unknown": "127.0.0.1",
        "a:b:c": "127.0.0.1",
        "192.0.2.1 <script>": "127.0.0.1",
        "2001:0DB8:0::0001": "2001:db8::1",
        "::ffff:192.0.2.7": "192.0.2.7",
        "192.0.2.8:4711": "192.0.2.8",
    }
    service = Service(key_hashes=HASHES, settings=Settings(trusted_proxies=("127.0.0.1",)))
    async with service.served(bounded=True) as live:
        proxied = [await ask(live, "/problems", more=f"X-Forwarded-For: {text}\r\n") for text in said]
        assert [await status(connection) for connection in proxied] == [200] * len(said)
        assert service.app.state.context.shares.strangers.held("127.0.0.1") == 3

        def clients() -> list[str]:
            return sorted(line["client"] for line in service.logged if line["event"] == "request")

        await comes_true(lambda: len(clients()) == len(said))
        assert clients() == sorted(said.values())
        await closed(*proxied)
