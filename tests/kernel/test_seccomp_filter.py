"""The filter on the running kernel: what it refuses, with the exact error, and what goes on working.

Every refusal has a control run, the same call without the filter. Where that gives the same error, because of the
kernel or of the user who runs the tests, nothing would be shown, and the test is skipped with that reason.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pickle
import pty
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections.abc import Callable
from errno import EACCES, EAFNOSUPPORT, EBADF, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, errorcode
from pathlib import Path

import pytest

from app.launcher.kernel import bpf, seccomp
from app.launcher.kernel.syscall_table import HIGHEST_KNOWN, NUMBERS
from tests.require import require
from tests.service import PATIENCE
from tests.unit.launcher.test_seccomp import DENIED

MACHINE = os.uname().machine
if MACHINE not in NUMBERS:
    pytest.skip(f"no filter for {MACHINE}", allow_module_level=True)

NR = NUMBERS[MACHINE]
PROGRAM = seccomp.compile_filter("default", MACHINE)
GARBAGE = 0xDEADBEEF << 32  # the half of a register that the kernel does not look at
Ending = tuple[str, object]


_raw = ctypes.CDLL(None, use_errno=True).syscall
_raw.restype = ctypes.c_long


def syscall(number: int, *args: object) -> int:
    """As it is, past libc's wrappers: integers fill whole registers. Raises OSError."""
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _raw(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def no_new_privileges() -> None:
    syscall(NR["prctl"], 38, 1, 0, 0, 0)


def confine(program: bytes = PROGRAM) -> None:
    no_new_privileges()
    seccomp.load(program)


def in_a_child(action: Callable[[], object], *, confined: bool) -> Ending:
    """("returned", value), ("errno", number) or ("signal", number). The child has no terminal to lose."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if confined:
                confine()
            try:
                ending: Ending = ("returned", action())
            except OSError as error:
                ending = ("errno", error.errno)
            os.write(writing, pickle.dumps(ending))
            os._exit(0)
        finally:
            os._exit(70)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        answer = report.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return ("signal", os.WTERMSIG(status))
    assert os.WEXITSTATUS(status) == 0, "the child broke down"
    found: Ending = pickle.loads(answer)
    return found


def assert_refused(action: Callable[[], object], errno: int) -> None:
    expected = ("errno", errno)
    assert in_a_child(action, confined=True) == expected
    if in_a_child(action, confined=False) == expected:
        pytest.skip(f"without the filter it is {errorcode[errno]} here, too, so this host shows no difference")


# --- Refused by number -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DENIED & set(NR)))
def test_call_is_refused(name: str) -> None:
    """With arguments that the kernel finds wrong if it gets to see them, so that the control run does no harm."""
    assert_refused(lambda: syscall(NR[name], -1, -1, -1, -1, -1, -1), EPERM)


@pytest.mark.parametrize("number", [HIGHEST_KNOWN + 1, HIGHEST_KNOWN + 2, 600, 5000])
def test_numbers_beyond_the_table_do_not_exist(number: int) -> None:
    assert in_a_child(lambda: syscall(number, 0), confined=True) == ("errno", ENOSYS)


@pytest.mark.skipif(MACHINE != "x86_64", reason="only x86_64 has x32")
def test_x32_is_death() -> None:
    def getpid() -> int:
        return syscall(0x40000000 | NR["getpid"])

    assert in_a_child(getpid, confined=True) == ("signal", signal.SIGSYS)
    assert in_a_child(getpid, confined=False)[0] in ("errno", "returned")


@pytest.mark.skipif(MACHINE != "x86_64", reason="int 0x80 is a way of x86")
def test_32_bit_entry_is_death(tmp_path: Path) -> None:
    """Number 20 is writev to the filter's table and getpid to the 32-bit entry."""
    require("gcc", shutil.which("gcc") is not None, "no compiler")
    source = tmp_path / "int80.c"
    source.write_text(
        'int main(void) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory"); return !(r > 0); }'
    )
    program = tmp_path / "int80"
    subprocess.run(["gcc", "-o", program, source], check=True)
    control = subprocess.run([program], check=False)
    require("ia32", control.returncode == 0, "this kernel has no 32-bit entry")
    assert subprocess.run([program], preexec_fn=confine, check=False).returncode == -signal.SIGSYS


@pytest.mark.parametrize("name", ["setxattr", "lsetxattr", "fsetxattr", "setxattrat"])
def test_attributes_do_not_exist(name: str) -> None:
    def set_one() -> int:
        with tempfile.NamedTemporaryFile() as file:
            path, attribute, here = file.name.encode(), b"user.attribute", -100
            if name == "setxattrat":
                value = struct.pack("=QII", ctypes.addressof(ctypes.c_char(b"x")), 1, 0)  # struct xattr_args
                return syscall(NR[name], here, path, 0, attribute, value, len(value))
            return syscall(NR[name], file.fileno() if name == "fsetxattr" else path, attribute, b"x", 1, 0)

    assert_refused(set_one, EOPNOTSUPP)


@pytest.mark.parametrize("name", ["fsync", "fdatasync", "sync_file_range"])
def test_flush_is_answered_and_not_done(name: str) -> None:
    """Descriptor -1 shows that the kernel never saw the call."""
    assert in_a_child(lambda: syscall(NR[name], -1, 0, 0, 7), confined=True) == ("returned", 0)
    assert in_a_child(lambda: syscall(NR[name], -1, 0, 0, 7), confined=False) == ("errno", EBADF)


@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_msync_flushes_nothing_and_still_tells_what_is_mapped(high_half: int) -> None:
    page = mmap.PAGESIZE  # the first page of the address space, which is never mapped
    flush, ask = 4 | high_half, 1 | high_half
    assert in_a_child(lambda: syscall(NR["msync"], page, page, flush), confined=True) == ("returned", 0)
    assert in_a_child(lambda: syscall(NR["msync"], page, page, flush), confined=False) == ("errno", ENOMEM)
    assert in_a_child(lambda: syscall(NR["msync"], page, page, ask), confined=True) == ("errno", ENOMEM)


# --- Refused by argument ---------------------------------------------------------------------------------------------

CLONE_FLAGS = {
    "NEWTIME": 0x80,
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


def clone(flags: int) -> None:
    pid = syscall(NR["clone"], flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    wait_for_any_child = 0x40000000
    os.waitpid(pid, wait_for_any_child)


@pytest.mark.parametrize("flag", CLONE_FLAGS.values(), ids=CLONE_FLAGS)
@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_clone_into_a_namespace_is_refused(flag: int, high_half: int) -> None:
    assert_refused(lambda: clone(flag | high_half), EPERM)


def test_clone_without_namespaces_works() -> None:
    assert in_a_child(lambda: clone(0), confined=True) == ("returned", None)


def test_clone3_does_not_exist_so_that_libc_falls_back() -> None:
    assert_refused(lambda: syscall(NR["clone3"], 0, 0), ENOSYS)


def open_socket(family: int, kind: int, protocol: int) -> None:
    os.close(syscall(NR["socket"], family, kind, protocol))


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 17), (10, 1, 6), (10, 2, 0), (2, 1 | 0x80800, 0)],
)
def test_ordinary_sockets_open(family: int, kind: int, protocol: int) -> None:
    control = in_a_child(lambda: open_socket(family, kind, protocol), confined=False)
    assert in_a_child(lambda: open_socket(family, kind, protocol), confined=True) == control


