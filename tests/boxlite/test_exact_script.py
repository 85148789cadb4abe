"""The wrapper under three shells, as a local process: bytes, back pressure, and a command that notices nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.backends.boxlite.wrapped import PIECE_BYTES, UNDER_WAY, SpoiledOutput, wrapped_command
from app.core.models import ExecutionLimits
from tests.boxlite.local import SHELLS, Local, local, tools_of
from tests.boxlite.rig import until
from tests.require import require

MB = 1_000_000
# Random bytes to both channels at once, so many to each; their digests as the last line of a file.
BOTH = """
import hashlib, os, sys, threading
def fill(channel, size):
    digest = hashlib.sha256()
    while size:
        data = os.urandom(min(size, 100_003))
        digest.update(data)
        size -= len(data)
        while data:
            data = data[os.write(channel, data):]
    found[channel] = digest.hexdigest()
found = {}
both = [threading.Thread(target=fill, args=(channel, int(sys.argv[2]))) for channel in (1, 2)]
[each.start() for each in both]
[each.join() for each in both]
open(sys.argv[1], "w").write(found[1] + " " + found[2])
"""


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    require("bash", name != "bash" or shutil.which(name) is not None, "there is no bash")
    require("busybox", name != "busybox" or shutil.which(name) is not None, "there is no busybox")
    return name


def digests(run: Local) -> str:
    return f"{run.logs.stdout.sha256} {run.logs.stderr.sha256}"


# --- bytes


async def test_random_bytes_on_both_channels_at_once_arrive_as_they_were_written(shell: str, tmp_path: Path) -> None:
    """100 MB together by one shell, which takes 3 s where nothing else runs; less by the others."""
    size = 50 * MB if shell == "dash" else 3 * MB
    told = tmp_path / "digests"
    async with local(shell, tmp_path / "bin", sys.executable, "-c", BOTH, str(told), str(size)) as run:
        assert await run.end(300) == 0
        assert (run.logs.stdout.total, run.logs.stderr.total) == (size, size)
        assert digests(run) == told.read_text()
        assert (run.logs.stdout.dropped, run.logs.stderr.gaps, run.streams.may_lack_the_end) == (0, [], False)


@pytest.mark.parametrize("data", [b"", b"\0", b"\n", b"\n\n", b"a" * 65536, b"\xff\xfe" * 40_000, b"no newline"])
async def test_output_of_any_size_and_kind(shell: str, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "data"
    file.write_bytes(data)
    async with local(shell, tmp_path / "bin", "sh", "-c", 'cat "$1"; cat "$1" >&2', "sh", str(file)) as run:
        assert await run.end() == 0
        assert (run.out, run.err) == (data, data)


async def test_stdin_of_64_mib_goes_in_while_the_program_prints_at_full_speed(tmp_path: Path) -> None:
    code = "import sys, hashlib; d = hashlib.sha256()\nfor b in iter(lambda: sys.stdin.buffer.read(65536), b''):\n"
    code += "  d.update(b); sys.stderr.buffer.write(b[:30000])\nprint(d.hexdigest())"
    block = os.urandom(1024 * 1024)
    async with local("dash", tmp_path / "bin", sys.executable, "-c", code, stdin=True) as run:
        for _ in range(64):
            assert await run.streams.write(block)
        await run.streams.close_stdin()
        assert await run.end() == 0
        assert run.out.decode().strip() == hashlib.sha256(block * 64).hexdigest()
        assert run.logs.stderr.total == 1024 * 30_000


async def test_what_has_arrived_is_told_while_the_program_reads_nothing(shell: str, tmp_path: Path) -> None:
    """It prints 3 MB and reads only then: neither may wait for the other."""
    text = "head -c 3000000 /dev/zero; wc -c >&2"
    async with local(shell, tmp_path / "bin", "sh", "-c", text, stdin=True) as run:
        assert await run.streams.write(bytes(400_000))
        await run.streams.close_stdin()
        assert await run.end() == 0
        assert (run.logs.stdout.total, run.err.strip()) == (3_000_000, b"400000")


async def test_who_writes_waits_for_a_program_that_does_not_read(tmp_path: Path) -> None:
    async with local("dash", tmp_path / "bin", "sh", "-c", "read -r x; wc -c", stdin=True) as run:
        assert await run.streams.write(b"x" * 500_000)
        writing = asyncio.create_task(run.streams.write(b"\n" + b"x" * 3_000_000))
        assert await writing
        await run.streams.close_stdin()
        assert await run.end() == 0
        assert run.out.strip() == b"3000000"


async def test_a_program_that_closes_its_stdin_lets_the_writer_go(shell: str, tmp_path: Path) -> None:
    async with local(shell, tmp_path / "bin", "sh", "-c", "exec <&-; echo closed; sleep 1000", stdin=True) as run:
        await until(lambda: b"closed\n" in run.out)
        async with asyncio.timeout(60):
            while await run.streams.write(bytes(100_000)):
                pass


async def test_a_program_waits_while_nobody_takes_its_output(shell: str, tmp_path: Path) -> None:
    """What is under way stays below what a server keeps for a reader: 256 chunks of a KiB."""
    async with local(shell, tmp_path / "bin", "seq", "1", "10000000") as run:
        await until(lambda: run.logs.stdout.total > 100_000)
        run.socket.go_on.clear()
        await until(lambda: _stands_still(run))
        taken, said = run.logs.stdout.total, run.socket.received
        most = UNDER_WAY * (PIECE_BYTES // 3 * 4 * 1.02 + 100)
        assert most < 200 * 1024
        # of the frames that wait here the first ones were acknowledged by nobody
        assert said - taken * 4 / 3 * 1.0132 < most + 4096
        run.socket.go_on.set()
        await until(lambda: run.logs.stdout.total > taken + 1_000_000)


def _stands_still(run: Local) -> bool:
    """The program waits in write(2) for a full pipe."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={run.mark}".encode() in (folder / "environ").read_bytes():
                return "pipe_write" in (folder / "wchan").read_text()
        except OSError:
            continue
    return False


