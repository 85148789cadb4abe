"""One sandbox takes all it can: it meets its own limits, and nobody else notices. Checklist A16, B22, B25, B27, B28."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.talk import start
from tests.service import Service

SMALL = {"memory_mib": 64, "disk_mib": 32, "processes": 64, "cpus": 1}
# Each takes memory of another kind, for ever.
BOMBS = {
    "anonymous": "x = []\nwhile True: x.append(b'x' * (1 << 20))",
    "memfd": "import os\nwhile True: os.write(os.memfd_create('x'), b'x' * (1 << 20))",
    "shared": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 20)); x[-1][:] = bytes(1 << 20)",
    "children": (
        "import os, signal, sys\n"
        "while True:\n"
        "  try:\n"
        "    pid = os.fork()\n"
        "  except BlockingIOError:\n"
        "    sys.exit(os.wait()[1])\n"  # they would take 512 MiB, so one of them ends
        "  if pid == 0:\n"
        "    x = b'x' * (8 << 20)\n"
        "    while True: signal.pause()"
    ),
    "sysv": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        "while True: ctypes.memset(libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0), 1, 1 << 20)"
    ),
    "pipes": (
        "import fcntl, os\nx = []\n"
        "def fill():\n"
        "  a, b = os.pipe2(os.O_NONBLOCK)\n"
        "  os.write(b, bytes(65536)); x.append((a, b))\n"
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "while True: fill(); x.append(b'x' * 65536)"
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_bomb_is_told_as_oom_of_this_sandbox_alone(service: Service, kind: str) -> None:
    sandbox, neighbour = service.create(limits=SMALL), service.create(limits=SMALL)
    witness = start(service, neighbour, "sh", "-c", "echo up; read line; echo $line", stdin="open")
    witness.saw(b"up")
    done = service.run(sandbox, "python3", "-c", BOMBS[kind])
    assert done["exit"]["reason"] == "oom", done
    assert "memory limit" in done["exit"]["detail"]
    assert witness.show()["state"] == "running"
    again = service.run(neighbour, "echo", "unharmed")
    assert (again["stdout"], again["exit"]["reason"]) == ("unharmed\n", "exited")
    for each in (sandbox, neighbour):
        assert service.call("DELETE", f"/sandboxes/{each}")[0] == 204


def test_page_cache_is_given_back_instead_of_oom(service: Service) -> None:
    """Reading more than the limit is no crime: what was read is dropped again."""
    sandbox = service.create(limits=SMALL)
    script = "find /usr/lib /usr/bin -type f -size +100k | head -400 | xargs cat 2>/dev/null | wc -c"
    done = service.run(sandbox, "sh", "-c", script)
    assert done["exit"]["reason"] == "exited"
    service.call("DELETE", f"/sandboxes/{sandbox}")


SOCKETS = """
import resource, socket
hard = min(4000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = []
for _ in range(600):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind(("127.0.0.1", 0))
    s.setblocking(False)
    kept.append(s)
    for _ in range(20):
        try:
            s.sendto(bytes(60000), s.getsockname())
        except BlockingIOError:
            break
print(open("/proc/net/sockstat").read())
"""


def test_socket_buffers_are_limited(service: Service) -> None:
    """`mem` counts pages of the whole host: 700 MiB of them, without a limit on what a sandbox queues on loopback."""
    sandbox = service.create(limits=SMALL)
    done = service.run(sandbox, "python3", "-c", SOCKETS)
    if done["exit"]["reason"] != "oom":  # version 2 counts them as memory
        found = re.search(r"UDP: inuse \d+ mem (\d+)", done["stdout"])
        assert found, done
        assert int(found[1]) * 4096 < 64 << 20
    service.call("DELETE", f"/sandboxes/{sandbox}")


FILL = """
import errno, os, sys
def fill():
    descriptor = os.open(sys.argv[1] + "/large", os.O_CREAT | os.O_WRONLY)
    while True:
        os.write(descriptor, bytes(1 << 20))
def litter():
    while True:
        os.close(os.open(sys.argv[1] + f"/{os.urandom(8).hex()}", os.O_CREAT | os.O_WRONLY))
try:
    (fill if sys.argv[2] == "bytes" else litter)()
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("what", ["bytes", "inodes"])
@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/dev/shm"])
def test_full_disk_is_enospc_and_the_neighbour_writes_on(service: Service, place: str, what: str) -> None:
    sandbox, neighbour = service.create(limits=SMALL), service.create(limits=SMALL)
    done = service.run(sandbox, "python3", "-c", FILL, place, what)
    assert done["stdout"] == f"{errno.ENOSPC}\n", done
    written = service.run(neighbour, "sh", "-c", f"head -c 1000000 /dev/zero > {place}/x && wc -c < {place}/x")
    assert written["stdout"] == "1000000\n"
    assert service.run(sandbox, "echo", "still here")["stdout"] == "still here\n"
    for each in (sandbox, neighbour):
        service.call("DELETE", f"/sandboxes/{each}")


FORKS = """
import os, signal, errno
count = 0
try:
    while True:
        if os.fork() == 0:
            while True: signal.pause()
        count += 1
except OSError as error:
    print(errno.errorcode[error.errno], count + 1, flush=True)
"""
THREADS = """
import threading
stop, count = threading.Event(), 0
try:
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
        count += 1
except RuntimeError:
    print("EAGAIN", count + 1, flush=True)
"""
RAMPANT = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"


@pytest.mark.parametrize("script", [FORKS, THREADS], ids=["processes", "threads"])
def test_bomb_stops_exactly_at_the_limit(service: Service, script: str) -> None:
    sandbox = service.create(limits=SMALL)
    assert service.run(sandbox, "python3", "-c", script)["stdout"] == f"EAGAIN {SMALL['processes']}\n"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_fork_bomb_leaves_the_service_and_the_neighbour_alive(service: Service) -> None:
    sandbox, neighbour = service.create(limits=SMALL), service.create()
    start(service, sandbox, "python3", "-c", RAMPANT)
    for _ in range(50):
        assert service.call("GET", "/healthz")[0] == 200
    assert service.run(neighbour, "echo", "here")["stdout"] == "here\n"
    assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    service.call("DELETE", f"/sandboxes/{neighbour}")


def test_limit_of_one_process_lets_exactly_one_run(service: Service) -> None:
    sandbox = service.create(limits={"processes": 1})
    assert service.run(sandbox, "echo", "one")["stdout"] == "one\n"
    assert service.run(sandbox, "python3", "-c", FORKS)["stdout"] == "EAGAIN 1\n"
    service.call("DELETE", f"/sandboxes/{sandbox}")


def test_processor_hog_stays_at_its_quota(service: Service) -> None:
    sandbox = service.create(limits={"cpus": 0.25})
    hog = "import os, time\nos.fork(); os.nice(0); end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    ended = service.run(sandbox, "python3", "-c", hog)["exit"]
    share = ended["cpu_seconds"] / ended["duration_seconds"]
    assert 0 < share < 0.6, ended  # two of them would take 2
    service.call("DELETE", f"/sandboxes/{sandbox}")


ORPHANS = """
import os
for _ in range(5000):
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
"""
ZOMBIES = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l"


def test_ten_thousand_short_lives_leave_no_zombie(service: Service, sandbox: str) -> None:
    done = service.run(sandbox, "python3", "-c", ORPHANS)
    assert done["exit"]["code"] == 0, done
    zombies, processes = 1, 0

    def are_reaped() -> bool:
        nonlocal zombies, processes
        zombies, processes = map(int, service.run(sandbox, "sh", "-c", ZOMBIES)["stdout"].split())
        return zombies == 0

    host.until(are_reaped, "no zombie stays")
    assert processes <= 5
    assert Path("/proc/loadavg").exists()
