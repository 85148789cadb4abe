"""Commands in a box: what is sent, how the end is understood, stdin, signals, terminals, kills and races."""

from __future__ import annotations

import asyncio

import pytest

from app.backends.boxlite.execution import MAY_LIVE_ON
from app.backends.boxlite.inside import MARK
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, CapacityExceeded, WrongState
from app.core.models import ExitReason
from tests.boxlite.double import Answer, Attach, Drop, Route, Settings, Stall
from tests.boxlite.rig import Rig, quick, rig, start, until

# A child that holds stdout, in a session of its own and with a clean environment: no mark and no group leads to it.
HIDDEN = "setsid env -i sh -c 'echo hidden; while :; do sleep 1000; done' & wait"


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


# --- what is sent


async def test_a_command_is_sent_with_all_that_belongs_to_it_and_attached_at_once() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        run = await start(sandbox, "sh", "-c", "pwd; echo $A", env={"A": "b c"}, workdir="/tmp", timeout_seconds=7)
        assert (await run.end()).code == 0 and run.out == b"/tmp\nb c\n"
        assert r.routes() == [Route.EXEC, Route.ATTACH]
        (sent,) = r.double.sent(Route.EXEC)
        assert sent.json == {
            "command": "sh",
            "args": ["-c", "pwd; echo $A"],
            "env": {"A": "b c", MARK: "exe_1"},
            "working_dir": "/tmp",
            "tty": False,
            "timeout_seconds": 22,  # ours comes first
        }
        (attached,) = r.double.sent(Route.ATTACH)
        assert attached.query == {} and attached.headers["authorization"] == f"Bearer {r.double.key}"
        assert "sec-websocket-extensions" not in attached.headers
        assert "sec-websocket-protocol" not in attached.headers


async def test_reserved_names_are_refused_by_the_limits_of_the_runtime() -> None:
    async with rig(opened=False) as r:
        limits = r.backend.info.command_limits
        assert limits.reserved == {"BOXLITE_EXECUTOR", MARK}
        assert limits.argument_bytes < 131_072 and limits.total_bytes < 200_000


async def test_the_largest_command_that_is_let_through_is_one_that_the_server_takes() -> None:
    """A byte of it may be six in JSON, and the server takes 2 MiB."""
    async with rig() as r:
        limits = r.backend.info.command_limits
        rest = limits.total_bytes - limits.argument_bytes - 1000
        run = await start(
            await r.sandbox(), *script("echo ${#1} ${#2}"), "sh", "\1" * limits.argument_bytes, "\1" * rest
        )
        assert (await run.end()).code == 0 and run.out == f"{limits.argument_bytes} {rest}\n".encode()


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$; :", None)]
)
async def test_the_end_as_the_server_tells_it(command: str, code: int | None) -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(command))
        end = await run.end()
        assert (end.code, end.signal) == (code, None if code is not None else "SIGKILL")
        assert end.reason is (ExitReason.EXITED if code is not None else ExitReason.SIGNALED)
        assert end.unprompted and end.detail is None and end.duration_seconds is not None
        assert run.logs.stdout.dropped is None


@pytest.mark.parametrize(
    ("said", "reason", "words", "not_found"),
    [
        ("spawn_failed: internal error: executable 'x' not found in $PATH", ExitReason.START_FAILED, "not found", True),
        ("spawn_failed: x does not have correct permissions", ExitReason.START_FAILED, "EACCES", False),
        ("spawn_failed: y failed to unix syscall", ExitReason.START_FAILED, "working directory", False),
        ("spawn_failed: build failed: something else", ExitReason.START_FAILED, "something else", False),
    ],
)
async def test_what_could_not_be_started(said: str, reason: ExitReason, words: str, not_found: bool) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Answer.failure("internal", f"internal error: {said}"), times=1)
        end = await (await start(sandbox, "x")).end()
        assert end.reason is reason and words in (end.detail or "") and end.not_found is not_found
        assert end.duration_seconds is None


async def test_the_doubles_own_refusals_to_start() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        assert (await (await start(sandbox, "no-such-program")).end()).not_found
        assert "EACCES" in ((await (await start(sandbox, "/etc/passwd")).end()).detail or "")
        end = await (await start(sandbox, "true", workdir="/nowhere")).end()
        assert end.reason is ExitReason.START_FAILED and "/nowhere" in (end.detail or "")


