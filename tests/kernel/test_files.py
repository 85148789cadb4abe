"""Files of a process sandbox against whoever runs in it: what is planted there reaches neither gateway nor host."""

from __future__ import annotations

import asyncio
import http.client
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.backends.process import agent as agent_module
from app.backends.process.backend import ProcessBackend
from app.core.backend import Logs, SandboxHandle
from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BackendTimeout,
    BulkheadError,
    CapacityExceeded,
    DiskFull,
    NotFound,
    WrongState,
    WrongType,
)
from app.core.files import ArchiveEntry, EntryKind, Files
from app.core.limits import Limits
from app.core.models import Command, SandboxSpec, Stdin
from app.core.output import OutputLog
from app.core.policy import Filesystem, Policy
from tests.contract.process_kind import ProcessRuntime
from tests.kernel import host
from tests.service import PATIENCE, Service
from tests.told import told

MIB = 1024 * 1024
SPEC = SandboxSpec("process", Limits(memory_mib=64, processes=32, disk_mib=32), Policy())
RUNTIME = ProcessRuntime()


@dataclass
class Room:
    backend: ProcessBackend
    handle: SandboxHandle
    count: int = 0

    @property
    def files(self) -> Files:
        return self.handle.files

    async def start(self, *argv: str) -> tuple[asyncio.Task[bytes], Logs]:
        """A command of the sandbox; its task ends with what it printed."""
        self.count += 1
        logs = Logs(OutputLog(MIB), OutputLog(MIB))
        handle = await self.handle.execute(f"exe_{self.count}", Command(argv, stdin=Stdin.NONE), logs)

        async def end() -> bytes:
            await handle.wait()
            return logs.stdout.read(0) + logs.stderr.read(0)

        return asyncio.create_task(end()), logs

    async def sh(self, script: str) -> bytes:
        return await (await self.start("/bin/sh", "-c", script))[0]

    async def read(self, path: bytes) -> bytes:
        async with self.files.open(path) as opened:
            return b"".join([piece async for piece in opened.read(0, opened.stat.size)])

    async def write(self, path: bytes, data: bytes) -> bool:
        return await self.files.write(path, pieces(data))

    async def debris(self) -> list[bytes]:
        """What an operation of ours has left in the sandbox."""
        return [line for line in (await self.sh("find / -name '.bulkhead-*' 2>/dev/null")).splitlines() if line]

    async def until_debris(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(await self.debris()) < count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


def confined(uid: int) -> list[str]:
    """The statuses of those of its processes that have a filter."""
    statuses = []
    for pid in host.living_of(uid):
        with suppress(FileNotFoundError, ProcessLookupError):
            statuses.append(Path(f"/proc/{pid}/status").read_text())
    return [status for status in statuses if "Seccomp:\t2" in status]


async def until(condition: Callable[[], bool]) -> None:
    """For what the kernel tells nobody."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


async def broken(data: bytes) -> AsyncIterator[bytes]:
    yield data
    raise ConnectionResetError("the client is gone")


@asynccontextmanager
async def room(spec: SandboxSpec = SPEC) -> AsyncIterator[Room]:
    """At the end nothing of it is left: no process, no group, no descriptor of ours."""
    RUNTIME.check()
    backend = await RUNTIME.open()
    assert isinstance(backend, ProcessBackend)
    await backend.ready()
    before = host.own_descriptors()
    handle = await backend.create("sbx_1", spec)
    try:
        yield Room(backend, handle)
        await handle.destroy()
        await until(lambda: len(host.own_descriptors()) <= len(before))  # a link to the launcher may have been lost
        assert backend._budget.left == 16
    finally:
        await backend.aclose()
    await RUNTIME.open()  # where a test has killed the launcher, the next one clears up after it
    assert RUNTIME.left(backend) == []


# --- what is planted


async def test_a_link_is_followed_inside_and_never_on_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    async with room() as made:
        await made.sh(f"ln -s {secret} out; ln -s /tmp/inside in; echo fine >/tmp/inside")
        assert await made.read(b"in") == b"fine\n"
        for path in (b"out", bytes(secret)):
            with pytest.raises(NotFound):
                await made.read(path)
        assert await made.write(b"out", b"lands inside, where the link leads")
        assert await made.sh(f"cat {secret}") == b"lands inside, where the link leads"
    assert secret.read_bytes() == b"of the host"


async def test_what_a_command_cannot_read_or_write_is_denied() -> None:
    async with room() as made:
        await made.sh("echo x >closed; chmod 0 closed; mkdir shut; chmod 0500 shut")
        for path in (b"closed", b"/proc/1/mem", b"/proc/1/environ"):
            with pytest.raises(AccessDenied):
                await made.read(path)
        for path in (b"shut/new", b"/etc/passwd", b"/usr/bin/new"):
            with pytest.raises(AccessDenied):
                await made.write(path, b"x")
        with pytest.raises((AccessDenied, NotFound)):
            await made.read(b"/etc/shadow")
        with pytest.raises(AccessDenied):
            await made.files.delete(b"/tmp", recursive=True)


async def test_what_is_no_regular_file_is_told_and_not_waited_for() -> None:
    """Who opens a FIFO or a device as if it were a file may wait for ever: that would be a BackendTimeout here."""
    async with room() as made:
        await made.sh("mkfifo fifo; mkdir directory; ln -s loop loop; python3 -c 'import socket; "
                      "socket.socket(socket.AF_UNIX).bind(\"socket\")' 2>/dev/null")  # fmt: skip
        for path, found in ((b"fifo", "fifo"), (b"directory", "directory"), (b"/dev/null", "character_device")):
            operations: list[Awaitable[object]] = [made.read(path), made.write(path, b"x")]
            for operation in operations:
                with pytest.raises(WrongType) as wrong:
                    await operation
                assert wrong.value.found == found
        for path in (b"loop", b"socket"):
            with pytest.raises(BulkheadError) as refused:
                await made.read(path)
            assert not isinstance(refused.value, BackendTimeout)


async def test_writing_or_deleting_one_name_of_a_file_leaves_its_other_names() -> None:
    async with room() as made:
        await made.sh("mkdir d; echo old >d/a; chmod 640 d/a; ln d/a d/b; ln d/a d/c; ln d/a outside")
        assert await made.write(b"d/a", b"new") is False
        assert [await made.read(b"d/" + name) for name in (b"a", b"b", b"c")] == [b"new", b"old\n", b"old\n"]
        assert await made.sh("stat -c '%h %a' d/a d/b") == b"1 640\n3 640\n"
        await made.files.delete(b"d/b", recursive=False)
        assert await made.sh("ls d; cat d/c outside; stat -c %h d/c") == b"a\nc\nold\nold\n2\n"
        with pytest.raises(NotFound):
            await made.read(b"d/b")


async def test_names_of_one_file_are_packed_once_and_unpacked_as_such() -> None:
    async with room() as made:
        await made.sh("mkdir d; echo old >d/a; ln d/a d/b; mkdir d/e; ln d/a d/e/c; ln d/a outside")
        async with made.files.pack(b"d") as items:
            packed = [item async for item in items]
        entries = [item for item in packed if isinstance(item, ArchiveEntry)]
        (file,) = [entry for entry in entries if entry.kind is EntryKind.FILE]
        links = [entry for entry in entries if entry.kind is EntryKind.HARD_LINK]
        assert {entry.name for entry in (file, *links)} == {b"a", b"b", b"e/c"}
        assert {entry.target for entry in links} == {file.name}
        assert b"".join(item for item in packed if isinstance(item, bytes)) == b"old\n"

        async def again() -> AsyncIterator[ArchiveEntry | bytes]:
            for item in packed:
                yield item

        await made.files.unpack(b"again", again())
        assert await made.sh("cd again; echo new >a; cat b e/c; stat -c %h a; cat ../d/a") == b"new\nnew\n3\nold\n"


async def test_a_path_that_changes_all_the_time_hangs_nothing_and_gives_only_what_was_there() -> None:
    """A file, a FIFO, a link to a directory and nothing take turns, as fast as a shell can."""
    async with room() as made:
        await made.sh("mkdir real; echo inside >real/f; mkdir other; ln -s /etc/hostname other/f")
        script = (
            "while :; do rm -rf d p; ln -s real d; mkfifo p; rm d p; ln -s other d; echo data >p; rm d p; "
            "mkdir d; ln -s /dev/zero p; done"
        )
        task, _ = await made.start("/bin/sh", "-c", script)
        hostname = (await made.sh("cat /etc/hostname")) or None
        seen: set[bytes] = set()
        refusals: Counter[str] = Counter()
        deadline, turns = time.monotonic() + PATIENCE, 0
        while turns < 60 or not (seen and refusals):
            turns += 1
            assert time.monotonic() < deadline, (seen, refusals)
            for path in (b"d/f", b"p"):
                try:
                    seen.add(await made.read(path))
                except (NotFound, WrongType, AccessDenied, BackendFailure) as error:
                    assert not isinstance(error, BackendTimeout), "it hangs"
                    refusals[type(error).__name__] += 1
                for change in (made.write(path, b"ours\n"), made.files.delete(path, recursive=True)):
                    try:
                        await change
                    except BulkheadError as error:
                        assert not isinstance(error, BackendTimeout), "it hangs"
        assert seen <= {b"inside\n", b"data\n", b"ours\n", b"", hostname}
        task.cancel()


async def test_unpacking_through_a_directory_that_is_swapped_stays_inside(tmp_path: Path) -> None:
    """Whoever writes below the same path from the host, as root, is led to the host's folder: the race is there."""
    target = tmp_path / "target"
    target.mkdir()

    async def tree() -> AsyncIterator[ArchiveEntry | bytes]:
        for number in range(20):
            yield ArchiveEntry(EntryKind.FILE, b"d/%d" % number, size=3)
            yield b"new"

    async with room() as made:
        script = (
            "while :; do rm -rf t; mkdir -p t/d; sleep 0.01; "
            f"rm -rf t/d; ln -s {target} t/d; rm -rf t; ln -s {target} t; done"
        )
        await made.start("/bin/sh", "-c", script)
        naive = Path(f"/proc/{host.living_of(made.handle.receipt['host_uid'])[0]}/root/workspace/t/d/naive")

        def led_out() -> bool:
            with suppress(OSError):
                naive.write_bytes(b"new")
            return (target / "naive").exists()

        await until(led_out)
        (target / "naive").unlink()
        outcomes: Counter[str] = Counter()
        deadline = time.monotonic() + PATIENCE
        while outcomes.total() < 20 or len(outcomes) < 2:
            assert time.monotonic() < deadline, outcomes
            try:
                await made.files.unpack(b"t", tree())
                outcomes["unpacked"] += 1
            except BulkheadError as error:
                outcomes[type(error).__name__] += 1
    assert outcomes["unpacked"], outcomes
    assert list(target.iterdir()) == []


async def test_a_sparse_file_costs_nothing_and_is_read_in_parts() -> None:
    async with room() as made:
        await made.sh("truncate -s 20G huge; printf end >>huge")
        async with made.files.open(b"huge") as opened:
            assert opened.stat.size == 20 * 1024**3 + 3
            assert b"".join([piece async for piece in opened.read(20 * 1024**3 - 2, 5)]) == b"\0\0end"


async def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_never_short() -> None:
    async with room() as made:
        await made.write(b"f", bytes(8 * MIB))
        async with made.files.open(b"f") as opened:
            pieces_ = opened.read(0, opened.stat.size)
            await anext(pieces_)
            await made.sh("truncate -s 1 f")
            with pytest.raises(BackendFailure, match="shorter"):
                async for _ in pieces_:
                    pass


# --- whoever stands beside


async def test_nobody_in_the_sandbox_gets_at_an_agent() -> None:
    async with room() as made:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"secret of another client" * 4096
            await gate.wait()

        upload = asyncio.create_task(made.files.write(b"upload", slow()))
        uid = made.handle.receipt["host_uid"]
        await until(lambda: len(confined(uid)) == 2)  # the worker, and the agent
        await made.until_debris(1)
        printed = await made.sh(
            "ls -l /proc/[0-9]*/fd; cat /proc/[0-9]*/mem; ls /proc/[0-9]*/task; head -c 9 .bulkhead*"
        )
        assert printed.count(b"Permission denied") >= 2
        assert len(confined(uid)) == 2
        for status in confined(uid):
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
            assert "CapBnd:\t0000000000000000" in status
        gate.set()
        assert await upload is True


async def test_an_agent_that_a_neighbour_kills_is_an_error_and_the_old_file_stays() -> None:
    async with room() as made:
        await made.write(b"f", b"old")

        async def killed() -> AsyncIterator[bytes]:
            yield b"new" * 100_000
            await made.sh("kill -9 -1")
            yield b"more"

        with pytest.raises(BackendFailure, match="signal 9"):
            await made.files.write(b"f", killed())
        assert await made.read(b"f") == b"old"


async def test_agents_that_a_neighbour_stops_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kill -STOP -1` again and again: operations end, and so does the sandbox."""
    async with room() as made:
        await made.write(b"f", b"old")

        async def stopped() -> AsyncIterator[bytes]:
            yield b"new"
            await made.sh("kill -STOP -1")
            soon.setattr(agent_module.FileAgentClient.hear, "__kwdefaults__", {"seconds": 0.5})
            soon.setattr(agent_module, "_UNDOING_SECONDS", 0.5)

        with monkeypatch.context() as soon, pytest.raises(BackendTimeout):
            await made.files.write(b"f", stopped())
        assert await made.read(b"f") == b"old"


async def test_a_sandbox_without_room_for_a_process_says_so() -> None:
    async with room() as made:
        for _ in range(SPEC.limits.processes + 1):
            await made.start("/bin/sleep", "100")
        with pytest.raises(CapacityExceeded) as refused:
            await made.files.stat(b".")
        assert told(refused.value) == (
            *(429, "capacity_exceeded", "1"),
            "the sandbox has no room for the process of an operation on files: Resource temporarily unavailable; end "
            "something that runs in it, or create a sandbox with more limits.processes or limits.memory_mib",
        )


async def test_the_end_of_the_sandbox_ends_what_goes_on() -> None:
    async with room() as made:

        async def until_destroyed() -> AsyncIterator[bytes]:
            yield b"x"
            await made.handle.destroy()
            for _ in range(100):
                yield bytes(MIB)

        with pytest.raises(WrongState):
            await made.files.write(b"f", until_destroyed())
        with pytest.raises(WrongState):
            await made.files.stat(b"f")


# --- what fails halfway


async def test_a_failed_upload_leaves_the_old_file_and_no_trace() -> None:
    async with room() as made:
        await made.write(b"f", b"old")
        with pytest.raises(ConnectionResetError):
            await made.files.write(b"f", broken(b"new" * 100_000))
        with pytest.raises(ConnectionResetError):
            await made.files.write(b"new/parents/f", broken(b"new"))
        with pytest.raises(DiskFull) as full:
            await made.write(b"f", bytes(40 * MIB))
        assert full.value.limit == 32 * MIB
        assert await made.read(b"f") == b"old"
        assert await made.debris() == []
        assert (await made.sh("ls")).split() == [b"f"]


async def test_a_tree_that_fails_halfway_leaves_nothing() -> None:
    async def tree(*, then: BaseException | None, size: int = 10) -> AsyncIterator[ArchiveEntry | bytes]:
        yield ArchiveEntry(EntryKind.DIRECTORY, b"a", 0o500)
        yield ArchiveEntry(EntryKind.FILE, b"a/f", size=size)
        yield bytes(size)
        if then is not None:
            raise then

    async with room() as made:
        with pytest.raises(ConnectionResetError):
            await made.files.unpack(b"t", tree(then=ConnectionResetError()))
        with pytest.raises(DiskFull):
            await made.files.unpack(b"t", tree(then=None, size=40 * MIB))
        await made.sh("mkdir -p u/a/f")
        with pytest.raises(WrongType):
            await made.files.unpack(b"u", tree(then=None))
        assert await made.debris() == []
        assert await made.sh("find . | sort") == b".\n./u\n./u/a\n./u/a/f\n"
        await made.files.unpack(b"t", tree(then=None))
        with pytest.raises(AccessDenied, match="t/a"):  # read-only by now
            await made.files.unpack(b"t", tree(then=None))
        assert await made.debris() == []
        assert await made.sh("stat -c '%a %n' t/a t/a/f") == b"500 t/a\n644 t/a/f\n"


async def test_a_cancelled_client_leaves_nothing_running() -> None:
    async with room() as made:

        async def forever() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.Event().wait()

        uploads = [asyncio.create_task(made.files.write(b"f%d" % number, forever())) for number in range(20)]
        await made.until_debris(16)
        assert len(await made.debris()) == 16  # the others wait for their turn
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)
        assert await made.debris() == []
        assert len(host.living_of(made.handle.receipt["host_uid"])) == 1


async def test_a_lost_launcher_ends_operations() -> None:
    async with room() as made:

        async def losing() -> AsyncIterator[bytes]:
            yield b"x"
            RUNTIME.break_create(made.backend)
            yield bytes(MIB)

        with pytest.raises((WrongState, BackendFailure)):
            await made.files.write(b"f", losing())


# --- bounds


async def test_a_hundred_megabytes_take_flat_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with room(SandboxSpec("process", Limits(memory_mib=128, processes=32, disk_mib=120), Policy())) as made:
        piece = os.urandom(256 * 1024)

        most = 0

        async def much() -> AsyncIterator[bytes]:
            nonlocal most
            for _ in range(400):
                yield piece[:-1] + b"x"  # each of its own: who kept them would be seen
                most = max(most, resident())

        await made.write(b"warm", b"x")
        before = resident()
        await made.files.write(b"f", much())
        written, most = most, 0
        async with made.files.open(b"f") as opened:
            async for _ in opened.read(0, opened.stat.size):
                most = max(most, resident())
        assert written > before / 2  # it was looked at
        assert written - before < 8 * MIB
        assert most - before < 8 * MIB


def test_two_hundred_megabytes_through_the_service_take_flat_memory_of_its_gateway(service: Service) -> None:
    size, piece = 200 * MIB, os.urandom(MIB)
    gateway = service.children()["gateway"]
    sandbox = service.create(limits={"disk_mib": 256})
    most: dict[str, float] = {}

    def transfer(method: str, pieces: Iterator[bytes], length: int) -> int:
        """The bytes that came back."""
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        most[method], got = 0, 0
        try:
            headers = {"content-length": str(length)} if method == "PUT" else {}
            body = pieces if method == "PUT" else None
            connection.request(method, f"/sandboxes/{sandbox}/files?path=f", body, headers)
            answer = connection.getresponse()
            assert answer.status in {200, 201, 204}, answer.read()
            while more := answer.read(MIB):
                got += len(more)
                most[method] = max(most[method], host.resident_mib(gateway))
        finally:
            connection.close()
        return got

    def body(length: int) -> Iterator[bytes]:
        for _ in range(length // MIB):
            yield piece
            most["PUT"] = max(most["PUT"], host.resident_mib(gateway))

    try:
        for length in (4 * MIB, size):  # the first time shows what is loaded once
            before = host.resident_mib(gateway)
            transfer("PUT", body(length), length)
            assert transfer("GET", iter(()), 0) == length
        assert before < min(most.values()) + 8  # each was looked at
        assert max(most.values()) - before < 16, (before, most)
    finally:
        service.call("DELETE", f"/sandboxes/{sandbox}")


async def test_a_narrower_policy_holds_for_files_too() -> None:
    policy = Policy(filesystem=Filesystem(read_only=("/usr", "/lib", "/lib64", "/bin", "/etc"), read_write=("/tmp",)))
    async with room(SandboxSpec("process", SPEC.limits, policy)) as made:
        assert await made.write(b"/tmp/f", b"x")
        with pytest.raises(AccessDenied):
            await made.write(b"f", b"x")


async def test_a_socket_of_the_agent_closed_early_is_no_whole_file() -> None:
    """An end of data without a COMMIT: hung up on in the moment after the last byte."""
    async with room() as made:

        def check(found: object) -> None:
            if looked:
                raise ConnectionResetError
            looked.append(found)

        looked: list[object] = []
        with pytest.raises(ConnectionResetError):
            await made.files.write(b"f", pieces(b"whole"), check=check)
        with pytest.raises(NotFound):
            await made.read(b"f")