FOREIGN_SOCKETS = {
    "VSOCK": (40, 1, 0),
    "PACKET": (17, 3, 0),
    "XDP": (44, 3, 0),
    "ALG": (38, 5, 0),
    "KEY": (15, 3, 2),
    "CAN": (29, 3, 1),
    "RDS": (21, 5, 0),
    "TIPC": (30, 5, 0),
    "BLUETOOTH": (31, 1, 3),
    "SMC": (43, 1, 0),
    "NETLINK_ROUTE": (16, 3, 0),
    "NETLINK_SOCK_DIAG": (16, 3, 4),
    "NETLINK_AUDIT": (16, 3, 9),
    "NETLINK_NETFILTER": (16, 3, 12),
    "NETLINK_KOBJECT_UEVENT": (16, 3, 15),
    "NETLINK_GENERIC": (16, 3, 16),
}
REFUSED_SOCKETS = {
    "RAW": (2, 3, 6),
    "RAW6": (10, 3, 58),
    "RAW with CLOEXEC": (2, 3 | 0x80000, 1),
    "PACKET as a type": (2, 10, 0x0300),
    "MPTCP": (2, 1, 262),
    "MPTCP6": (10, 1, 262),
    "SCTP": (2, 1, 132),
    "UDPLITE": (2, 2, 136),
    "PING": (2, 2, 1),
    "PING6": (10, 2, 58),
    "TCP in the type of UDP": (2, 2, 6),
    "UDP in the type of TCP": (10, 1, 17),
}


