"""Over real sockets: a client, or an address without a key, that has all its connections keeps nobody else out."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from app.core.sandboxes import Capacity
from app.settings import Settings
from tests.unit.api.service import Door, Service
from tests.unit.api.test_shares import HASHES, KEYS, reaches

CAPACITY = Capacity(connections=8, strangers=8)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(door: Door, path: str, key: str | None = None, more: str = "") -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}{more}\r\n".encode())
    return reader, writer


async def status(connection: Connection) -> int:
    async with asyncio.timeout(10):
        return int((await connection[0].readuntil(b"\r\n\r\n")).split()[1])


async def closed(*connections: Connection) -> None:
    for _, writer in connections:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def held_execution(door: Door) -> str:
    door.client.headers["authorization"] = f"Bearer {KEYS[0]}"
    return await door.start("sleep") + "?wait_seconds=60"


async def test_a_key_at_its_bound_is_told_so_and_another_key_goes_on() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served() as door:
        path = await held_execution(door)
        shares = service.app.state.edge.shares
        held = [await ask(door, path, KEYS[0]) for _ in range(4)]
        await reaches(shares.connections, 4)  # one of them in the place of the idle one that made the execution
        refused = await ask(door, "/sandboxes", KEYS[0])
        async with asyncio.timeout(10):
            answer = await refused[0].read()  # until the service closes
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in head
        problem = json.loads(body)
        assert (problem["budget"], problem["holder"]) == ("connections at one time", "client")
        other = await ask(door, "/sandboxes", KEYS[1])
        assert await status(other) == 200
        await closed(*held, refused, other)
        await reaches(shares.connections, 0)


async def test_an_address_that_takes_no_answer_keeps_no_key_out() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served() as door:
        strangers = service.app.state.edge.shares.strangers
        unread = [await ask(door, "/docs/swagger-ui-bundle.js") for _ in range(20)]
        mine = await ask(door, "/sandboxes", KEYS[0])
        assert await status(mine) == 200
        assert strangers.used <= 4
        await closed(*unread, mine)
        await reaches(strangers, 0)


async def test_a_stream_is_a_connection_of_its_key() -> None:
    service = Service(capacity=CAPACITY, key_hashes=HASHES)
    async with service.served() as door:
        path = (await held_execution(door)).partition("?")[0]
        connections = service.app.state.edge.shares.connections
        async with door.stream(path, additional_headers={"authorization": f"Bearer {KEYS[1]}"}) as viewer:
            await viewer.recv()
            assert connections.held(HASHES[1]) == 1
        async with asyncio.timeout(10):
            while connections.held(HASHES[1]):  # noqa: ASYNC110 - the edge has no event for it
                await asyncio.sleep(0)


async def test_a_proxy_that_is_trusted_says_who_is_behind_it() -> None:
    settings = Settings(trusted_proxies=("127.0.0.1",))
    service = Service(capacity=CAPACITY, key_hashes=HASHES, settings=settings)
    async with service.served() as door:
        strangers = service.app.state.edge.shares.strangers
        proxied = [await ask(door, "/healthz", more=f"X-Forwarded-For: 192.0.2.{n}\r\n") for n in (1, 2, 2)]
        proxied.append(await ask(door, "/healthz", more="X-Forwarded-For: 2001:db8::1\r\n"))
        proxied.append(await ask(door, "/healthz", more="X-Forwarded-For: 2001:db8::2\r\n"))
        assert [await status(connection) for connection in proxied] == [200] * 5
        assert (strangers.held("192.0.2.1"), strangers.held("192.0.2.2"), strangers.held("127.0.0.1")) == (1, 2, 0)
        assert strangers.held("2001:db8::/64") == 2, "one network is one client"
        await closed(*proxied)