# --- the exit frame


@pytest.mark.parametrize("frame", ["-1", "-65", "256", "1e99", "null", '"0"', "true", "{}", "9" * 400])
async def test_an_exit_that_tells_nothing_is_lost_and_not_invented(frame: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=(f'{{"type":"exit","exit_code":{frame}}}',)), times=1)
        run = await start(sandbox, *script("sleep 1000"))
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.code is None and end.signal is None
        assert "does not tell how it ended; its box runs on" in (end.detail or "")
        await until(lambda: not r.marked())  # it lived on, and nobody would ever have ended it
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_a_hangup_that_we_sent_is_told_as_a_signal() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo up; sleep 1000"))
        await run.saw(b"up")
        await run.handle.signal(1)
        end = await run.end()
        assert (end.reason, end.signal) == (ExitReason.SIGNALED, "SIGHUP")


# --- stdin


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
    """The server queues without a limit what the program does not read."""
    async with rig(stdin_mib=1) as r:
        run = await start(await r.sandbox(), *script("sleep 1000"), stdin=True)
        await run.handle.write(b"x" * (1024 * 1024 - 1))
        with pytest.raises(CapacityExceeded, match="stdin"):
            await run.handle.write(b"xx")
        await run.handle.write(b"x")
        with pytest.raises(CapacityExceeded):
            await run.handle.write(b"x")
        await run.handle.kill()


async def test_the_bound_of_stdin_is_64_mib_where_the_operator_says_nothing() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("sleep 1000"), stdin=True)
        with pytest.raises(CapacityExceeded):
            await run.handle.write(bytes(64 * 1024 * 1024 + 1))
        await run.handle.kill()
        await run.handle.write(bytes(64 * 1024 * 1024 + 1))  # discarded, like everything after the end


async def test_stdin_that_was_cut_off_is_not_sent_twice_and_its_loss_is_told() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1), times=1)
        run = await start(sandbox, *script("read -r a; echo got $a; read -r b; echo got $b; cat"), stdin=True)
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


# --- kills


async def test_a_kill_by_the_mark_finds_what_left_the_group() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("setsid sh -c 'sleep 1000' & setsid sleep 1000 & echo up; wait"))
        await run.saw(b"up")
        await until(lambda: len(r.marked()) >= 4)
        await run.handle.kill()
        await run.handle.kill()
        end = await run.end()
        assert end.signal == "SIGKILL" and not end.unprompted and end.detail == MAY_LIVE_ON
        assert not r.marked() and not r.double.sent(Route.KILL)


async def test_a_child_that_hides_and_holds_the_pipes_does_not_hold_the_kill() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN))
        await run.saw(b"hidden")
        await run.handle.kill()
        end = await run.end()
        assert (end.reason, end.signal, end.detail) == (ExitReason.SIGNALED, "SIGKILL", MAY_LIVE_ON)


async def test_a_kill_in_a_box_without_a_shell_is_the_servers() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN))
        await run.saw(b"hidden")
        r.double.faults.on(Route.EXEC, Answer.failure("internal", "internal error: spawn_failed: no sh"), times=1)
        await run.handle.kill()
        assert len(r.double.sent(Route.KILL)) == 1
        end = await run.end()
        assert end.signal == "SIGKILL" and end.detail == MAY_LIVE_ON


async def test_a_kill_of_what_had_ended_by_itself_invents_no_end() -> None:
    """The first process is gone, its hidden child holds the pipes: nobody will ever tell how it ended."""
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN.replace("& wait", "& exit 0")))
        await run.saw(b"hidden")
        await until(lambda: not r.marked())
        await run.handle.kill()
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.code is None and "may live on" in (end.detail or "")


