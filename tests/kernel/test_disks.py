"""Sandboxes with a disk: what they hold, what they never take from the host, and bad days of the operator's disk.

The storage folder is in a file system that the test makes and that nobody else uses, so what is free there is exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.launcher.config import Config
from app.launcher.daemon import disks, loop_storage
from app.launcher.daemon.disk_image import image_bytes
from app.launcher.daemon.disk_maker import DiskResult
from app.launcher.daemon.loop_storage import LoopStorage, StorageError, open_loop_storage
from app.launcher.kernel.syscall_table import NUMBERS
from app.launcher.kernel.syscalls import syscall
from app.launcher.protocol import CREATE, DESTROY, HELLO, CreatePlan, Writer
from app.serving.supervisor import PROJECT, start_launcher
from tests.kernel import host
from tests.kernel.direct import MIB, Gateway, Launched, Refused, launcher, plan, sandboxes_of
from tests.kernel.direct import name as named
from tests.require import require
from tests.service import PATIENCE, Service

OPERATOR_MIB = 600
SIZES = (16, 32, 64, 256)
LOOP_GET_STATUS64 = 0x4C05
NR_OPEN_BY_HANDLE_AT = NUMBERS[os.uname().machine]["open_by_handle_at"]


@contextmanager
def operators_disk(folder: Path, mib: int = OPERATOR_MIB) -> Iterator[Path]:
    """A file system of its own, as an operator has one for disks."""
    image, place = folder / "operator.img", folder / "operator"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    place.mkdir()
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        (place / "storage").mkdir(mode=0o700)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require("root", os.geteuid() == 0, "only root mounts")
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    with operators_disk(tmp_path_factory.mktemp("disks")) as place:
        yield place


@pytest.fixture(scope="module")
def launched(operator: Path) -> Iterator[Launched]:
    with launcher(storage_dir=str(operator / "storage"), storage_reserve_bytes=64 * MIB) as running:
        with Gateway(running[0].socket) as gateway:  # the templates of these sizes stay
            for mib in SIZES:
                with gateway.create(on_disk(mib=mib)):
                    gateway.destroy()
        yield running


@pytest.fixture
def gateway(launched: Launched) -> Iterator[Gateway]:
    with Gateway(launched[0].socket) as connected:
        yield connected


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def loops(place: Path) -> list[int]:
    """Numbers of the loop devices whose file is on the file system of `place`."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        name = backing.parts[3]
        with contextlib.suppress(OSError), Path(f"/dev/{name}").open("rb") as device:
            info = fcntl.ioctl(device, LOOP_GET_STATUS64, bytes(232))
            if int.from_bytes(info[:8], "little") == place.stat().st_dev:
                found.append(int(name.removeprefix("loop")))
    return found


def on_disk(sandbox_id: str = "one", mib: int = 32, memory_mib: int = 64) -> CreatePlan:
    return plan(sandbox_id, on_disk=True, disk_bytes=mib * MIB, memory_bytes=memory_mib * MIB)


@contextmanager
def nothing_stays(place: Path) -> Iterator[None]:
    host.until(lambda: loops(place) == [], "the disks before are gone")  # it takes a moment after the answer
    before = free(place)
    yield
    host.until(lambda: loops(place) == [], "every loop device is free again")
    host.until(lambda: free(place) == before, f"all of the room is back: {before}, {free(place)}")


# --- what a disk is


def test_200_mb_of_files_are_no_memory(gateway: Gateway, operator: Path) -> None:
    script = """
import hashlib, os
wrote = hashlib.sha256()
for name in range(4):
    with open(f"/workspace/{name}", "wb") as file:
        for _ in range(50):
            piece = os.urandom(1 << 20)
            wrote.update(piece)
            file.write(piece)
read = hashlib.sha256()
for name in range(4):
    with open(f"/workspace/{name}", "rb") as file:
        while piece := file.read(1 << 20):
            read.update(piece)
print(wrote.digest() == read.digest())
"""
    with nothing_stays(operator):
        with gateway.create(on_disk(mib=256)) as owner:
            assert gateway.run(owner, 1, "python3", "-c", script) == (b"True\n", 0)
            gateway.destroy()


