"""How much of the kernel's memory a sandbox can take without being charged for it, by each kind of call it may make.

The short form takes a quarter of a second with four processes for each probe; with BULKHEAD_TEST_WHOLE=1 it is 2.5 s
with a hundred, and wants a host on which nobody else works. `-s` prints the numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.pinning import coverage
from tests.kernel.pinning.memory import Reading, Watch, charged_to, groups_of
from tests.kernel.talk import Running, start
from tests.require import require
from tests.service import Service

MIB = 1 << 20
WHOLE = bool(os.environ.get("BULKHEAD_TEST_WHOLE"))
PROCESSES, MILLISECONDS = (100, 2500) if WHOLE else (4, 250)
MOST_MIB = 32 if WHOLE else 16
LIMITS = {"memory_mib": 2048, "disk_mib": 256, "processes": 128, "cpus": 2}
ON_A_TERMINAL = ("opens_of_a_terminal",)
ROUNDS = 8  # others work on this host too: what a probe takes it takes in each of them
LOOPBACK = ("tcp_streams", "tcp_single_bytes", "tcp_backlogs", "tcp_goodbyes", "netlink_answers")

# What a sandbox can take beyond MOST_MIB: at most so many MiB. docs/threat-model.md has the reasons.
ONLY_LOOPBACK = {"netlink_answers": 1024, "tcp_backlogs": 1024}  # as much as there is time
BESIDE_DESCRIPTORS = dict.fromkeys(  # for 409,200 of them, at most 400 bytes each
    [
        "credentials",
        "epoll_instances",
        "epoll_watches",
        "eventfds",
        "full_pipes",
        "open_files",
        "opens_of_a_terminal",
        "owned_descriptors",
        "pipes_of_others_pages",
        "tcp_sockets",
        "timerfds",
        "udp_sockets",
        "unix_sockets",
    ],
    160,
)
# A sixth of what a sandbox may be charged: the trees that find mappings; names, which are cache.
SHARES = dict.fromkeys(["many_mappings", "moved_mappings", "names_in_proc"], 341)
# 100,000 file locks are 19 MiB, and some come before the launcher looks. Backlogs are measured beside 1,400 MiB that
# are charged.
SHORT = {"record_locks": 32, "unix_backlogs": 32}
KNOWN = ONLY_LOOPBACK | (BESIDE_DESCRIPTORS | SHARES | {"record_locks": 80} if WHOLE else SHORT)


# What is refused, and how: so the short form also sees a call that is allowed again and takes little in its short time.
REFUSED = {
    "access_lists": "EOPNOTSUPP",
    "attributes": "EOPNOTSUPP",
    "directory_notices": "EINVAL",
    "flow_labels": "ENOPROTOOPT",
    "keys_of_segments": "ENOPROTOOPT",
    "message_queues": "EACCES EMFILE",  # Landlock refuses to open what was made; or there are as many as there may be
    "multicast_groups": "ENOPROTOOPT",
    "multicast_sources": "ENOPROTOOPT",
    "names_of_mappings": "EINVAL",
    "options_of_udp": "0",  # none of them, until time is up
    "pages_that_are_sent": "ENOPROTOOPT",
    "terminals": "EACCES",
}
HARDWARE_DECIDES = ("protection_keys",)
NOT_ON_EVERY_HOST = {"attributes", "message_queues", "names_of_mappings"}  # a file system, a limit, a kernel refuses


@pytest.fixture(scope="session")
def pin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("gcc", shutil.which("gcc") is not None, "the probes are written in C")
    program = tmp_path_factory.mktemp("pin") / "pin"
    sources = sorted(str(path) for path in Path(__file__).parent.glob("pin*.c"))
    flags = ["-D_GNU_SOURCE", "-Os", "-s", "-std=gnu17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, *sources], check=True)
    return program


@contextlib.contextmanager
def room_of(service: Service, profile: str, pin: Path) -> Iterator[tuple[str, Path]]:
    """A sandbox with the probes in it, and its memory group."""
    sandbox = service.create(limits=LIMITS, policy={"profile": profile})
    try:
        uid = host.host_uid(service, sandbox)
        found = [Path(path) for path in host.groups_of(service, uid)]
        rooms = [path for path in found if path.name == f"s-{uid}" and (path / "memory.stat").exists()]
        require(
            "cgroup1",
            (rooms[0] / "memory.kmem.tcp.usage_in_bytes").exists(),
            "what is charged is read from groups of version 1",
        )
        url = f"{service.url}/sandboxes/{sandbox}/files?path=/workspace/pin&mode=0755"
        with urllib.request.urlopen(urllib.request.Request(url, pin.read_bytes(), method="PUT")) as answer:
            assert answer.status in (201, 204)
        assert service.run(sandbox, "./pin", "eventfds", "1", "1")["stdout"].startswith("eventfds ")
        yield sandbox, rooms[0]
    finally:
        service.call("DELETE", f"/sandboxes/{sandbox}")


def groups_of_service(service: Service, room: Path) -> set[Path]:
    """Those of the launcher, the gateway and the workers."""
    return groups_of(room, service.children().values()) | {room.parent / host.WORKERS[1:]}


def measure(service: Service, profile: str, pin: Path, name: str, milliseconds: int = MILLISECONDS) -> tuple[int, str]:
    """(uncharged bytes, what it says) of one round."""
    with room_of(service, profile, pin) as (sandbox, room):
        own = groups_of_service(service, room)
        before = Reading.take(room, own)
        with Watch(room, own) as watch:
            tty = name in ON_A_TERMINAL
            probe = start(service, sandbox, "./pin", name, str(PROCESSES), str(milliseconds), stdin="open", tty=tty)
            try:
                said = probe.saw(b"\n").decode().strip()
            except AssertionError:  # it took more than the sandbox may have, or more file locks
                said = ""
        if not said:
            return before_the_end(name, probe, before, watch.readings)
        after = Reading.take(room, own)
        probe.delete()
        workers = charged_to(room.parent / host.WORKERS[1:])
    _, count, error = said.split()
    if name in REFUSED:
        assert count == "0", said
        assert error in REFUSED[name].split()
    elif name not in HARDWARE_DECIDES:
        assert int(count) > 0, said
    assert workers < MOST_MIB * MIB, "it is charged to the workers"
    uncharged, grown = after.uncharged_since(before), after.grown_since(before)
    told = f"{said}: {grown / MIB:.0f} MiB, uncharged {uncharged / MIB:.0f}, files {after.files - before.files}"
    print(told)
    assert after.files - before.files < LIMITS["processes"] * 4200
    return uncharged, told


def before_the_end(name: str, probe: Running, before: Reading, readings: list[Reading]) -> tuple[int, str]:
    """The most of a probe that a limit has ended: when it is gone, nothing of it can be seen."""
    reason = probe.exit()["reason"]
    assert reason in ("oom", "resource_limit")
    uncharged = max(reading.uncharged_since(before) for reading in readings)
    grown = max(reading.grown_since(before) for reading in readings)
    told = f"{name}, {reason}: {grown / MIB:.0f} MiB, uncharged {uncharged / MIB:.0f}"
    print(told)
    return uncharged, told


@pytest.mark.parametrize("name", sorted(coverage.probes()))
def test_kernel_memory_of_a_sandbox_is_charged(service: Service, pin: Path, name: str) -> None:
    profile = "loopback" if name in LOOPBACK else "default"
    most = KNOWN.get(name, MOST_MIB) * MIB
    rounds: list[str] = []
    while len(rounds) < ROUNDS:
        uncharged, told = measure(service, profile, pin, name)
        if uncharged < most:
            return
        rounds.append(told)
    raise AssertionError(rounds)


@pytest.mark.parametrize(
    "name",
    ["access_lists", "keys_of_segments", "multicast_sources", "page_tables", "unix_datagrams"],
)
def test_probe_takes_memory_of_the_host_outside_of_a_sandbox(pin: Path, name: str) -> None:
    """Control: the kernel does it, and what it takes is seen."""
    require("root", os.geteuid() == 0, "as root nothing is refused")
    assert any(grown_outside(pin, name, 500 * (1 + turn)) > MOST_MIB * MIB for turn in range(ROUNDS))


def grown_outside(pin: Path, name: str, milliseconds: int) -> int:
    before = Reading.take(None)
    with outside(pin, name, milliseconds):
        return Reading.take(None).grown_since(before)


@contextlib.contextmanager
def outside(pin: Path, name: str, milliseconds: int) -> Iterator[bytes]:
    """What the probe says; it holds what it took until the block ends."""
    with subprocess.Popen(
        [pin, name, "4", str(milliseconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as probe:
        assert probe.stdout is not None
        yield probe.stdout.readline()


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - NOT_ON_EVERY_HOST))
def test_probe_that_is_refused_inside_works_outside(pin: Path, name: str) -> None:
    with outside(pin, name, 50) as said:
        assert int(said.split()[1]) > 0


def test_what_a_probe_took_before_it_was_ended_is_seen(service: Service, pin: Path) -> None:
    rounds: list[str] = []
    while len(rounds) < ROUNDS:
        taken, told = measure(service, "default", pin, "record_locks", milliseconds=30_000)
        assert "resource_limit" in told
        if 8 * MIB < taken < 80 * MIB:
            return
        rounds.append(told)
    raise AssertionError(rounds)


@pytest.mark.parametrize("name", ["full_pipes", "unix_datagrams", "tables_of_huge_pages"])
def test_what_is_charged_is_not_counted(service: Service, pin: Path, name: str) -> None:
    """The other control: it takes much, and the sandbox pays."""
    rounds: list[tuple[int, int]] = []
    while len(rounds) < ROUNDS:
        with room_of(service, "default", pin) as (sandbox, room):
            before = Reading.take(room)
            probe = start(service, sandbox, "./pin", name, "4", str(500 * (1 + len(rounds))), stdin="open")
            probe.saw(b"\n")
            after = Reading.take(room)
            probe.delete()
        rounds.append((after.grown_since(before), after.charged - before.charged))
        if min(rounds[-1]) > 64 * MIB:
            return
    raise AssertionError(rounds)


def test_what_the_service_pays_for_is_counted(service: Service, pin: Path) -> None:
    """As if a sandbox made it pay: the probe runs in the group of the tests, in which launcher and gateway are."""
    rounds: list[tuple[int, int]] = []
    while len(rounds) < ROUNDS:
        with room_of(service, "default", pin) as (_, room):
            own = groups_of_service(service, room)
            before, others = Reading.take(room, own), Reading.take(room)
            with outside(pin, "full_pipes", 500 * (1 + len(rounds))):
                after, after_others = Reading.take(room, own), Reading.take(room)
        rounds.append((after.uncharged_since(before), after_others.uncharged_since(others)))
        if rounds[-1][0] > 64 * MIB and rounds[-1][1] < MOST_MIB * MIB:  # the control: anybody else pays
            return
    raise AssertionError(rounds)


WRITABLE = """
import os, stat
for folder, _, names in os.walk("/proc"):
    for name in names:
        path = os.path.join(folder, name)
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                print(path)
        except OSError:
            pass
print("done")
"""


def test_nothing_in_proc_can_be_written(service: Service, sandbox: str) -> None:
    """So no probe has to write there."""
    assert service.run(sandbox, "python3", "-c", WRITABLE)["stdout"] == "done\n"
    outside = subprocess.run(["sh", "-c", "echo x >/proc/self/comm && echo done"], capture_output=True, check=True)
    assert outside.stdout == b"done\n", "control: of an own process it can be outside"