async def test_a_kill_that_nobody_confirms_is_an_error_with_the_upstreams_words_and_can_be_repeated() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo up; sleep 1000"))
        await run.saw(b"up")
        r.double.faults.on(Route.EXEC, Answer.failure("upstream_unavailable"), times=1)
        r.double.faults.on(Route.KILL, Answer.failure("engine_unavailable"), times=1)
        with pytest.raises(BackendTimeout, match="nobody says") as caught:
            await run.handle.kill()
        assert (caught.value.upstream.status, caught.value.upstream.code) == (503, "engine_unavailable")
        await run.handle.kill()
        assert (await run.end()).signal == "SIGKILL"


# --- answers that are lost


@pytest.mark.parametrize("fault", [Drop(done=True), Stall(done=True)], ids=["dropped", "stalled"])
async def test_a_start_whose_answer_is_lost_leaves_no_process(fault: Drop | Stall) -> None:
    async with rig(times=quick(control=0.5)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, fault, times=1)
        with pytest.raises(BackendTimeout):
            await start(sandbox, *script("sleep 1000"))
        await until(lambda: not r.marked())
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_what_could_not_be_killed_at_once_is_killed_later() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Drop(done=True), times=1)
        r.double.faults.on(Route.EXEC, Drop(), times=2)
        with pytest.raises(BackendTimeout):
            await start(sandbox, *script("sleep 1000"))
        assert r.marked()
        await until(lambda: not r.marked())


async def test_one_box_that_does_not_answer_does_not_close_the_runtime() -> None:
    async with rig(times=quick(control=0.3)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Stall(), times=2)
        starting = asyncio.get_running_loop().create_task(start(sandbox, "true"))
        while not starting.done():
            await r.backend.ready()
            await asyncio.sleep(0.02)
        with pytest.raises(BackendFailure):
            await starting
        await r.backend.ready()


@pytest.mark.parametrize("code", ["invalid_argument", "internal"])
async def test_a_refused_start_is_told_as_it_is(code: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Answer.failure(code), times=1)
        with pytest.raises(BackendRefused) as caught:
            await start(sandbox, "true")
        assert caught.value.upstream.code == code
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


# --- races


async def _racing(r: Rig, turns: int) -> None:
    sandbox = await r.sandbox()
    loop = asyncio.get_running_loop()
    starting = [loop.create_task(start(sandbox, *script("sleep 1000"), execution_id=f"exe_{n}")) for n in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0.001)
    await asyncio.gather(sandbox.destroy(), sandbox.destroy())
    for task in starting:
        try:
            run = await task
        except (WrongState, BackendFailure):
            continue
        assert (await run.end()).signal == "SIGKILL"
    with pytest.raises(WrongState):
        await start(sandbox, "true")


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40])
async def test_starts_against_a_destroy(turns: int) -> None:
    async with rig() as r:
        await _racing(r, turns)
        assert not r.double.boxes and not r.marked()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_a_start_that_is_cancelled_leaves_no_process(turns: int) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        starting = asyncio.get_running_loop().create_task(start(sandbox, *script("sleep 1000")))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await starting.result().handle.kill()
        await until(lambda: len(r.double.sent(Route.EXEC)) >= 2 if turns else True)
        await until(lambda: not r.marked())
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_kills_signals_and_writes_against_a_natural_end() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        for n in range(5):
            run = await start(sandbox, *script("read -r x; exit 7"), execution_id=f"exe_{n}", stdin=True)
            await run.handle.write(b"go\n")
            results = await asyncio.gather(
                run.handle.kill(), run.handle.signal(2), run.handle.write(b"x"), run.handle.close_stdin(),
                return_exceptions=True,
            )  # fmt: skip
            assert all(result is None or isinstance(result, WrongState) for result in results), results
            end = await run.end()
            assert (end.code, end.signal) in {(7, None), (None, "SIGKILL"), (None, "SIGINT")}


async def test_who_waits_to_write_is_let_go_at_the_end() -> None:
    async with rig(Settings(), times=quick(backoff=(5.0,))) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1), times=1)
        run = await start(sandbox, *script("echo up; sleep 1000"), stdin=True)
        await run.saw(b"up")
        await until(lambda: not run.handle._connected.is_set())  # type: ignore[attr-defined]
        writing = asyncio.get_running_loop().create_task(run.handle.write(b"x"))
        await asyncio.sleep(0)
        await sandbox.destroy()
        await writing
        assert (await run.end()).signal == "SIGKILL"