FILL = """
import errno, os
def fill(path, most):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < most:
                written += file.write(PIECE)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    return written
PIECE = bytes(65536)
"""


@pytest.mark.parametrize("mib", [16, 64, 256])
def test_disk_holds_what_was_asked_for_and_little_more(gateway: Gateway, operator: Path, mib: int) -> None:
    script = (
        FILL
        + """
kept = bytearray(os.urandom(32 << 20))
again = bytes(kept)
print(fill("/workspace/x", 1 << 40))
assert kept == again, "the program keeps its memory"
os.unlink("/workspace/x")
PIECE, files = bytes(4096), 0
while LITTLE and fill(f"/tmp/{files}", 4096):
    files += 1
print(files * 4096)
"""
    )
    script = script.replace("LITTLE", str(mib == 16))
    with nothing_stays(operator):
        with gateway.create(on_disk(mib=mib, memory_mib=128)) as owner:
            data, status = gateway.run(owner, 1, "python3", "-c", script)
            gateway.destroy()
    assert status == 0
    one, little = map(int, data.split())
    assert mib * MIB <= one <= mib * MIB * 1.05 + 4 * MIB
    assert little == 0 or mib * MIB <= little <= mib * MIB * 1.05 + 4 * MIB


def test_workspace_and_tmp_share_the_disk_and_dev_shm_is_memory(gateway: Gateway) -> None:
    script = "stat -c %d%a /workspace /tmp /dev/shm; stat -f -c %T /workspace /dev/shm ; id -u"
    with gateway.create(on_disk()) as owner:
        words = gateway.run(owner, 1, "sh", "-c", script)[0].split()
        mounts = gateway.run(owner, 2, "cat", "/proc/self/mountinfo")[0].decode().splitlines()
        gateway.destroy()
    workspace, tmp, shm = words[:3]
    assert (workspace[:-3], workspace[-3:]) == (tmp[:-4], b"700")
    assert tmp[-4:] == shm[-4:] == b"1777"
    assert shm[:-4] != tmp[:-4]
    assert words[3:] == [b"ext2/ext3", b"tmpfs", b"1000"]
    own = [line for line in mounts if " - ext4 disk " in line]
    assert [line.split()[4] for line in own] == ["/tmp", "/workspace", "/tmp"]
    assert all({"nosuid", "nodev"} <= set(line.split()[5].split(",")) for line in own)
    assert not [line for line in mounts if "loop" in line or "operator" in line]


def test_launcher_holds_nothing_of_a_disk(gateway: Gateway, launched: Launched, operator: Path) -> None:
    """So it is never the one that gives the blocks back, which takes as long as they are many."""

    def held() -> list[str]:
        """Files, devices, and mounts that are attached nowhere."""
        found = host.descriptors(launched[1].pid)
        return [name for name in found if name == "/" or name.startswith("/dev/") or "(deleted)" in name]

    before = held()
    assert sum(str(operator) in name for name in before) == len(SIZES), "the control: templates are seen"
    with nothing_stays(operator), gateway.create(on_disk()):
        host.until(lambda: held() == before, "it holds what it holds without a disk")
        assert len(loops(operator)) == 1
        gateway.destroy()


def test_host_neither_caches_nor_flushes_what_a_sandbox_writes(gateway: Gateway, operator: Path) -> None:
    flushes = Path(f"/sys/dev/block/{os.major(operator.stat().st_dev)}:{os.minor(operator.stat().st_dev)}/stat")

    def flushed() -> int:
        return int(flushes.read_text().split()[15])

    script = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_SYNC)
for _ in range(400):
    os.write(file, os.urandom(65536))