@pytest.mark.parametrize("socket_of", FOREIGN_SOCKETS.values(), ids=FOREIGN_SOCKETS)
def test_sockets_of_other_families_do_not_exist(socket_of: tuple[int, int, int]) -> None:
    assert_refused(lambda: open_socket(*socket_of), EAFNOSUPPORT)


@pytest.mark.parametrize("socket_of", REFUSED_SOCKETS.values(), ids=REFUSED_SOCKETS)
def test_internet_sockets_beyond_tcp_and_udp_are_refused(socket_of: tuple[int, int, int]) -> None:
    assert_refused(lambda: open_socket(*socket_of), EPERM)


@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_fast_open_is_refused_on_each_way_to_send(high_half: int) -> None:
    """To a port that nobody listens on, which a connecting send would find out."""

    def send(name: str) -> None:
        with socket.socket() as client, socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")
            target = ctypes.create_string_buffer(address, 16)
            fast_open = 0x20000000 | high_half
            if name == "sendto":
                syscall(NR[name], client.fileno(), b"x", 1, fast_open, target, 16)
            # An empty message with a destination: struct msghdr, followed by the count that makes it a mmsghdr.
            header = ctypes.create_string_buffer(
                struct.pack("@PIPNPNi", ctypes.addressof(target), 16, 0, 0, 0, 0, 0), 64
            )
            if name == "sendmsg":
                syscall(NR[name], client.fileno(), header, fast_open)
            if name == "sendmmsg":
                syscall(NR[name], client.fileno(), header, 1, fast_open)

    for name in ("sendto", "sendmsg", "sendmmsg"):
        assert in_a_child(lambda name=name: send(name), confined=True) == ("errno", EPERM), name  # type: ignore[misc]
        assert in_a_child(lambda name=name: send(name), confined=False) != ("errno", EPERM), name  # type: ignore[misc]


@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_nothing_is_typed_into_a_terminal(high_half: int) -> None:
    def type_a_letter() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        syscall(NR["ioctl"], terminal, 0x5412 | high_half, b"x")

    controller, terminal = pty.openpty()  # out here: no program inside can make one
    try:
        assert_refused(type_a_letter, EPERM)
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("command", [0x541C, 0x541D, 0x5423, 0x401C5820], ids=["LINUX", "CONS", "SETD", "FSSETXATTR"])
@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_ioctl_is_refused(command: int, high_half: int) -> None:
    def on_a_file() -> None:
        with tempfile.TemporaryFile() as file:
            syscall(NR["ioctl"], file.fileno(), command | high_half, -1)

    assert_refused(on_a_file, EPERM)


@pytest.mark.parametrize("high_half", [0, GARBAGE], ids=["plain", "garbled"])
def test_pipes_cannot_be_grown(high_half: int) -> None:
    def grow() -> int:
        reading, _ = os.pipe()
        return syscall(NR["fcntl"], reading, 1031 | high_half, 1 << 18)

    assert_refused(grow, EPERM)


def test_leases_cannot_be_taken() -> None:
    def take() -> int:
        with tempfile.TemporaryFile() as file:
            write_lease = 1
            return syscall(NR["fcntl"], file.fileno(), 1024, write_lease)

    assert_refused(take, EPERM)