# Holds so many pipes, and says what one more has room for.
HOLD = """
import fcntl, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = [os.pipe() for _ in range(int(sys.argv[1]))]
print(fcntl.fcntl(os.pipe()[0], 1032), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


async def test_output_passes_where_the_kernel_gives_a_user_smaller_pipes_from_now_on(open_folder: Path) -> None:
    """Where the first pipe of the wrapper is small, and where a later one is."""
    require("root", os.geteuid() == 0, "to be another user takes root")
    user, sizes = 100_000 + os.getpid(), set()
    for left in range(10):
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD, str(_pipes_of_full_size() - left), user=user, stdin=PIPE, stdout=PIPE
        )
        assert holder.stdin is not None and holder.stdout is not None
        sizes.add(int(await holder.stdout.readline()))
        text = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"
        async with local("dash", open_folder / "bin", "sh", "-c", text, user=user) as run:
            assert await run.end() == 0
            assert (run.logs.stdout.total, run.logs.stderr.total) == (300_000, 300_000)
        holder.stdin.close()
        await holder.wait()
    assert PIECE_BYTES in sizes and min(sizes) < PIECE_BYTES


def _pipes_of_full_size() -> int:
    """That a user without capabilities can have."""
    pages = int(Path("/proc/sys/fs/pipe-user-pages-soft").read_text())
    return pages * os.sysconf("SC_PAGE_SIZE") // PIECE_BYTES


# --- the command notices nothing


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 255])
async def test_the_exit_status_is_the_commands_whatever_it_prints(shell: str, tmp_path: Path, code: int) -> None:
    async with local(shell, tmp_path / "bin", "sh", "-c", f"echo .7; echo '!missing'; exit {code}") as run:
        assert await run.end() == code
        assert (run.out, run.streams.refusal) == (b".7\n!missing\n", "")


@pytest.mark.parametrize("number", [1, 2, 9, 11, 15])
async def test_a_death_by_signal_is_the_commands(shell: str, tmp_path: Path, number: int) -> None:
    async with local(shell, tmp_path / "bin", "sh", "-c", f"echo up; kill -{number} $$") as run:
        assert await run.end() == -number
        assert (run.out, run.err) == (b"up\n", b"")


async def test_a_signal_to_the_whole_group_costs_no_output(shell: str, tmp_path: Path) -> None:
    text = "seq 1 100000; kill -9 0"
    async with local(shell, tmp_path / "bin", "sh", "-c", text) as run:
        assert await run.end() == -9
        assert run.out.endswith(b"\n100000\n")


async def test_environment_arguments_descriptors_and_directory_are_the_commands(shell: str, tmp_path: Path) -> None:
    env = {
        "PATH": "/usr/bin:/bin", "PWD": "/of/the/client", "SHLVL": "7", "_": "x", "IFS": "a", "UID": "5", "A-B.C": "1",
        "ENV": "/no", "BASH_ENV": "/no", "LC_ALL": "C.UTF-8", "EMPTY": "", "MORE": "two\nlines '$(false)' \u00e9\u0081",
    }  # fmt: skip
    code = (
        "import os, sys; print(sorted(os.environb.items())); print([os.fsencode(a) for a in sys.argv[1:]]); "
        "print(sorted(os.listdir('/proc/self/fd'))[:-1]); print(os.getcwd(), os.getppid(), os.getsid(0) == os.getpid())"
    )
    letters = "".join(map(chr, [*range(1, 0x800), 0xFFFD, 0x1F600]))
    arguments = ["", "-n", " a  b ", "$HOME `id` \\ * ~", letters]
    command = [sys.executable, "-c", code, *arguments]
    plain = await asyncio.create_subprocess_exec(
        *command, env=env, cwd="/tmp", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    expected, _ = await plain.communicate()
    async with local(shell, tmp_path / "bin", *command, env=env, cwd="/tmp") as run:
        assert await run.end() == 0
        assert run.out == expected


async def test_both_channels_in_one_pipe_come_in_the_order_of_writing(shell: str, tmp_path: Path) -> None:
    text = "n=0; while [ $n -lt 2000 ]; do echo $n; echo $((n + 1)) >&2; n=$((n + 2)); done; ls -l /proc/self/fd >&2"
    async with local(shell, tmp_path / "bin", "sh", "-c", text, merged=True) as run:
        assert await run.end() == 0
        lines = run.out.splitlines()
        assert lines[:2000] == [b"%d" % n for n in range(2000)]
        out, err = ([line for line in lines if b" %d -> pipe:" % number in line] for number in (1, 2))
        assert out[0].split()[-1] == err[0].split()[-1]
        assert (run.err, run.streams.may_lack_the_end) == (b"", False)


async def test_a_command_that_waits_for_all_its_children_has_none_of_ours(shell: str, tmp_path: Path) -> None:
    code = "import os\ntry:\n  os.wait()\nexcept ChildProcessError:\n  print('none')"
    async with local(shell, tmp_path / "bin", sys.executable, "-c", code) as run:
        assert await run.end() == 0
        assert run.out == b"none\n"


@pytest.mark.parametrize("name", ["a=b", "-x"])
async def test_a_program_with_a_name_that_env_would_misread(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.write_text('#!/bin/sh\necho "it is $1"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    async with local("dash", tmp_path / "bin", name, "me", env=env) as run:
        assert await run.end() == 0
        assert run.out == b"it is me\n"


@pytest.mark.parametrize(
    ("program", "why", "code"),
    [("no-such", "missing", 127), ("/etc/passwd", "denied", 126), ("/", "denied", 126), ("/no/such", "missing", 127)],
)
async def test_a_command_that_cannot_begin_is_told(
    shell: str, tmp_path: Path, program: str, why: str, code: int
) -> None:
    async with local(shell, tmp_path / "bin", program) as run:
        assert (await run.end(), run.streams.refusal, run.out, run.left()) == (code, why, b"", [])


# --- endings


@pytest.mark.parametrize("text", ["exit 3", "kill -9 $$", "sleep 1000 >/dev/null 2>&1 & exit 0", "exec >&- 2>&-"])
async def test_nothing_that_carries_is_left(shell: str, tmp_path: Path, text: str) -> None:
    """With stdin under way that nobody reads."""
    async with local(shell, tmp_path / "bin", "sh", "-c", text, stdin=True) as run:
        await run.streams.write(bytes(500_000))
        await run.end()
        await until(lambda: not run.left())


async def test_output_of_a_child_that_is_left_behind_still_comes(shell: str, tmp_path: Path) -> None:
    text = "exec 3<&0; (read -r x <&3; echo child) & exit 5"
    async with local(shell, tmp_path / "bin", "sh", "-c", text, stdin=True) as run:
        await run.streams.write(b"go\n")
        assert await run.end() == 5
        assert run.out == b"child\n"


async def test_a_program_that_writes_between_the_pieces_spoils_its_own_output(shell: str, tmp_path: Path) -> None:
    each = "tr '\\0' '\\n' <$f/environ 2>/dev/null | grep -qx \"$M\" && echo junk >$f/fd/1"
    text = f"read -r M; for f in /proc/[0-9]*; do {each}; done; sleep 1000"
    async with local(shell, tmp_path / "bin", "sh", "-c", text, stdin=True) as run:
        await run.streams.write(f"BULKHEAD_WRAPPER={run.mark}\n".encode())
        with pytest.raises(SpoiledOutput):
            await run.end()


# --- limits

LIMITS = ("Max stack size", "Max file size", "Max open files")
SHOW = 'grep -E "^Max (stack|file|open)" /proc/self/limits'


def in_force(said: bytes) -> dict[str, list[str]]:
    """Soft and hard limit, by name."""
    lines = said.decode().splitlines()
    return {name: next(line for line in lines if line.startswith(name))[len(name) :].split()[:2] for name in LIMITS}


async def test_limits_of_the_execution_are_in_force_soft_and_hard(shell: str, tmp_path: Path) -> None:
    limits = ExecutionLimits(stack_mib=2, open_files=8, file_mib=3)
    async with local(shell, tmp_path, "sh", "-c", SHOW, limits=limits) as run:
        assert await run.end() == 0
        mib = 1024 * 1024
        wanted = (str(2 * mib), str(3 * mib), "8")
        assert in_force(run.out) == {name: [limit, limit] for name, limit in zip(LIMITS, wanted, strict=True)}


async def test_a_limit_alone_changes_no_other(shell: str, tmp_path: Path) -> None:
    async with local(shell, tmp_path, "sh", "-c", SHOW) as run:
        await run.end()
        before = in_force(run.out)
    async with local(shell, tmp_path, "sh", "-c", SHOW, limits=ExecutionLimits(open_files=20)) as run:
        await run.end()
        assert in_force(run.out) == before | {"Max open files": ["20", "20"]}


async def test_a_lower_limit_that_is_there_stays(shell: str, tmp_path: Path) -> None:
    """A root like that of a box cannot raise it, and need not."""
    outer = wrapped_shell(shell, tmp_path)
    limits = ExecutionLimits(stack_mib=4, open_files=64, file_mib=4)
    said = wrapped_command(("sh", "-c", SHOW), {"PATH": "/usr/bin:/bin"}, stdin=False, limits=limits)
    arguments = said["args"]
    assert isinstance(arguments, list)
    lower = 'ulimit -s 1024; ulimit -f 2048; ulimit -n 32; exec "$@"'
    root = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    run = await asyncio.create_subprocess_exec(
        *root, "sh", "-c", lower, "sh", outer, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert run.stdin is not None
    run.stdin.write(b"o 1\no 2\n")
    said_out, _ = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0
    text = base64.b64decode(b"".join(line for line in said_out.splitlines() if line and line[:1] not in b">:;.<"))
    mib = str(1024 * 1024)
    assert in_force(text) == {"Max stack size": [mib] * 2, "Max file size": [mib] * 2, "Max open files": ["32"] * 2}


async def test_a_file_beyond_its_limit_ends_the_program_and_not_its_output(shell: str, tmp_path: Path) -> None:
    """The pipes are no files: what carries the bytes has no limit, and the program prints more than a file may have."""
    big, file = "head -c 3000000 /dev/zero", tmp_path / "large"
    text = f"{big}; trap '' XFSZ; {big} >{file} || echo refused >&2; exec python3 -c 'import signal as s, os; s.signal("
    text += f's.SIGXFSZ, s.SIG_DFL); os.write(os.open("{file}", 1 | 1024), b"x")' + "'"
    async with local(shell, tmp_path, "sh", "-c", text, limits=ExecutionLimits(file_mib=1)) as run:
        assert await run.end() == -signal.SIGXFSZ
        assert run.out == bytes(3_000_000)
        assert b"refused" in run.err
        assert file.stat().st_size == 1024 * 1024


async def test_a_shell_that_cannot_set_limits_begins_nothing(shell: str, tmp_path: Path) -> None:
    """One whose `ulimit` does something else."""
    said = wrapped_command(("touch", str(tmp_path / "begun")), {}, stdin=False, limits=ExecutionLimits(file_mib=1))
    arguments = said["args"]
    assert isinstance(arguments, list)
    text = str(arguments[2]).replace("ulimit", "true")
    run = await asyncio.create_subprocess_exec(
        wrapped_shell(shell, tmp_path), "-c", arguments[1], text, *map(str, arguments[3:]), stdout=PIPE, stderr=PIPE
    )
    out, _ = await asyncio.wait_for(run.communicate(), 60)
    assert (run.returncode, out) == (125, b"!cannot set limits\n")
    assert not (tmp_path / "begun").exists()


def wrapped_shell(shell: str, folder: Path) -> str:
    tools_of(shell, folder / "tools")
    return f"{folder}/tools/sh"
