"""Commands in a box: what is sent, how the end is understood, stdin, signals, terminals, kills and races."""

from __future__ import annotations

import pytest

from app.backends.boxlite.inside import MARK, WRAPPER_MARK
from app.core.models import ExitReason
from tests.boxlite.double import Answer, Attach, Route
from tests.boxlite.rig import PLAIN, rig, start, until

# A child that holds stdout, in a session of its own and with a clean environment: no mark and no group leads to it.
HIDDEN = "setsid env -i sh -c 'echo hidden; while :; do sleep 1000; done' & wait"


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


# --- what is sent


async def test_a_command_is_sent_with_all_that_belongs_to_it_and_attached_at_once() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        run = await start(
            sandbox, "sh", "-c", "pwd; echo $A", env={"A": "b c"}, workdir="/tmp", timeout_seconds=7, **PLAIN
        )
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
        assert limits.reserved == {"BOXLITE_EXECUTOR", MARK, WRAPPER_MARK}
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
        assert run.logs.stdout.dropped == 0


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
        assert "does not tell how the execution ended; its box still runs" in (end.detail or "")
        await until(lambda: not r.marked())  # it lived on, and nobody would ever have ended it
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_a_sighup_that_we_sent_is_told_as_a_signal() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo up; sleep 1000"))
        await run.saw(b"up")
        await run.handle.signal(1)
        end = await run.end()
        assert (end.reason, end.signal) == (ExitReason.SIGNALED, "SIGHUP")