BY_ARGUMENTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "prctl SECCOMP strict": ("prctl", (22, 1, 0, 0, 0)),
    "prctl SECCOMP filter": ("prctl", (22, 2, -1, 0, 0)),
    "prctl SCHED_CORE": ("prctl", (62, 1, 0, 0, 0)),
    "seccomp strict": ("seccomp", (0, 0, 0)),
    "seccomp filter": ("seccomp", (1, 0, -1)),
    "seccomp notify": ("seccomp", (1, 8, -1)),
    "personality READ_IMPLIES_EXEC": ("personality", (0x400000,)),
    "personality ADDR_NO_RANDOMIZE": ("personality", (0x40000,)),
    "personality UNAME26": ("personality", (0x20000,)),
    "prlimit64 of PID 1": ("prlimit64", (1, 999, 0, 0)),
    "sched_setaffinity of PID 1": ("sched_setaffinity", (1, 8, 0)),
    "sched_setscheduler of PID 1": ("sched_setscheduler", (1, -1, 0)),
    "sched_setparam of PID 1": ("sched_setparam", (1, 0)),
    "sched_setattr of PID 1": ("sched_setattr", (1, 0, 0)),
    "ioprio_set of PID 1": ("ioprio_set", (1, 1, 0xFFFF)),
    "ioprio_set of a user": ("ioprio_set", (3, 0, 0xFFFF)),
    "setpriority of a user": ("setpriority", (2, 0x7FFFFFF0, 0)),
    "setsockopt ULP": ("setsockopt", (-1, 6, 31, 0, 0)),
}


@pytest.mark.parametrize(("name", "args"), BY_ARGUMENTS.values(), ids=BY_ARGUMENTS)
@pytest.mark.parametrize("garbled", [False, True], ids=["plain", "garbled"])
def test_call_with_these_arguments_is_refused(name: str, args: tuple[int, ...], garbled: bool) -> None:
    first = args[0] | GARBAGE if garbled else args[0]
    assert_refused(lambda: syscall(NR[name], first, *args[1:]), EPERM)


def test_priority_of_pid_1_cannot_be_set() -> None:
    unchanged = os.getpriority(os.PRIO_PROCESS, 1)
    assert_refused(lambda: os.setpriority(os.PRIO_PROCESS, 1, unchanged), EPERM)


