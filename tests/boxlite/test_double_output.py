"""Output as the real server loses it: the backlog that comes again, and the reader that is too slow."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed

from tests.boxlite.client import Client, CommandResult, box_double, rest, until
from tests.boxlite.double import Settings

LINES = "seq 1000000 1124999"  # a megabyte, in which every line tells its place
MEGABYTE = b"".join(b"%d\n" % number for number in range(1_000_000, 1_125_000))
BACKLOG = 256 * 1024


async def test_who_always_reads_gets_everything_in_chunks_of_a_kibibyte() -> None:
    async with box_double() as double, Client(double) as client:
        script = f"read x; for i in 1 2 3 4; do {LINES}; done; echo end >&2"
        async with client.attached(await client.execute(await client.box(), "sh", "-c", script)) as socket:
            await socket.send(b"\n")  # not before: what is printed without a reader is lost but for its end
            said = await rest(socket)
        assert said.stdout == MEGABYTE * 4
        assert said.stderr == b"end\n"
        assert max(len(frame) for frame in said.frames) == 1 + 1024


async def test_a_later_attach_gets_the_end_of_each_stream_and_exit_as_often_as_it_likes() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "sh", "-c", f"echo first >&2; {LINES}; exit 4")
        await client.becomes(path, "completed")
        for _ in range(2):
            said = await client.follow(path)
            assert BACKLOG - 1024 < len(said.stdout) <= BACKLOG
            assert MEGABYTE.endswith(said.stdout)
            assert (said.stderr, said.exit_code, said.close_code) == (b"first\n", 4, 1005)
            assert said.frames[-2] == b"\x02first\n"  # all stdout, all stderr, exit


@pytest.mark.parametrize(
    ("megabytes", "settings", "pause", "stderr"),
    [
        (30, Settings(), 0, b"end\n"),
        (12, Settings(write_seconds=4), 4.5, b""),  # the server gives up what is left, and only says exit
    ],
)
async def test_who_does_not_read_slows_nothing_down_and_loses_output_without_a_mark(
    megabytes: int, settings: Settings, pause: float, stderr: bytes
) -> None:
    async with box_double(settings) as double, Client(double) as client:
        script = f"for i in $(seq {megabytes}); do {LINES}; done; echo end >&2; exit 0"
        path = await client.execute(await client.box(), "sh", "-c", script)
        async with client.attached(path) as socket:
            await client.becomes(path, "completed")
            await asyncio.sleep(pause)
            said = await rest(socket)
        assert len(said.stdout) < (megabytes - 1) * len(MEGABYTE)
        assert (said.stderr, said.exit_code, said.close_code) == (stderr, 0, 1005)


async def test_a_gap_in_the_middle_when_the_process_lives_on() -> None:
    async with box_double() as double, Client(double) as client:
        script = f"for i in $(seq 30); do {LINES}; done; echo printed; touch /root/printed; read x; echo end"
        box = await client.box()
        path = await client.execute(box, "sh", "-c", script)
        async with client.attached(path) as socket:
            waited = await client.run(box, "sh", "-c", "until [ -e /root/printed ]; do sleep 0.05; done")
            assert waited.exit_code == 0
            said = CommandResult()
            reading = asyncio.create_task(rest(socket, said))
            await until(lambda: said.stdout.endswith(b"printed\n"))  # it has caught up with what is left
            await socket.send(b"\n")
            await reading
        assert len(said.stdout) < 25_000_000
        assert said.stdout.endswith(b"1124999\nprinted\nend\n")
        assert said.exit_code == 0


async def test_a_frame_that_cannot_be_written_ends_the_session_and_frees_the_slot() -> None:
    async with box_double(Settings(write_seconds=0.3)) as double, Client(double) as client:
        path = await client.execute(await client.box(), "yes")
        async with client.attached(path) as socket:
            await until(lambda: double.attached_clients == 0)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await socket.recv()
        assert closed.value.rcvd is None
        async with client.attached(path) as again:
            assert (await again.recv())[:1] == b"\x01"
        assert (await client.ok("GET", path))["status"] == "running"


async def test_characters_are_never_cut_and_what_is_none_is_replaced() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        said = await client.run(box, "sh", "-c", "printf a; yes ü | head -c 9000 | tr -d '\\n'")
        assert said.stdout.decode() == "a" + "ü" * 3000
        for frame in said.frames:
            if isinstance(frame, bytes):
                frame[1:].decode()
        assert (await client.run(box, "printf", "a\\377b")).stdout == "a\ufffdb".encode()


async def test_pings_come_at_once_and_when_nothing_else_does() -> None:
    async with box_double(Settings(ping_seconds=0.05)) as double, Client(double) as client:
        path = await client.execute(await client.box(), "sleep", "60")
        reader, writer = await client.raw_attach(path)
        assert await asyncio.wait_for(reader.readexactly(6), 60) == b"\x89\x00" * 3
        writer.close()
        await writer.wait_closed()
