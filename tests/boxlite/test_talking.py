"""Stdin, signals and terminals of a command in a box."""

from __future__ import annotations

import pytest

from app.core.errors import PayloadTooLarge, WrongState
from tests.boxlite.double import Answer, Attach, Route
from tests.boxlite.rig import PLAIN, rig, start, until
from tests.told import told


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


async def test_no_stdin_is_ended_at_once_and_stdin_goes_in_pieces() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        assert (await (await start(sandbox, "cat")).end()).code == 0
        run = await start(sandbox, *script("wc -c"), execution_id="exe_2", stdin=True)
        await run.handle.write(b"x" * 5_000_000)  # in one frame it would kill the server's stdin without a word
        await run.handle.close_stdin()
        await run.handle.close_stdin()
        assert (await run.end()).code == 0 and int(run.out) == 5_000_000


async def test_stdin_of_one_execution_has_an_end() -> None:
    """The server queues without a limit what the program does not read. Behind what was refused nothing goes in: a
    client that sends on without looking would leave bytes out of its program's stdin."""
    async with rig(stdin_mib=1) as r:
        run = await start(await r.sandbox(), *script("wc -c"), stdin=True, **PLAIN)
        await run.handle.write(b"x" * (1024 * 1024 - 1))
        for refused in (b"xx", b"x"):
            with pytest.raises(PayloadTooLarge) as error:
                await run.handle.write(refused)
            assert told(error.value) == (
                *(413, "payload_too_large", None),
                "all stdin of this execution is larger than 1048576 bytes, which is the most; write it to a file of "
                "the sandbox",
            )
        await run.handle.close_stdin()
        assert (await run.end()).code == 0 and run.out == b"1048575\n"


async def test_the_bound_of_stdin_is_64_mib_where_the_operator_says_nothing() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("sleep 1000"), stdin=True, **PLAIN)
        with pytest.raises(PayloadTooLarge, match="67108864 bytes"):
            await run.handle.write(bytes(64 * 1024 * 1024 + 1))
        await run.handle.kill()
        await run.handle.write(bytes(64 * 1024 * 1024 + 1))  # discarded, like everything after the end


async def test_stdin_that_was_cut_off_is_not_sent_twice_and_its_loss_is_told() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1), times=1)
        run = await start(sandbox, *script("read -r a; echo got $a; read -r b; echo got $b; cat"), stdin=True, **PLAIN)
        await run.handle.write(b"first\n")
        await run.saw(b"got first")
        await until(lambda: len(r.double.sent(Route.ATTACH)) == 3)
        await run.handle.write(b"second\n")
        await run.handle.close_stdin()
        end = await run.end()
        assert run.out == b"got first\ngot second\n"
        assert "stdin" in (end.detail or "") and end.code == 0


# --- signals


async def test_a_signal_goes_to_the_whole_group_by_the_boxs_own_shell() -> None:
    async with rig() as r:
        child = "trap 'echo child; exit' TERM; echo up; while :; do sleep 0.02; done"
        text = f'trap "echo parent; exit 0" TERM; sh -c "{child}" & wait; wait'
        run = await start(await r.sandbox(), *script(text))
        await run.saw(b"up")
        await run.handle.signal(15)
        await run.end()
        assert sorted(run.out.split()) == [b"child", b"parent", b"up"] and not r.double.sent(Route.SIGNAL)


@pytest.mark.parametrize(("number", "route"), [(15, Route.SIGNAL), (9, Route.KILL)])
async def test_without_a_shell_the_server_signals_the_first_process(number: int, route: Route) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script("echo up; exec sleep 1000"))
        await run.saw(b"up")
        r.double.faults.on(Route.EXEC, Answer.failure("internal", "internal error: spawn_failed: no sh"), times=1)
        await run.handle.signal(number)
        assert len(r.double.sent(route)) == 1
        assert (await run.end()).signal == ("SIGTERM" if number == 15 else "SIGKILL")


async def test_what_the_server_would_not_pass_on_is_not_sent_to_it() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo up; exec sleep 1000"))
        await run.saw(b"up")
        r.double.faults.on(Route.EXEC, Answer.failure("internal", "internal error: spawn_failed: no sh"), times=1)
        with pytest.raises(WrongState, match="SIGSTOP"):
            await run.handle.signal(19)
        assert not r.double.sent(Route.SIGNAL)
        await run.handle.kill()
        with pytest.raises(WrongState):
            await run.handle.signal(15)


# --- terminals


async def test_a_terminal_has_its_size_from_the_start_and_again_after_a_cut() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1), times=1)
        text = "echo up; while read -r line; do stty size; done"
        run = await start(sandbox, *script(text), tty=(33, 77), stdin=True)
        await run.saw(b"up")
        await until(lambda: len(r.double.sent(Route.ATTACH)) == 3)
        await run.handle.write(b"go\n")
        await run.saw(b"33 77")
        await run.handle.resize(44, 88)
        assert r.double.sent(Route.RESIZE)[-1].json == {"cols": 88, "rows": 44}
        await run.handle.write(b"go\n")
        await run.saw(b"44 88")
        await run.handle.kill()
        with pytest.raises(WrongState):
            await run.handle.resize(1, 1)