def test_own_priority_affinity_limits_and_personality_can_be_set() -> None:
    def set_them() -> None:
        import resource

        os.setpriority(os.PRIO_PROCESS, 0, 5)
        os.setpriority(os.PRIO_PROCESS, os.getpid(), 6)
        os.sched_setaffinity(os.getpid(), os.sched_getaffinity(0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        syscall(NR["personality"], 0xFFFFFFFF)
        syscall(NR["prctl"], 39, 0, 0, 0, 0)

    assert in_a_child(set_them, confined=True) == ("returned", None)


# --- The filter itself -----------------------------------------------------------------------------------------------


def test_a_second_filter_is_refused() -> None:
    assert in_a_child(confine, confined=True) == ("errno", EPERM)
    assert in_a_child(confine, confined=False) == ("returned", None)


def test_loading_needs_no_new_privs() -> None:
    def as_nobody() -> None:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        seccomp.load(PROGRAM)

    assert in_a_child(as_nobody, confined=False) == ("errno", EACCES)


def status_of(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_a_program_from_memory_is_as_confined_as_any() -> None:
    reading, writing = os.pipe()

    def execute() -> None:
        memory = os.memfd_create("cat", 0)
        os.write(memory, Path("/bin/cat").read_bytes())
        os.dup2(writing, 1)
        arguments = (ctypes.c_char_p * 3)(b"cat", b"/proc/self/status", None)
        empty_path_is_the_descriptor = 0x1000
        syscall(NR["execveat"], memory, b"", arguments, None, empty_path_is_the_descriptor)

    pid = os.fork()
    if pid == 0:
        try:
            confine()
            execute()
        finally:
            os._exit(70)
    os.close(writing)
    with os.fdopen(reading) as output:
        status = status_of(output.read())
    assert os.waitpid(pid, 0)[1] == 0
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"


# --- What goes on working --------------------------------------------------------------------------------------------


def run_confined(*argv: str | Path, cwd: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "TMPDIR": str(cwd), "LANG": "C.UTF-8"}
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        preexec_fn=confine,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_the_worker_way_of_starting_commands_works(tmp_path: Path) -> None:
    """posix_spawn with a new session, descriptors in a packet, wait4: all that the worker does once it is confined."""

    def work() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        socket.send_fds(ours, [b"spawn"], [writing])
        _, (output,), _, _ = socket.recv_fds(theirs, 16, 1)
        actions = [(os.POSIX_SPAWN_DUP2, output, 1)]
        pid = os.posix_spawn(
            "/bin/cat", ["cat", "/proc/self/status"], {}, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE]
        )
        assert os.wait4(pid, 0)[1] == 0
        assert status_of(os.read(reading, 65536).decode())["Seccomp"] == "2"
        return 0

    assert in_a_child(work, confined=True) == ("returned", 0)


def test_python_works(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, concurrent.futures, ctypes, mmap, multiprocessing, os, shutil, socket, sqlite3
        import subprocess, tempfile

        def square(x):
            return x * x

        async def asynchronous():
            process = await asyncio.create_subprocess_exec("/bin/echo", "async", stdout=asyncio.subprocess.PIPE)
            output, _ = await process.communicate()
            server = await asyncio.start_server(lambda r, w: (w.write(b"hello"), w.close()), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            greeting = await reader.read()
            writer.close()
            server.close()
            return output, greeting, await asyncio.to_thread(square, 3)

        if __name__ == "__main__":
            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                assert sum(threads.map(square, range(100))) == 328350
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                assert pool.map(square, range(10)) == [x * x for x in range(10)]
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(square, range(10)) == [x * x for x in range(10)]
            assert subprocess.check_output(["sh", "-c", "echo $((6 * 7))"]) == b"42\\n"
            assert subprocess.check_output(["echo", "x"], preexec_fn=lambda: None, close_fds=True) == b"x\\n"
            assert asyncio.run(asynchronous()) == (b"async\\n", b"hello", 9)
            database = sqlite3.connect("data.db")
            database.execute("pragma journal_mode=wal")
            database.execute("create table t (x)")
            database.executemany("insert into t values (?)", [(i,) for i in range(1000)])
            database.commit()
            assert database.execute("select sum(x) from t").fetchone() == (499500,)
            with tempfile.TemporaryDirectory() as folder:
                shutil.make_archive(folder + "/archive", "gztar", ".")
                shutil.unpack_archive(folder + "/archive.tar.gz", folder + "/again")
            memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            assert socket.getaddrinfo("127.0.0.1", 80)
            os.close(os.pidfd_open(os.getpid()))
            libc = ctypes.CDLL(None)
            libc.pthread_self.restype = ctypes.c_ulong
            cpus = ctypes.create_string_buffer(128)
            assert libc.pthread_getaffinity_np(ctypes.c_ulong(libc.pthread_self()), 128, cpus) == 0
            assert libc.pthread_setaffinity_np(ctypes.c_ulong(libc.pthread_self()), 128, cpus) == 0
            print("all")
        """)
    )
    assert run_confined(sys.executable, script, cwd=tmp_path) == "all\n"


def test_bash_works(tmp_path: Path) -> None:
    require("bash", shutil.which("bash") is not None, "not installed")
    script = """
        set -euo pipefail
        seq 1 1000 | sort -rn | head -3 | tr '\\n' ' ' || true
        diff <(printf 'a\\nb\\n') <(printf 'a\\nb\\n')
        sleep 0.01 & wait $!
        trap 'echo trapped' USR1; kill -USR1 $$
        mkfifo fifo; (echo through > fifo &); cat fifo
        tar cf - fifo | tar tf -
        nice -n 3 timeout 100 env true
        cp -a /etc/hostname copy; mv copy moved; ln moved hard; ln -s moved soft; touch -d @0 moved; chmod 600 moved
        rm -r moved hard soft fifo
    """
    assert run_confined("bash", "-c", script, cwd=tmp_path) == "1000 999 998 trapped\nthrough\nfifo\n"


def test_node_works(tmp_path: Path) -> None:
    require("node", shutil.which("node") is not None, "not installed")
    script = """
        const { Worker } = require("worker_threads"), { execFileSync } = require("child_process"), fs = require("fs");
        fs.writeFileSync("a", execFileSync("echo", ["child"]));
        const server = require("http").createServer((_, r) => r.end("http")).listen(0, "127.0.0.1", async () => {
          const answer = await (await fetch(`http://127.0.0.1:${server.address().port}/`)).text();
          server.close();
          fs.watch(".").close();
          new Worker("require('worker_threads').parentPort.postMessage('thread')", { eval: true }).on("message", (m) =>
            console.log(fs.readFileSync("a", "utf8").trim(), answer, m));
        });
    """
    assert run_confined("node", "-e", script, cwd=tmp_path) == "child http thread\n"


def test_java_works(tmp_path: Path) -> None:
    require("java", shutil.which("javac") is not None, "not installed")
    (tmp_path / "Main.java").write_text("""
        import java.util.stream.IntStream;
        class Main {
          public static void main(String[] a) throws Exception {
            var child = new ProcessBuilder("echo", "child").start();
            System.out.print(new String(child.getInputStream().readAllBytes()));
            System.out.println(IntStream.range(0, 1000).parallel().sum());
          }
        }
    """)
    assert run_confined("java", "Main.java", cwd=tmp_path) == "child\n499500\n"


def test_gcc_make_and_threads_work(tmp_path: Path) -> None:
    require("gcc", shutil.which("gcc") is not None and shutil.which("make") is not None, "no compiler or no make")
    (tmp_path / "main.c").write_text("""
        #include <pthread.h>
        #include <stdio.h>
        static void *work(void *n) { return (char *)n + 1; }
        int main(void) {
          void *r; pthread_t t;
          return pthread_create(&t, 0, work, (void *)41) || pthread_join(t, &r) || printf("%ld\\n", (long)r) < 0;
        }
    """)
    (tmp_path / "Makefile").write_text("all: main\n\t./main\nmain: main.c\n\tgcc -O2 -pthread -o main main.c\n")
    assert run_confined("make", "-s", "-j2", cwd=tmp_path) == "42\n"


def test_git_works(tmp_path: Path) -> None:
    require("git", shutil.which("git") is not None, "not installed")
    script = """
        git init -q . && echo text > file && git add . && git -c user.name=a -c user.email=a@b commit -qm first
        git clone -q . copy && git -C copy log --format=%s && git gc -q && git fsck --no-progress
    """
    assert run_confined("sh", "-ec", script, cwd=tmp_path) == "first\n"


# --- What it costs ---------------------------------------------------------------------------------------------------


def in_a_row() -> bytes:
    """The same rules without the tree: one test after the other."""
    rest: bpf.Node = (bpf.GREATER_EQUAL, HIGHEST_KNOWN + 1, bpf.refuse(ENOSYS), bpf.refuse(EPERM))
    for number, decision in sorted(seccomp.rules("default", MACHINE).items(), reverse=True):
        rest = (bpf.EQUAL, number, decision, rest)
    native = bpf.looking_at(bpf.NUMBER, (bpf.GREATER_EQUAL, seccomp.X32_NUMBERS, bpf.KILL_PROCESS, rest))
    right = (bpf.EQUAL, seccomp.ARCHITECTURES[MACHINE], native, bpf.KILL_PROCESS)
    return bpf.assemble(bpf.looking_at(bpf.ARCHITECTURE, right))


def loading_time(program: bytes) -> float:
    """Microseconds of processor time, in a fresh child that has loaded nothing, but has made such a call before."""

    def load() -> int:
        no_new_privileges()
        try:
            syscall(NR["seccomp"], 1, 0, ctypes.byref(seccomp._Program(0, b"")))
        except OSError:
            start = time.thread_time_ns()
            seccomp.load(program)
            return time.thread_time_ns() - start
        return 0

    kind, nanoseconds = in_a_child(load, confined=False)
    assert kind == "returned"
    assert isinstance(nanoseconds, int)
    return nanoseconds / 1000


def test_load_time_is_well_below_that_of_a_list() -> None:
    tree, row = PROGRAM, in_a_row()
    times = [(loading_time(tree), loading_time(row)) for _ in range(200)]
    tree_time, row_time = (statistics.median(of_one) for of_one in zip(*times, strict=True))
    for name, program, microseconds in [("tree", tree, tree_time), ("row", row, row_time)]:
        print(f"{name}: {len(program) // 8} instructions, {microseconds:.0f} us")
    print(f"ratio: {tree_time / row_time:.2f}")
    assert tree_time < 0.7 * row_time