os.fsync(file)
"""
    before = flushed()
    subprocess.run(["python3", "-c", script, operator / "control"], check=True)
    assert flushed() - before >= 400, "the control: each write outside is a flush"
    (operator / "control").unlink()
    with gateway.create(on_disk(mib=64)) as owner:
        before = flushed()
        assert gateway.run(owner, 1, "python3", "-c", script, "/workspace/x") == (b"", 0)
        assert flushed() - before <= 40, "only what the operator's own journal does every five seconds"
        with open_image(operator) as image:
            assert cached(image) <= 1 * MIB
            os.pread(image, 20 * MIB, 30 * MIB)
            assert cached(image) >= 16 * MIB, "the control: what is read through the cache is counted"
        gateway.destroy()


@contextmanager
def open_image(place: Path) -> Iterator[int]:
    """The one file of a disk on `place`. It has no name, so it is opened by its number, open_by_handle_at(2)."""
    (number,) = loops(place)
    with Path(f"/dev/loop{number}").open("rb") as device:
        inode = int.from_bytes(fcntl.ioctl(device, LOOP_GET_STATUS64, bytes(232))[8:16], "little")
    handle = struct.pack("IiII", 8, 1, inode, 0)  # FILEID_INO32_GEN, of any generation
    folder = os.open(place, os.O_RDONLY)
    image = syscall(NR_OPEN_BY_HANDLE_AT, folder, handle, os.O_RDONLY)
    try:
        yield image
    finally:
        os.close(folder)
        os.close(image)


def cached(file: int) -> int:
    """Bytes of a file that are in the host's page cache, mincore(2)."""
    size, libc = os.fstat(file).st_size, ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file, ctypes.c_long(0))
    pages = (ctypes.c_ubyte * (size // 4096))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) * 4096


# --- the service


def test_receipt_says_what_is_mounted_and_settings_reach_the_launcher(operator: Path, tmp_path: Path) -> None:
    env = {
        "BULKHEAD_PROCESS__STORAGE_DIR": str(operator / "of-the-service"),
        "BULKHEAD_PROCESS__STORAGE_RESERVE_MIB": str(free(operator) // MIB - 100),
    }
    with nothing_stays(operator):
        with Service(tmp_path, env) as service:
            limits = {"memory_mib": 64, "disk_mib": 64}
            disk = service.create(storage="disk", limits=limits)
            receipt = service.call("GET", f"/sandboxes/{disk}")[1]["isolation"]
            assert receipt["storage"]["kind"] == "disk"
            assert receipt["storage"]["file_system"] == "ext4"
            assert 64 * MIB <= receipt["storage"]["bytes"] <= 64 * MIB * 1.05 + 4 * MIB
            assert receipt["cgroup"]["memory_bytes"] == 64 * MIB
            status, problem = service.call("POST", "/sandboxes", {"storage": "disk", "limits": limits})
            assert (status, problem["type"]) == (507, "/problems/disk_full"), "it would take of the reserve"
            memory = service.create(storage="memory", limits=limits)
            receipt = service.call("GET", f"/sandboxes/{memory}")[1]["isolation"]
            assert receipt["storage"] == {"kind": "memory", "file_system": "tmpfs", "bytes": 60 * MIB}
            assert receipt["cgroup"]["memory_bytes"] == 64 * MIB
            assert (
                service.run(disk, "sh", "-c", "head -c 60M /dev/zero > /tmp/x; stat -c %s /tmp/x")["stdout"]
                == "62914560\n"
            )
            for name in (disk, memory):
                assert service.call("DELETE", f"/sandboxes/{name}")[0] == 204
            assert service.call("POST", "/sandboxes", {"storage": "disk", "limits": limits})[0] == 201
        (operator / "of-the-service").rmdir()


# --- bad days


def test_folder_that_cannot_hold_disks_is_refused_and_says_why(operator: Path) -> None:
    (operator / "file").touch()
    (operator / "link").symlink_to(operator / "storage")
    (operator / "open").mkdir()
    (operator / "open").chmod(0o777)
    (operator / "others").mkdir()
    os.chown(operator / "others", 12345, 12345)
    in_memory = tempfile.mkdtemp(dir="/dev/shm")
    found = {name: open_loop_storage(str(operator / name)) for name in ("file", "link", "open", "others")}
    found |= {"": open_loop_storage(""), "tmpfs": open_loop_storage(in_memory)}
    assert {name: isinstance(each, StorageError) and (each.step, each.errno) for name, each in found.items()} == {
        "file": ("open_folder", errno.EEXIST),
        "link": ("open_folder", errno.ENOTDIR),
        "open": ("open_folder", errno.EOPNOTSUPP),
        "others": ("open_folder", errno.EOPNOTSUPP),
        "": ("open_folder", errno.ENOENT),
        "tmpfs": ("open_folder", errno.EOPNOTSUPP),
    }
    Path(in_memory).rmdir()


@pytest.mark.parametrize("step", ["detached_mount", "_make_folders", "LoopDevices"])
def test_storage_that_cannot_be_opened_leaves_no_descriptor(
    operator: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """From the host's /dev, `..` would lead to the host's root."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "refused")

    before = host.own_descriptors()
    monkeypatch.setattr(loop_storage, step, refuse)
    assert isinstance(open_loop_storage(str(operator / "storage")), StorageError)
    assert host.own_descriptors() == before


@pytest.mark.parametrize("raises", [True, False])
def test_storage_of_which_no_disk_can_be_made_is_closed(
    operator: Path, monkeypatch: pytest.MonkeyPatch, *, raises: bool
) -> None:
    class Ended:
        pidfd = 0

    def fail(*_: object) -> tuple[Ended, DiskResult]:
        if raises:
            raise OSError(errno.EAGAIN, "no process")
        return Ended(), DiskResult(errno.EIO, "mke2fs ended with 1", "install e2fsprogs", -1)

    before = host.own_descriptors()
    storage = open_loop_storage(str(operator / "storage"))
    assert isinstance(storage, LoopStorage)
    assert len(host.own_descriptors()) == len(before) + 4, "the control: what is open is seen"
    monkeypatch.setattr(disks, "try_one", fail)
    assert disks.Disks(Config(), storage, select.poll()).lacks
    assert host.own_descriptors() == before


def test_disk_that_does_not_fit_above_the_reserve_is_refused_and_nothing_is_made(
    gateway: Gateway, launched: Launched, operator: Path
) -> None:
    reserve = launched[0].storage_reserve_bytes
    with nothing_stays(operator), filled(operator, reserve + image_bytes(64 * MIB)):
        before = free(operator)
        with pytest.raises(Refused) as refused:
            gateway.create(on_disk(mib=65))
        assert (refused.value.step, refused.value.errno) == ("storage", errno.ENOSPC)
        assert str(image_bytes(65 * MIB)) in refused.value.detail
        assert free(operator) == before
        assert sandboxes_of(launched) == set()
        for fits in (plan(), on_disk(mib=64)):
            with gateway.create(fits):
                gateway.destroy()


@pytest.mark.parametrize("asked", [8, 12])
def test_exact_room_is_given_to_as_many_as_it_is_for(
    gateway: Gateway, launched: Launched, operator: Path, asked: int
) -> None:
    """All creates are sent before the first answer is read."""
    room = launched[0].storage_reserve_bytes + 8 * image_bytes(16 * MIB)
    with nothing_stays(operator), filled(operator, room), contextlib.ExitStack() as owners:
        posted = []
        for turn in range(asked):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            owners.enter_context(ours)
            with theirs:
                body = bytes(on_disk(f"n{turn}", mib=16).write(Writer(0)).data[1:])
                posted.append(gateway.post(CREATE, body, [theirs.fileno()]))
        made, refused = [], []
        for turn, number in enumerate(posted):
            try:
                gateway.answer(number)
                made.append(turn)
            except Refused as problem:
                refused.append((problem.step, problem.errno))
        assert len(made) == 8
        assert refused == [("storage", errno.ENOSPC)] * (asked - 8)
        assert len(loops(operator)) == 8
        assert free(operator) >= launched[0].storage_reserve_bytes
        for turn in made:
            gateway.destroy(f"n{turn}")
        host.until(lambda: not sandboxes_of(launched), "no group stays")


@contextmanager
def filled(place: Path, leave: int) -> Iterator[None]:
    """`leave` bytes stay free, and half a MiB more at most."""
    file = place / "filled"
    with file.open("wb", buffering=0) as opened:
        os.posix_fallocate(opened.fileno(), 0, free(place) - leave - MIB // 2)
        assert leave <= free(place) <= leave + MIB // 2
        if not leave:
            opened.seek(0, os.SEEK_END)
            with contextlib.suppress(OSError):
                while opened.write(bytes(4096)):
                    pass
    try:
        yield
    finally:
        file.unlink()


def test_operators_disk_that_others_fill_is_not_noticed_by_those_who_have_one(gateway: Gateway, operator: Path) -> None:
    script = (
        FILL
        + """
import hashlib
PIECE = bytes(range(256)) * 256
assert fill("/workspace/x", 32 << 20) == 32 << 20
with open("/workspace/x", "rb") as file:
    while piece := file.read(65536):
        assert piece == PIECE
print(os.stat("/workspace/x").st_size)
"""
    )
    with nothing_stays(operator):
        with gateway.create(on_disk()) as owner:
            with filled(operator, 0):
                with pytest.raises(OSError, match="No space left"):
                    (operator / "control").write_bytes(bytes(MIB))
                (operator / "control").unlink()
                assert gateway.run(owner, 1, "python3", "-c", script) == (b"%d\n" % (32 * MIB), 0)
                with pytest.raises(Refused) as refused:
                    gateway.create(on_disk("late"))
                assert refused.value.errno == errno.ENOSPC
            assert gateway.run(owner, 2, "sha256sum", "/workspace/x")[1] == 0
            gateway.destroy()


# Many files with parts that have room and were never written. Then the disk is full, so no part can be split any more,
# and a write into the middle of one makes the kernel write zeros to the rest of it.
HOLES = """
import mmap, os
os.chdir("/workspace")
B = 4096
blocks = os.statvfs(".").f_blocks
page = mmap.mmap(-1, B)
page.write(b"z" * B)
def reserve(file, at, count):
    try:
        os.posix_fallocate(file, at * B, count * B)
    except OSError:
        return False
    return True
def make(name, count):
    file = os.open(name, os.O_CREAT | os.O_RDWR, 0o600)
    for block in (0, 2, 4):
        os.pwritev(file, [page], block * B)
    os.fsync(file)
    done = reserve(file, 6, count)
    os.close(file)
    return done
def poke(name, block):
    file = os.open(name, os.O_RDWR | os.O_DIRECT)
    try:
        os.pwritev(file, [page], block * B)
    except OSError:
        pass
    finally:
        os.close(file)
small, big = min(blocks // 45, 4096) + 60, []
for number in range(small):
    make(f"s{number}", 3)
while (count := min(os.statvfs(".").f_bavail - 8, 400)) >= 16 and make(f"b{len(big)}", count):
    big.append(count)
rest, at, step = os.open("rest", os.O_CREAT | os.O_RDWR), 0, 256
while step:
    if reserve(rest, at, step):
        at += step
    else:
        step //= 2
for number in range(small):
    poke(f"s{number}", 7)
for number, count in enumerate(big):
    poke(f"b{number}", 6 + count // 2)
"""


def test_program_cannot_give_back_the_room_of_its_disk(gateway: Gateway, operator: Path) -> None:
    with nothing_stays(operator):
        with gateway.create(on_disk(mib=64, memory_mib=128)) as owner:
            before = free(operator)
            said, status = gateway.run(owner, 1, "sh", "-c", "fallocate -l 4096 /workspace/f 2>&1")
            assert (b"Operation not supported" in said, os.waitstatus_to_exitcode(status)) == (True, 1)
            assert gateway.run(owner, 2, "python3", "-c", HOLES) == (b"", 0)
            assert free(operator) <= before
            gateway.destroy()


def test_slow_disk_holds_up_nobody_else(gateway: Gateway, operator: Path) -> None:
    """Frozen, as long as an operator's disk may take: what is made on it waits, and the launcher serves the others."""
    with nothing_stays(operator), gateway.create(plan("old")) as old:
        subprocess.run(["fsfreeze", "--freeze", operator], check=True)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                number = gateway.post(CREATE, bytes(on_disk("slow").write(Writer(0)).data[1:]), [theirs.fileno()])
                with gateway.create(plan("quick")):
                    gateway.destroy("quick")
                assert gateway.run(old, 1, "echo", "fine", sandbox_id="old") == (b"fine\n", 0)
                assert number not in gateway.answers
                subprocess.run(["fsfreeze", "--unfreeze", operator], check=True)
                gateway.answer(number)
                gateway.destroy("slow")
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", operator], check=False, stderr=subprocess.DEVNULL)
        gateway.destroy("old")


def usable(gateway: Gateway) -> int:
    """What all disks together can hold, as the launcher says."""
    lines = gateway.answer(gateway.post(HELLO)).many(64)
    return int(dict(line.partition(b"=")[::2] for line in lines)[b"disk_bytes"])


def test_launcher_tells_what_all_disks_can_hold_whatever_is_taken_of_it(gateway: Gateway, operator: Path) -> None:
    with nothing_stays(operator):
        before = usable(gateway)
        above_reserve = free(operator) - 64 * MIB
        assert (above_reserve - MIB) * 7 // 8 <= before <= above_reserve * 7 // 8
        with gateway.create(on_disk(mib=64)):
            assert abs(usable(gateway) - before) <= MIB
            gateway.destroy()
        with filled(operator, 144 * MIB):
            assert 70 * MIB <= usable(gateway) <= 71 * MIB


def test_disk_smaller_than_16_mib_is_refused(gateway: Gateway) -> None:
    with pytest.raises(Refused) as refused:
        gateway.create(plan(on_disk=True, disk_bytes=16 * MIB - 1))
    assert (refused.value.step, refused.value.errno) == ("plan", errno.ERANGE)


MKE2FS = """#!/bin/sh
grep ^Cap /proc/self/status | grep -vq 0000000000000000 && exit 8
[ "$(echo $(ls /proc/self/fd))" = "0 1 2 3 4 5" ] || exit 9
exit 7
"""
ASK = """
import sys
from tests.kernel.direct import Gateway, Refused, launcher
from tests.kernel.test_disks import on_disk
with launcher(storage_dir=sys.argv[1]) as (config, _), Gateway(config.socket) as gateway:
    try:
        gateway.create(on_disk())
    except Refused as refused:
        print(refused.detail)
"""


def test_mke2fs_has_no_capabilities_and_only_its_own_descriptors(operator: Path, tmp_path: Path) -> None:
    """The first one, before there is a sandbox. In its place is a program that looks at itself; 5 is what `ls` opens
    itself. A mount namespace hides it from the rest of the host."""
    program = tmp_path / "mke2fs"
    program.write_text(MKE2FS)
    program.chmod(0o755)
    inside = 'mount --bind "$0" "$1" && shift && exec "$@"'
    place = shutil.which("mke2fs")
    assert place is not None
    folder = str(operator / "storage")
    argv = ["unshare", "--mount", "sh", "-c", inside, str(program), place, sys.executable, "-c", ASK, folder]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "mke2fs ended with 7:" in done.stdout, done


def test_hundred_disks_at_once(operator_of_100: Path) -> None:
    """All creates are sent before the first answer is read."""
    names = [f"n{number}" for number in range(100)]
    folder = str(operator_of_100 / "storage")
    with (
        launcher(storage_dir=folder, max_sandboxes=100) as (config, child),
        Gateway(config.socket) as gateway,
        contextlib.ExitStack() as owners,
    ):
        with gateway.create(on_disk("first", mib=16)):
            gateway.destroy("first")
        with nothing_stays(operator_of_100):
            posted, ends = [], []
            for name in names:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ends.append(owners.enter_context(ours))
                with theirs:
                    body = bytes(on_disk(name, mib=16).write(Writer(0)).data[1:])
                    posted.append(gateway.post(CREATE, body, [theirs.fileno()]))
            for number in posted:
                gateway.answer(number)
            assert len(loops(operator_of_100)) == 100
            for name, end in [(names[0], ends[0]), (names[50], ends[50]), (names[99], ends[99])]:
                end.settimeout(PATIENCE)
                script = f"echo {name} > /workspace/own; cat /workspace/*"
                assert gateway.run(end, 1, "sh", "-c", script, sandbox_id=name) == (f"{name}\n".encode(), 0)
            waiting = [gateway.post(DESTROY, named(name)) for name in names]
            for number in waiting:
                gateway.answer(number)
        assert child.poll() is None


@pytest.fixture
def operator_of_100(tmp_path: Path) -> Iterator[Path]:
    require("loop", Path("/dev/loop-control").exists(), "the host has no loop devices")
    with operators_disk(tmp_path, 2400) as place:
        yield place


# --- kill -9 at any moment


def test_sandboxes_that_end_while_they_are_made_leave_nothing(
    gateway: Gateway, launched: Launched, operator: Path
) -> None:
    """80 rounds: the gateway is gone, the worker is killed, or the sandbox is deleted, a moment after the create was
    sent."""
    chance = random.Random(12)
    with nothing_stays(operator):
        for turn in range(80):
            with Gateway(launched[0].socket) as other:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                body = bytes(on_disk(f"n{turn}").write(Writer(0)).data[1:])
                with ours, theirs:
                    number = other.post(CREATE, body, [theirs.fileno()])
                    threading.Event().wait(chance.uniform(0, 0.02))
                    if turn % 3 == 0:
                        for pid in host.children_of(launched[1].pid):  # workers, a zygote, what makes disks
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
                        with contextlib.suppress(Refused):
                            other.answer(number)
                    elif turn % 3 == 1:
                        with contextlib.suppress(Refused):
                            other.destroy(f"n{turn}")
        host.until(lambda: not sandboxes_of(launched), "no group stays")
        with gateway.create(on_disk()) as owner:
            assert gateway.run(owner, 1, "echo", "fine") == (b"fine\n", 0)
            gateway.destroy()
    assert launched[1].poll() is None


def test_killed_launcher_leaves_no_disk_at_any_point(operator: Path) -> None:
    """20 rounds. Nothing but empty groups is left. In the last two rounds the next launcher begins with them."""
    chance = random.Random(13)
    with nothing_stays(operator):
        for number in range(20):
            with (
                launcher(storage_dir=str(operator / "storage")) as (config, child),
                Gateway(config.socket) as gateway,
                contextlib.ExitStack() as owners,
            ):
                posted = []
                for turn in range(chance.randrange(1, 5)):
                    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    body = bytes(on_disk(f"n{turn}", mib=16).write(Writer(0)).data[1:])
                    owners.enter_context(ours)
                    with theirs:
                        posted.append(gateway.post(CREATE, body, [theirs.fileno()]))
                if number % 2:  # while they are deleted, else while they are made
                    for turn, made in enumerate(posted):
                        gateway.answer(made)
                        gateway.post(DESTROY, named(f"n{turn}"))
                threading.Event().wait(chance.uniform(0, 0.05))
                child.kill()
                child.wait(PATIENCE)
                uids = range(config.uid_first, config.uid_first + config.uid_count)
                host.until(lambda uids=uids: not host.living_of(*uids), "every process ends")  # type: ignore[misc]
                host.until(lambda: loops(operator) == [], "every loop device is free")
                first = config.cgroup_parent.partition("/")[2]
                left = [Path(folder) for folder in host.group_folders(int(first), "bulkhead-direct")]
                assert left, "the control: groups are seen"
                assert "".join((folder / "cgroup.procs").read_text() for folder in left) == ""
                if number >= 18:
                    serves_again(config)


def serves_again(config: Config) -> None:
    """A launcher that begins with what is left removes it, and makes a sandbox with a disk."""
    child = start_launcher(config)
    try:
        assert sandboxes_of((config, child)) == set()
        with Gateway(config.socket) as gateway, gateway.create(on_disk(mib=16)) as owner:
            assert gateway.run(owner, 1, "echo", "fine") == (b"fine\n", 0)
            gateway.destroy()
    finally:
        child.terminate()
        child.communicate(timeout=PATIENCE)
