"""Every rule in the docstrings of `app/core/backend.py`, against every backend of `kinds.py`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import pytest

from app.core.backend import Backend, ExecutionHandle, Logs, SandboxHandle
from app.core.capabilities import Capability
from app.core.errors import BulkheadError, WrongState
from app.core.models import Exit, ExitReason, Storage, Terminal
from app.core.output import OutputLog
from app.core.storage import CAPABILITIES
from tests.contract.kinds import Kind

MIB = 1024 * 1024


@dataclass
class Run:
    """One execution with its logs."""

    handle: ExecutionHandle
    logs: Logs

    async def end(self) -> Exit:
        return await self.handle.wait()

    @property
    def out(self) -> bytes:
        return stored(self.logs.stdout)

    @property
    def err(self) -> bytes:
        return stored(self.logs.stderr)

    async def saw(self, text: bytes) -> None:
        """Returns when stdout holds `text`."""
        changed = asyncio.Event()
        self.logs.stdout.watch(changed.set)
        while text not in self.out:
            changed.clear()
            await changed.wait()
        self.logs.stdout.unwatch(changed.set)


@dataclass
class Room:
    kind: Kind
    backend: Backend
    id: str
    handle: SandboxHandle
    count: int = field(default=0)

    async def run(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bool = False,
        tty: Terminal | None = None,
        logs: Logs | None = None,
        env: dict[str, str] | None = None,
        workdir: str = "",
    ) -> Run:
        self.count += 1
        logs = logs or Logs(OutputLog(64 * MIB), OutputLog(64 * MIB))
        command = self.kind.command(argv, stdin=stdin, tty=tty, env=env, workdir=workdir)
        return Run(await self.handle.execute(f"exe_{self.count}", command, logs), logs)

    async def processes(self) -> int:
        if self.kind.processes is None:
            pytest.skip(f"{self.kind.name} cannot count processes from outside")
        return await self.kind.processes(self.backend, self.id)


def stored(log: OutputLog) -> bytes:
    pieces, offset = [], log.start
    while piece := log.read(offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


@asynccontextmanager
async def opened(kind: Kind) -> AsyncIterator[Backend]:
    """At the end the backend is closed, and nothing of it may be left."""
    backend = await kind.open()
    backend.open()
    try:
        yield backend
    finally:
        await backend.aclose()
    assert kind.left(backend) == []


_SHARED: ContextVar[Room | None] = ContextVar("shared", default=None)


@asynccontextmanager
async def one_room(kind: Kind) -> AsyncIterator[None]:
    """Every `room` in the block is this one: for tests that each would wait for the boot of a box."""
    async with room(kind) as only:
        token = _SHARED.set(only)
        try:
            yield
        finally:
            _SHARED.reset(token)


@asynccontextmanager
async def room(kind: Kind, *needs: Capability) -> AsyncIterator[Room]:
    """Skips where the runtime does not promise what is needed, before a sandbox is made: a box takes seconds."""
    if (shared := _SHARED.get()) is not None:
        for capability in needs:
            promised(shared.backend, capability)
        yield shared
        return
    async with opened(kind) as backend:
        for capability in needs:
            promised(backend, capability)
        handle = await backend.create("sbx_1", kind.spec)
        yield Room(kind, backend, "sbx_1", handle)


def promised(backend: Backend, capability: Capability) -> None:
    if capability not in backend.info.capabilities:
        pytest.skip(f"{backend.info.name} does not promise {capability}")


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# --- the backend


async def test_info_names_the_runtime_and_only_known_capabilities(kind: Kind) -> None:
    async with opened(kind) as backend:
        info = backend.info
        assert info.name
        assert info.tier in {"kernel", "vm"}
        assert info.name not in info.aliases
        assert all(isinstance(capability, Capability) for capability in info.capabilities)
        assert backend.info == info


async def test_ready_returns_where_a_create_succeeds(kind: Kind) -> None:
    async with opened(kind) as backend:
        await backend.ready()
        await backend.create("sbx_1", kind.spec)


async def test_fit_begins_nothing_and_what_it_returns_fits(kind: Kind) -> None:
    async with opened(kind) as backend:
        before = kind.left(backend)
        spec = backend.fit(kind.spec)
        assert backend.fit(spec) == spec
        assert spec.limits.memory_mib >= kind.spec.limits.memory_mib
        assert spec.limits.disk_mib >= kind.spec.limits.disk_mib
        assert kind.left(backend) == before


async def test_created_sandbox_is_empty_and_its_receipt_is_json_with_the_tier(kind: Kind) -> None:
    async with room(kind) as sandbox:
        receipt = json.loads(json.dumps(dict(sandbox.handle.receipt)))
        assert receipt["tier"] == sandbox.backend.info.tier
        assert await sandbox.processes() == 0


async def test_sandbox_without_a_network_has_no_log_of_it(kind: Kind) -> None:
    async with room(kind) as sandbox:
        assert sandbox.handle.network_log is None


@pytest.mark.parametrize("storage", Storage)
async def test_files_are_where_the_spec_says_and_the_receipt_tells_it(kind: Kind, storage: Storage) -> None:
    async with opened(kind) as backend:
        await backend.ready()
        promised(backend, CAPABILITIES[storage])
        handle = await backend.create("sbx_1", backend.fit(replace(kind.spec, storage=storage)))
        assert handle.receipt["storage"]["kind"] == storage


async def test_sandboxes_created_at_the_same_time_are_apart(kind: Kind) -> None:
    async with opened(kind) as backend:
        names = [f"sbx_{n}" for n in range(4)]
        handles = await asyncio.gather(*(backend.create(name, kind.spec) for name in names))
        await handles[0].destroy()
        rest = [Room(kind, backend, n, h) for n, h in zip(names[1:], handles[1:], strict=True)]
        for sandbox in rest:
            assert (await (await sandbox.run(kind.programs.exit(0))).end()).code == 0


async def test_create_that_is_cancelled_at_any_turn_leaves_nothing(kind: Kind) -> None:
    async with opened(kind) as backend:
        before = kind.left(backend)
        for number in range(kind.turns):
            creating = asyncio.ensure_future(backend.create(f"sbx_{number}", kind.spec))
            await turns(number)
            creating.cancel()
            try:
                handle = await creating
            except asyncio.CancelledError:
                assert kind.left(backend) == before, f"cancelled after {number} turns"
            else:
                await handle.destroy()
                assert kind.left(backend) == before


async def test_create_that_fails_raises_an_error_of_the_tree_and_leaves_nothing(kind: Kind) -> None:
    if kind.break_create is None:
        pytest.skip(f"{kind.name} has no way to make a create fail")
    async with opened(kind) as backend:
        before = kind.left(backend)
        kind.break_create(backend)
        with pytest.raises(BulkheadError):
            await backend.create("sbx_1", kind.spec)
        assert kind.left(backend) == before


async def test_closing_the_backend_ends_everything_and_may_be_repeated(kind: Kind) -> None:
    backend = await kind.open()
    backend.open()
    sandbox = Room(kind, backend, "sbx_1", await backend.create("sbx_1", kind.spec))
    running = await sandbox.run(kind.programs.daemon(0))
    sleeping = await sandbox.run(kind.programs.sleep())
    await backend.aclose()
    assert kind.left(backend) == []
    assert (await running.end()).reason in ExitReason
    assert (await sleeping.end()).reason in {ExitReason.SIGNALED, ExitReason.LOST}
    await backend.aclose()


# --- the sandbox: execute


@pytest.mark.parametrize("code", [0, 3, 255])
async def test_exit_code_is_the_programs(kind: Kind, code: int) -> None:
    async with room(kind) as sandbox:
        ended = await (await sandbox.run(kind.programs.exit(code))).end()
        assert (ended.reason, ended.code, ended.signal) == (ExitReason.EXITED, code, None)


async def test_missing_program_is_start_failed_and_not_found(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.missing())
        ended = await run.end()
        assert (ended.reason, ended.code, ended.signal) == (ExitReason.START_FAILED, None, None)
        assert ended.not_found
        assert ended.detail
        assert run.out == b""
        await run.handle.kill()
        with pytest.raises(WrongState):
            await run.handle.signal(15)


async def test_environment_is_the_commands_over_the_runtimes_own_and_nothing_of_ours(kind: Kind) -> None:
    async with room(kind) as sandbox:
        wanted = {"PATH": "/usr/bin:/bin", "A": "1 2", "ä": "ö=3", "EMPTY": ""}
        run = await sandbox.run(kind.programs.env(), env=wanted)
        await run.end()
        found = [line for line in run.out.decode().splitlines() if line.partition("=")[0] not in kind.fixed_env]
        assert sorted(found) == sorted(f"{name}={value}" for name, value in {**kind.base_env, **wanted}.items())


async def test_working_directory_is_the_commands(kind: Kind) -> None:
    async with room(kind) as sandbox:
        for workdir in ("/workspace", "/tmp"):
            run = await sandbox.run(kind.programs.pwd(), workdir=workdir)
            await run.end()
            assert run.out == workdir.encode() + b"\n"


async def test_executions_run_beside_each_other(kind: Kind) -> None:
    async with room(kind) as sandbox:
        sleeping = await sandbox.run(kind.programs.sleep())
        runs = await asyncio.gather(*(sandbox.run(kind.programs.echo(str(n))) for n in range(kind.beside)))
        assert [(await run.end()).code for run in runs] == [0] * kind.beside
        assert [run.out for run in runs] == [b"%d\n" % n for n in range(kind.beside)]
        waiting = asyncio.ensure_future(sleeping.end())
        await turns(3)
        assert not waiting.done()
        await sleeping.handle.kill()
        await waiting


# --- the sandbox: its end


async def test_destroy_leaves_nothing_and_every_wait_has_an_answer(kind: Kind) -> None:
    async with room(kind) as sandbox:
        runs = [
            await sandbox.run(kind.programs.sleep()),
            await sandbox.run(kind.programs.daemon(0)),
            await sandbox.run(kind.programs.spew()),
            await sandbox.run(kind.programs.cat(), stdin=True),
        ]
        await runs[1].end()
        waits = [asyncio.ensure_future(run.end()) for run in runs]
        await turns(3)
        await sandbox.handle.destroy()
        assert kind.left(sandbox.backend) == []
        endings = await asyncio.gather(*waits)
        assert endings[0].signal == "SIGKILL"
        assert endings[1].code == 0
        assert [await run.end() for run in runs] == endings


async def test_destroy_is_idempotent_also_at_the_same_time(kind: Kind) -> None:
    async with room(kind) as sandbox:
        await sandbox.run(kind.programs.sleep())
        await asyncio.gather(*(sandbox.handle.destroy() for _ in range(3)))
        await sandbox.handle.destroy()
        assert kind.left(sandbox.backend) == []


async def test_destroy_that_is_cancelled_at_any_turn_can_be_repeated_to_its_end(kind: Kind) -> None:
    async with opened(kind) as backend:
        for number in range(kind.turns):
            handle = await backend.create(f"sbx_{number}", kind.spec)
            sandbox = Room(kind, backend, f"sbx_{number}", handle)
            run = await sandbox.run(kind.programs.sleep())
            ending = asyncio.ensure_future(handle.destroy())
            await turns(number)
            ending.cancel()
            await asyncio.wait([ending])
            await handle.destroy()
            assert kind.left(backend) == [], f"cancelled after {number} turns"
            await run.end()


async def test_destroyed_sandbox_refuses_to_execute(kind: Kind) -> None:
    async with room(kind) as sandbox:
        await sandbox.handle.destroy()
        with pytest.raises(BulkheadError):
            await sandbox.run(kind.programs.exit(0))


async def test_destroy_answers_an_execute_that_is_under_way(kind: Kind) -> None:
    async with opened(kind) as backend:
        for number in range(kind.turns):
            sandbox = Room(kind, backend, f"sbx_{number}", await backend.create(f"sbx_{number}", kind.spec))
            starting = asyncio.ensure_future(sandbox.run(kind.programs.sleep()))
            await turns(number)
            await sandbox.handle.destroy()
            try:
                run = await starting
            except BulkheadError:
                pass
            else:
                assert (await run.end()).reason in {ExitReason.SIGNALED, ExitReason.LOST, ExitReason.START_FAILED}
            assert kind.left(backend) == []


async def test_execution_calls_after_destroy_return_or_say_wrong_state(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True)
        await sandbox.handle.destroy()
        await run.handle.kill()
        assert await run.handle.write(b"x" * (2 * MIB)) is False
        await run.handle.close_stdin()
        with pytest.raises(WrongState):
            await run.handle.signal(15)


async def test_lost_never_resolves_after_destroy(kind: Kind) -> None:
    async with room(kind) as sandbox:
        before = asyncio.ensure_future(sandbox.handle.lost())
        await turns(3)
        await sandbox.handle.destroy()
        after = asyncio.ensure_future(sandbox.handle.lost())
        await sandbox.backend.aclose()
        await turns(20)
        assert not before.done()
        assert not after.done()
        for waiting in (before, after):
            waiting.cancel()
        await asyncio.wait([before, after])


async def test_lost_resolves_with_a_sentence_for_everyone_and_executions_are_lost(kind: Kind) -> None:
    if kind.lose is None:
        pytest.skip(f"{kind.name} has no way to lose a sandbox")
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.sleep())
        ended = await sandbox.run(kind.programs.exit(5))
        await ended.end()
        both = [asyncio.ensure_future(sandbox.handle.lost()) for _ in range(3)]
        await turns(3)
        both.pop().cancel()
        await kind.lose(sandbox.backend, sandbox.id)
        first, second = await asyncio.gather(*both)
        assert first == second != ""
        assert (await run.end()).reason is ExitReason.LOST
        assert (await ended.end()).code == 5
        with pytest.raises(BulkheadError):
            await sandbox.run(kind.programs.exit(0))
        await sandbox.handle.destroy()
        assert kind.left(sandbox.backend) == []


# --- the execution: output


@pytest.mark.parametrize("size", [0, 1, 65536, 3 * MIB + 7])
async def test_all_output_is_in_the_log_when_wait_returns(kind: Kind, size: int) -> None:
    async with room(kind) as sandbox:
        if size > 65536:
            promised(sandbox.backend, Capability.EXACT_OUTPUT)
        run = await sandbox.run(kind.programs.print(size))
        ended = await run.end()
        assert (ended.code, run.logs.stdout.total) == (0, size)
        assert run.logs.stdout.sha256 == hashlib.sha256(kind.programs.printed(size)).hexdigest()
        assert run.logs.stderr.total == 0


async def test_channels_are_apart_and_both_complete(kind: Kind) -> None:
    async with room(kind) as sandbox:
        size = MIB + 3 if Capability.EXACT_OUTPUT in sandbox.backend.info.capabilities else 65539
        run = await sandbox.run(kind.programs.both(size))
        await run.end()
        digest = hashlib.sha256(kind.programs.printed(size)).hexdigest()
        assert {run.logs.stdout.sha256, run.logs.stderr.sha256} == {digest}
        other = await sandbox.run(kind.programs.err("only here"))
        await other.end()
        assert (other.out, other.err) == (b"", b"only here\n")


async def test_backend_appends_and_leaves_closing_to_the_core(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.echo("x"))
        await run.end()
        assert not run.logs.stdout.closed
        assert not run.logs.stderr.closed


async def test_log_that_takes_no_more_does_not_hold_the_program_up(kind: Kind) -> None:
    async with room(kind) as sandbox:
        full = Logs(OutputLog(10, keep_first=True), OutputLog(10, keep_first=True))
        run = await sandbox.run(kind.programs.print(2 * MIB), logs=full)
        assert (await run.end()).code == 0
        assert (full.stdout.total, full.stdout.overflowed) == (10, True)
        closed = Logs(OutputLog(10), OutputLog(10))
        closed.stdout.close()
        assert (await (await sandbox.run(kind.programs.print(2 * MIB), logs=closed)).end()).code == 0


async def test_background_child_that_holds_stdout_does_not_delay_the_exit(kind: Kind) -> None:
    async with room(kind, Capability.PROMPT_EXIT) as sandbox:
        run = await sandbox.run(kind.programs.holder(4))
        assert (await run.end()).code == 4
        assert await sandbox.processes() == 1


# --- the execution: stdin


async def test_stdin_none_is_empty(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.cat())
        assert (await run.end()).code == 0
        assert run.out == b""


async def test_stdin_arrives_whole_in_order_and_ends(kind: Kind) -> None:
    async with room(kind, Capability.STDIN) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True)
        digest = hashlib.sha256()
        for number in range(50):
            piece = bytes([number]) * (number * 3001 + 1)
            digest.update(piece)
            await run.handle.write(piece)
        await run.handle.close_stdin()
        await run.handle.close_stdin()
        assert (await run.end()).code == 0
        assert run.logs.stdout.sha256 == digest.hexdigest()
        await run.handle.close_stdin()


async def test_program_sees_stdin_before_it_is_closed(kind: Kind) -> None:
    async with room(kind, Capability.STDIN) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True)
        assert await run.handle.write(b"hello")
        await run.saw(b"hello")
        await run.handle.close_stdin()
        await run.end()


async def test_writer_is_held_while_the_program_does_not_read_and_let_go_by_its_end(kind: Kind) -> None:
    async with room(kind, Capability.STDIN, Capability.EXACT_OUTPUT) as sandbox:  # back pressure is a part of it
        run = await sandbox.run(kind.programs.sleep(), stdin=True)
        await run.handle.write(bytes(MIB // 2))
        writing = asyncio.ensure_future(run.handle.write(bytes(3 * MIB)))
        await turns(50)
        assert not writing.done()
        await run.handle.kill()
        assert await writing is False


async def test_cancelled_writer_has_written_all_or_nothing_that_was_not_in_order(kind: Kind) -> None:
    """What a cancelled write took in may be any beginning of it, but what follows comes after it."""
    async with room(kind, Capability.STDIN) as sandbox:
        for number in range(5):
            run = await sandbox.run(kind.programs.cat(), stdin=True)
            writing = asyncio.ensure_future(run.handle.write(b"a" * 1000))
            await turns(number)
            writing.cancel()
            await asyncio.wait([writing])
            await run.handle.write(b"b")
            await run.handle.close_stdin()
            await run.end()
            assert run.out.lstrip(b"a") == b"b"


async def test_what_comes_after_the_program_closed_stdin_is_discarded(kind: Kind) -> None:
    async with room(kind, Capability.STDIN) as sandbox:
        run = await sandbox.run(kind.programs.close_stdin(), stdin=True)
        for _ in range(3):
            await run.handle.write(bytes(2 * MIB))
        await run.handle.close_stdin()
        await run.handle.kill()
        ended = await sandbox.run(kind.programs.exit(0), stdin=True)
        await ended.end()
        assert await ended.handle.write(bytes(2 * MIB)) is False


# --- the execution: the terminal


async def test_terminal_has_the_size_that_it_is_given_and_everything_is_stdout(kind: Kind) -> None:
    async with room(kind, Capability.PTY) as sandbox:
        run = await sandbox.run(kind.programs.sizes(), tty=Terminal(31, 99))
        await run.saw(b"ready")
        await run.handle.resize(40, 120)
        await run.saw(kind.programs.size(40, 120))
        await run.handle.kill()
        await run.end()
        assert run.logs.stderr.total == 0
        with pytest.raises(WrongState):
            await run.handle.resize(1, 2)


@pytest.mark.parametrize("typed", [b"", b"line\n", b"half"])
async def test_end_of_stdin_on_a_terminal_ends_a_program_that_reads(kind: Kind, typed: bytes) -> None:
    async with room(kind, Capability.PTY) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True, tty=Terminal(24, 80))
        if typed:
            assert await run.handle.write(typed)
        await run.handle.close_stdin()
        assert (await run.end()).code == 0
        assert typed.rstrip() in run.out


# --- the execution: signals and kills


async def test_signal_reaches_the_program(kind: Kind) -> None:
    async with room(kind, Capability.SIGNALS) as sandbox:
        run = await sandbox.run(kind.programs.trap_usr1())
        await run.saw(b"ready\n")
        await run.handle.signal(10)
        await run.saw(b"SIGUSR1\n")
        await run.handle.kill()


@pytest.mark.parametrize(("number", "name"), [(1, "SIGHUP"), (2, "SIGINT"), (9, "SIGKILL"), (15, "SIGTERM")])
async def test_program_that_dies_of_a_signal_is_signaled_by_name(kind: Kind, number: int, name: str) -> None:
    async with room(kind, Capability.SIGNALS) as sandbox:
        run = await sandbox.run(kind.programs.sleep())
        await run.handle.signal(number)
        ended = await run.end()
        assert (ended.reason, ended.signal, ended.code) == (ExitReason.SIGNALED, name, None)


async def test_signal_after_the_end_is_wrong_state(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.daemon(0))
        await run.end()
        with pytest.raises(WrongState):
            await run.handle.signal(15)


async def test_kill_ends_daemons_too_and_nothing_of_other_executions(kind: Kind) -> None:
    async with room(kind, Capability.KILL_TREE) as sandbox:
        other = await sandbox.run(kind.programs.sleep())
        run = await sandbox.run(kind.programs.daemon(0))
        assert (await run.end()).code == 0
        assert await sandbox.processes() == 2
        await run.handle.kill()
        assert await sandbox.processes() == 1
        await run.handle.kill()
        await other.handle.kill()
        assert await sandbox.processes() == 0


async def test_output_has_ended_after_a_kill(kind: Kind) -> None:
    """While something holds it: tests/kernel/test_left_behind.py."""
    async with room(kind) as sandbox:
        promised(sandbox.backend, Capability.KILL_TREE)
        alone, run = await sandbox.run(kind.programs.echo("x")), await sandbox.run(kind.programs.daemon(0))
        await alone.end()
        await run.end()
        async with asyncio.timeout(60):
            await alone.handle.output_ended()
        await run.handle.kill()
        async with asyncio.timeout(60):
            await run.handle.output_ended()


async def test_output_ends_with_the_sandbox(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.daemon(0))
        await run.end()
        await sandbox.handle.destroy()
        async with asyncio.timeout(60):
            await run.handle.output_ended()


async def test_killed_program_is_signaled_with_sigkill_and_kill_is_idempotent(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.sleep())
        await asyncio.gather(*(run.handle.kill() for _ in range(3)))
        ended = await run.end()
        assert (ended.reason, ended.signal) == (ExitReason.SIGNALED, "SIGKILL")
        await run.handle.kill()
        assert await run.end() == ended


async def test_kill_does_not_wait_for_readers_of_an_endless_program(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.spew(), logs=Logs(OutputLog(MIB), OutputLog(MIB)))
        await run.handle.kill()
        assert (await run.end()).signal == "SIGKILL"


# --- the execution: wait


async def test_wait_serves_many_and_a_cancelled_one_disturbs_nobody(kind: Kind) -> None:
    async with room(kind) as sandbox:
        run = await sandbox.run(kind.programs.cat(), stdin=True)
        waits = [asyncio.ensure_future(run.end()) for _ in range(3)]
        await turns(3)
        waits.pop().cancel()
        await run.handle.close_stdin()
        first, second = await asyncio.gather(*waits)
        assert first == second == await run.end()


async def test_usage_is_measured_where_it_is_promised(kind: Kind) -> None:
    async with room(kind, Capability.USAGE) as sandbox:
        ended = await (await sandbox.run(kind.programs.print(MIB))).end()
        assert ended.duration_seconds is not None
        assert ended.cpu_seconds is not None
        assert ended.max_memory_bytes is not None
        assert ended.duration_seconds >= 0
        assert ended.cpu_seconds >= 0
        assert ended.max_memory_bytes >= 0
