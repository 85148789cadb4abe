"""Exact output over the double: sockets that break, kills at any moment, images that cannot, and what is left."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from app.backends.boxlite.inside import WRAPPER_MARK
from app.core.errors import BackendTimeout, CapabilityMissing, UnsupportedByRuntime
from app.core.models import ExecutionLimits, ExitReason, OutputMode, Stderr
from tests.boxlite.double import Attach, Drop, Route, Settings
from tests.boxlite.processes import environments
from tests.boxlite.rig import SPEC, Rig, quick, rig, start, until
from tests.boxlite.test_exact_script import BOTH

EXACT: dict[str, Any] = {"output_mode": OutputMode.EXACT}
MERGED: dict[str, Any] = {"stderr": Stderr.STDOUT}
CANNOT = b"\x01cpus=1\nmemory_kib=80000\nroutes=0\ninexact=lacks base64\n"
RLIMITS = ExecutionLimits(stack_mib=2, open_files=20, file_mib=3)
EXIT = '{"type":"exit","exit_code":0}'


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


def carriers(r: Rig) -> list[int]:
    return [pid for pid, environment in environments(r.double).items() if f"{WRAPPER_MARK}=".encode() in environment]


async def test_a_hundred_megabytes_of_random_bytes_on_both_channels_at_once() -> None:
    """Takes 5 s where nothing else runs."""
    async with rig() as r:
        sandbox = await r.sandbox()
        command = ("/usr/bin/python3", "-c", BOTH, "/tmp/digests", "50000000")
        run = await start(sandbox, *command, timeout_seconds=300)
        assert (await run.end(300)).code == 0
        told = await start(sandbox, "cat", "/tmp/digests", execution_id="exe_2")
        await told.end()
        assert f"{run.logs.stdout.sha256} {run.logs.stderr.sha256}".encode() == told.out
        assert (run.logs.stdout.total, run.logs.stdout.dropped, run.logs.stderr.gaps) == (50_000_000, 0, [])
        await until(lambda: not carriers(r))


# --- sockets


@pytest.mark.parametrize("cut_after", [1, 2, 3, 50, 89, 90, 200])
async def test_sockets_that_break_again_and_again_cost_nothing(cut_after: int) -> None:
    """Five cuts, while output and stdin are under way."""
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=cut_after), times=5)
        run = await start(sandbox, *script("seq -w 1 100000; sha256sum >&2"), stdin=True)
        data = b"x1y2z3" * 100_000
        assert await run.handle.write(data)
        await run.handle.close_stdin()
        assert (await run.end()).detail is None
        assert run.out == b"".join(b"%06d\n" % n for n in range(1, 100_001))
        assert run.err.split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert not run.logs.stdout.gaps and run.logs.stdout.dropped == 0


async def test_an_outage_of_the_network_costs_nothing() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("n=0; while [ $n -lt 400 ]; do echo $((n+=1)); sleep 0.01; done"))
        await run.saw(b"\n20\n")
        await r.double.refuse_connections()
        for writer in tuple(r.double._writers):
            writer.transport.abort()
        await until(lambda: r.backend._health_check._failure is not None)
        await r.double.restart()
        assert (await run.end()).code == 0
        assert run.out == b"".join(b"%d\n" % n for n in range(1, 401)) and run.logs.stdout.dropped == 0


async def test_a_server_that_forgets_output_is_told_of() -> None:
    """Of three pieces it has lost the second."""
    async with rig() as r:
        sandbox = await r.sandbox()
        said = (b"\x01>\n:1\nQUFB\n;\n", b"\x01:3\nQ0ND\n;\n.3\n", b"\x02.0\n", EXIT)
        r.double.faults.on(Route.ATTACH, Attach(first=said), times=1)
        run = await start(sandbox, *script("sleep 1000"))
        end = await run.end()
        assert (end.code, end.detail) == (0, "the BoxLite server has not kept all of its output")
        assert (run.out, run.logs.stdout.gaps, run.logs.stdout.dropped) == (b"AAACCC", [3], None)
        await sandbox.destroy()


async def test_a_crash_of_the_server_ends_it_and_all_that_carried_its_output() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script("echo up; exec yes"), stdin=True)
        await run.saw(b"up")
        await r.double.crash()
        await r.double.restart()
        assert (await run.end()).reason is ExitReason.LOST
        await until(lambda: not r.marked() and not carriers(r))
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


# --- kills


@pytest.mark.parametrize("text", ["exec yes", "exec yes >&2", "sleep 1000", "cat >/dev/null", "setsid yes & wait"])
async def test_a_kill_leaves_nothing_and_what_was_printed_has_arrived(text: str) -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(f"echo up; {text}"), stdin=True)
        await run.saw(b"up")
        await run.handle.write(bytes(500_000))
        await run.handle.kill()
        assert (await run.end()).signal == "SIGKILL"
        assert not run.logs.stdout.gaps and run.logs.stdout.dropped == 0
        assert not r.marked()
        await until(lambda: not carriers(r))


async def test_a_kill_at_the_very_start_leaves_nothing() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        for number in range(8):
            run = await start(sandbox, *script("sleep 1000"), execution_id=f"exe_{number}", stdin=number % 2 > 0)
            for _ in range(number * 40):
                await asyncio.sleep(0)
            await run.handle.kill()
            assert (await run.end()).signal == "SIGKILL"
        await until(lambda: not r.marked() and not carriers(r))


async def test_a_command_whose_start_is_lost_leaves_nothing() -> None:
    async with rig(timeouts=quick(control=2)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Drop(done=True), times=1)
        with pytest.raises(BackendTimeout):
            await start(sandbox, *script("sleep 1000"))
        await until(lambda: not r.marked() and not carriers(r))


@pytest.mark.parametrize("number", [1, 2, 10, 15, 9])
async def test_signals_come_to_the_command_and_not_to_what_carries(number: int) -> None:
    async with rig() as r:
        run = await start(
            await r.sandbox(), *script("trap 'seq 1 50000; exit 3' 1 2 10 15; echo up; while :; do sleep 0.01; done")
        )
        await run.saw(b"up")
        await run.handle.signal(number)
        end = await run.end()
        assert (end.code, end.signal) == ((None, "SIGKILL") if number == 9 else (3, None))
        assert run.out.endswith(b"\n50000\n") == (number != 9)
        await until(lambda: not carriers(r))


# --- starts


@pytest.mark.parametrize(
    ("program", "not_found", "said"), [("no-such", True, "was not found"), ("/etc/passwd", False, "EACCES")]
)
async def test_a_command_that_cannot_begin(program: str, *, not_found: bool, said: str) -> None:
    async with rig() as r:
        end = await (await start(await r.sandbox(), program)).end()
        assert (end.reason, end.not_found, end.duration_seconds) == (ExitReason.START_FAILED, not_found, None)
        assert said in (end.detail or "")


async def test_a_missing_directory_is_named() -> None:
    async with rig() as r:
        end = await (await start(await r.sandbox(), "ls", workdir="/no/such")).end()
        assert end.reason is ExitReason.START_FAILED and "/no/such" in (end.detail or "")


async def test_a_box_that_has_lost_a_tool_says_which() -> None:
    async with rig(Settings(path="/opt/busybox")) as r:
        sandbox = await r.sandbox()
        gone = await start(sandbox, *script("rm /opt/busybox/base64"), output_mode=OutputMode.PLAIN)
        assert (await gone.end()).code == 0
        end = await (await start(sandbox, "echo", "x")).end()
        assert end.reason is ExitReason.START_FAILED and "lacks base64" in (end.detail or "")
        plain = await start(sandbox, "echo", "x", output_mode=OutputMode.PLAIN)
        assert ((await plain.end()).code, plain.out) == (0, b"x\n")


# --- hostile programs


@pytest.mark.parametrize("junk", ["junk", "", ":1 0", ";", "[boxlite] stdout output dropped 5 bytes"])
async def test_a_program_that_writes_between_the_pieces_ends_as_lost(junk: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        each = f"grep -qz '^{WRAPPER_MARK}=exe_1$' $f/environ 2>/dev/null && printf '{junk}\\n\\n' >$f/fd/1"
        run = await start(sandbox, *script(f"while :; do for f in /proc/[0-9]*; do {each}; done; sleep 0.2; done"))
        end = await run.end()
        assert end.reason is ExitReason.LOST and "wrote between" in (end.detail or "")
        await until(lambda: not r.marked() and not carriers(r))
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_a_program_that_writes_without_end_between_the_pieces_costs_no_memory() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        # Where the shells of the wrapper write when they have begun: what dd writes to is a pipe of theirs.
        ours = f"grep -qz '^{WRAPPER_MARK}=exe_1$' $f/environ 2>/dev/null && grep -qzx serve $f/cmdline"
        begun = '[ "$(readlink $f/fd/1)" != "$(readlink /proc/$$/fd/1)" ]'
        each = f"{ours} && {begun} && cat /dev/zero >$f/fd/1"
        run = await start(sandbox, *script(f"while :; do for f in /proc/[0-9]*; do {each}; done; sleep 0.1; done"))
        end = await run.end()
        assert end.reason is ExitReason.LOST and run.logs.stdout.total == 0
        await until(lambda: not r.marked() and not carriers(r))


# --- images and modes


async def test_an_image_that_cannot_is_plain_and_says_so() -> None:
    async with rig() as r:
        r.double.faults.on(Route.ATTACH, Attach(first=(CANNOT, EXIT)), times=1)
        sandbox = await r.sandbox()
        assert sandbox.receipt["output_mode"] == "plain"
        assert sandbox.receipt["output_detail"] == "the image lacks base64"
        run = await start(sandbox, "echo", "x")
        assert ((await run.end()).code, run.out, run.logs.stdout.dropped, run.logs.mode) == (0, b"x\n", None, "plain")
        for wanted in (EXACT, MERGED, {"limits": RLIMITS}):
            with pytest.raises(UnsupportedByRuntime, match="lacks base64"):
                await start(sandbox, "echo", "x", execution_id="exe_2", **wanted)


async def test_both_channels_in_one_pipe_are_refused_with_plain_output() -> None:
    async with rig() as r:
        with pytest.raises(UnsupportedByRuntime, match="merged output where output is plain"):
            await start(await r.sandbox(), "echo", "x", output_mode=OutputMode.PLAIN, **MERGED)


@pytest.mark.parametrize("capability", ["exact_output", "merged_output", "execution_rlimits"])
async def test_an_image_that_cannot_is_refused_when_exact_output_is_required(capability: str) -> None:
    """Its first box is booted for that, later ones are not."""
    async with rig() as r:
        r.double.faults.on(Route.ATTACH, Attach(first=(CANNOT, EXIT)), times=1)
        wanted = replace(SPEC, requires=frozenset({capability}))
        for _ in range(2):
            with pytest.raises(CapabilityMissing, match="lacks base64") as caught:
                await r.sandbox(spec=wanted)
            assert caught.value.missing == [capability]
        assert len(r.double.sent(Route.START)) == 1 and not r.double.boxes


async def test_an_image_is_asked_once() -> None:
    async with rig() as r:
        for number in range(2):
            sandbox = await r.sandbox(f"sbx_{number}")
            assert sandbox.receipt["output_mode"] == "exact"
        asked = [sent.json["args"][-1] for sent in r.double.sent(Route.EXEC)]
        assert asked == ["probe", ""]


async def test_a_terminal_is_plain_and_never_exact() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "tty", tty=(24, 80), stdin=True)
        assert (await run.end()).code == 0 and run.logs.stdout.dropped is None
        with pytest.raises(UnsupportedByRuntime, match="terminal"):
            await start(sandbox, "tty", tty=(24, 80), stdin=True, execution_id="exe_2", **EXACT)


# --- limits of an execution

ULIMIT = "ulimit -Hs; ulimit -Hn; ulimit -Hf"


async def test_limits_of_each_process_of_an_execution_are_in_force() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(ULIMIT), limits=RLIMITS)
        assert (await run.end()).code == 0
        assert run.out.split() == [b"2048", b"20", b"6144"]


async def test_limits_are_refused_where_the_wrapper_does_not_run() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        for how in ({"output_mode": OutputMode.PLAIN}, {"tty": (24, 80)}):
            with pytest.raises(UnsupportedByRuntime, match="limits of an execution"):
                await start(sandbox, "true", limits=RLIMITS, **how)
