"""Finding our control groups in recorded hosts, and what is written into them, on a fake tree of plain files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.launcher import cgroup, groups
from app.launcher.cgroup import Hierarchy, Tree, field, locate, number_of
from app.launcher.groups import Groups
from tests.kernel.host import own_descriptors

# Lines of proc_pid_mountinfo(5) as hosts show them; {root} is where the fake host's trees lie.
V1 = """\
24 1 0:22 / / rw - ext4 /dev/vda rw
31 24 0:27 / {root}/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / {root}/memory rw,nosuid - cgroup cgroup rw,memory
33 24 0:29 / {root}/pids rw,nosuid - cgroup cgroup rw,pids
34 24 0:30 / {root}/freezer rw,nosuid - cgroup cgroup rw,freezer
35 24 0:31 / {root}/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "31 24 0:27 / {root} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = V1 + "36 24 0:32 / {root}/unified rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MEMBERS = "12:memory:/user/one\n11:cpu,cpuacct:/user/one\n3:pids:/\n1:name=systemd:/init.scope\n0::/init.scope\n"


def host(tmp_path: Path, controllers: str = "cpuset cpu io memory pids", group: str = "") -> Path:
    folder = tmp_path / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers + "\n")
    return folder


def test_version_1_is_each_controllers_mount_and_our_group_in_it(tmp_path: Path) -> None:
    assert locate(V1.format(root=tmp_path), V1_MEMBERS) == (1, [
        (("cpu", "cpuacct"), f"{tmp_path}/cpu,cpuacct/user/one"),
        (("memory",), f"{tmp_path}/memory/user/one"),
        (("pids",), f"{tmp_path}/pids"),
    ])  # fmt: skip


def test_version_1_in_a_container_counts_from_the_mounts_root(tmp_path: Path) -> None:
    mounts = f"32 24 0:28 /docker/abc {tmp_path}/memory ro - cgroup cgroup rw,memory\n"
    assert locate(mounts, "4:memory:/docker/abc\n")[1] == [(("memory",), f"{tmp_path}/memory")]
    assert locate(mounts, "4:memory:/docker/abc/in/it\n")[1] == [(("memory",), f"{tmp_path}/memory/in/it")]


def test_the_first_of_two_mounts_of_the_same_controller_counts(tmp_path: Path) -> None:
    twice = V1.format(root=tmp_path) + f"40 24 0:28 / {tmp_path}/again rw - cgroup cgroup rw,memory\n"
    assert [names for names, _ in locate(twice, V1_MEMBERS)[1]] == [("cpu", "cpuacct"), ("memory",), ("pids",)]


def test_version_2_is_one_tree_with_all_controllers(tmp_path: Path) -> None:
    folder = host(tmp_path, group="/system.slice/bulkhead.service")
    version, places = locate(V2.format(root=tmp_path), "0::/system.slice/bulkhead.service\n")
    assert (version, places) == (2, [(("memory", "pids", "cpu"), str(folder))])


def test_version_2_in_a_container_with_its_own_namespace(tmp_path: Path) -> None:
    host(tmp_path)
    assert locate(V2.format(root=tmp_path), "0::/\n") == (2, [(("memory", "pids", "cpu"), str(tmp_path))])


def test_version_2_after_we_moved_ourselves_into_the_leaf(tmp_path: Path) -> None:
    folder = host(tmp_path, group="/a")
    assert locate(V2.format(root=tmp_path), "0::/a/service\n")[1][0][1] == str(folder)


def test_version_2_that_lacks_controllers_says_which_it_has(tmp_path: Path) -> None:
    host(tmp_path, "cpuset pids")
    version, places = locate(V2.format(root=tmp_path), "0::/\n")
    assert (version, places) == (2, [(("pids",), str(tmp_path))])
    assert Tree(2, "x", [Hierarchy(places[0][0], -1)], False).layers == {"cgroup_pids"}


def test_a_hybrid_host_is_version_1_as_its_unified_tree_is_empty(tmp_path: Path) -> None:
    host(tmp_path, "", group="/unified/init.scope")
    assert locate(HYBRID.format(root=tmp_path), V1_MEMBERS)[0] == 1


def test_a_hybrid_host_whose_unified_tree_has_the_controllers_is_version_2(tmp_path: Path) -> None:
    host(tmp_path, group="/unified/init.scope")
    assert locate(HYBRID.format(root=tmp_path), V1_MEMBERS)[0] == 2


def test_a_host_without_any_has_no_layer() -> None:
    assert locate("24 1 0:22 / / rw - ext4 /dev/vda rw\n", "") == (1, [])
    assert Tree(1, "x", [], True).layers == set()


@pytest.mark.parametrize(("text", "number"), [("max\n", 0), ("4096\n", 4096), ("1", 1)])
def test_no_limit_reads_as_0(text: str, number: int) -> None:
    assert number_of(text) == number


def test_a_field_is_found_by_its_whole_name() -> None:
    text = "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n"
    assert (field(text, "oom_kill"), field(text, "oom"), field("", "oom_kill")) == (3, 0, 0)


# --- what is written

FILES_1 = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "tasks", "cgroup.procs"),
    "pids": ("pids.max", "tasks", "cgroup.procs"),
    "cpu": ("cpu.cfs_quota_us", "tasks", "cgroup.procs"),
    "cpuacct": ("cpuacct.usage", "tasks", "cgroup.procs"),
}
MEMORY_2 = ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events", "memory.peak")
GROUP_2 = ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill")
FILES_2 = (*MEMORY_2, *GROUP_2, "pids.max", "cpu.max", "cpu.stat")


class Kernel:
    """`os`, but a new folder has the files of a new control group, and one that is removed loses them."""

    def __init__(self, files: dict[int, tuple[str, ...]]) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int) -> None:
        os.mkdir(path, mode, dir_fd=dir_fd)
        for name in self._files[dir_fd]:
            os.close(os.open(f"{path}/{name}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=dir_fd))

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        procs = os.open(f"{path}/cgroup.procs", os.O_RDONLY, dir_fd=dir_fd)
        busy = os.read(procs, 1)
        os.close(procs)
        if busy:
            raise OSError(errno.EBUSY, "busy")
        for name in self._files[dir_fd]:
            os.unlink(f"{path}/{name}", dir_fd=dir_fd)
        os.rmdir(path, dir_fd=dir_fd)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    yield from _tree(1, tmp_path, monkeypatch, {name: ((name,), files) for name, files in FILES_1.items()})


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    yield from _tree(2, tmp_path, monkeypatch, {"": (("memory", "pids", "cpu"), FILES_2)})


def _tree(
    version: int, root: Path, patch: pytest.MonkeyPatch, trees: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
) -> Iterator[Tree]:
    hierarchies, files = [], {}
    for name, (controllers, names) in trees.items():
        (root / name).mkdir(exist_ok=True)
        descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY)
        hierarchies.append(Hierarchy(controllers, descriptor))
        files[descriptor] = names
    kernel = Kernel(files)
    patch.setattr(cgroup, "os", kernel)
    patch.setattr(groups, "os", kernel)
    yield Tree(version, "bulkhead/1", hierarchies, True)
    for hierarchy in hierarchies:
        os.close(hierarchy.parent)


def led(descriptor: int) -> str:
    """Where it leads to."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def written(root: Path) -> dict[str, str]:
    found = {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: text for name, text in found.items() if text}


def test_version_1_writes_every_limit_of_a_room(first: Tree, tmp_path: Path) -> None:
    Groups(first, "one").make(1 << 30, 64, 1500)
    assert written(tmp_path) == {
        "memory/one/memory.limit_in_bytes": str(1 << 30),
        "memory/one/memory.memsw.limit_in_bytes": str(1 << 30),
        "pids/one/pids.max": "64",
        "cpu/one/cpu.cfs_quota_us": "150000",
    }


def test_version_2_writes_every_limit_of_a_room_and_no_group_kill_on_it(second: Tree, tmp_path: Path) -> None:
    Groups(second, "one").make(1 << 30, 64, 250)
    assert written(tmp_path) == {
        "one/memory.max": str(1 << 30),
        "one/memory.swap.max": "0",
        "one/pids.max": "64",
        "one/cpu.max": "25000 100000",
        "one/cgroup.subtree_control": "+cpu +memory +pids",
    }


def test_version_2_kills_an_execution_as_a_whole_when_memory_runs_out_but_never_the_workers(
    second: Tree, tmp_path: Path
) -> None:
    second.house_workers(10)
    room = Groups(second, "one")
    room.make(1 << 30, 64, 250)
    joins = room.open_execution(1)
    assert len(joins) == 1
    assert led(joins[0]) == f"{tmp_path}/one/1/cgroup.procs"
    os.close(joins[0])
    said = written(tmp_path)
    assert said["one/1/memory.oom.group"] == "1"
    assert "one/memory.oom.group" not in said
    assert "_workers/memory.oom.group" not in said
    assert [led(fd) for fd in room.home] == [f"{tmp_path}/_workers/cgroup.procs"]


def test_version_1_joins_by_thread_in_every_tree_that_tells_executions_apart(first: Tree, tmp_path: Path) -> None:
    room = Groups(first, "one")
    room.make(1 << 30, 64, 250)
    joins = room.open_execution(1)
    files = {led(fd).removeprefix(f"{tmp_path}/") for fd in joins}
    for descriptor in joins:
        os.close(descriptor)
    assert files == {"memory/one/1/tasks", "pids/one/1/tasks", "cpu/one/tasks", "cpuacct/one.1/tasks"}


def test_usage_of_version_2_is_read_from_its_files(second: Tree, tmp_path: Path) -> None:
    room = Groups(second, "one")
    room.make(1 << 30, 64, 250)
    for descriptor in room.open_execution(1):
        os.close(descriptor)
    folder = tmp_path / "one/1"
    (folder / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (folder / "memory.peak").write_text("4096\n")
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 1\n")
    usage = room.usage(1)
    assert (usage.cpu_ns, usage.peak_bytes, usage.ooms, usage.alive) == (1_234_000, 4096, 1, False)
    (folder / "memory.peak").unlink()
    assert room.usage(1).peak_bytes == 0, "before Linux 5.19"


def test_killing_on_version_2_is_one_write_and_waits_for_the_last(second: Tree, tmp_path: Path) -> None:
    room = Groups(second, "one")
    room.make(1 << 30, 64, 250)
    for descriptor in room.open_execution(1):
        os.close(descriptor)
    (tmp_path / "one/1/cgroup.procs").write_text("12\n13\n")
    assert room.kill_execution(1, 99) is False
    assert (tmp_path / "one/1/cgroup.kill").read_text() == "1"
    assert room.remove_execution(1) is False
    (tmp_path / "one/1/cgroup.procs").write_text("")
    assert room.kill_execution(1, 99) is True
    assert room.remove_execution(1) is True


def test_nothing_is_left_of_a_room_that_was_removed(first: Tree, tmp_path: Path) -> None:
    before = own_descriptors()
    room = Groups(first, "one")
    room.make(1 << 30, 64, 250)
    for number in (1, 2):
        for descriptor in room.open_execution(number):
            os.close(descriptor)
    assert room.remove() is True
    assert [path for path in tmp_path.rglob("*") if "one" in path.name] == []
    assert own_descriptors() == before


@pytest.mark.parametrize("version", ["first", "second"])
def test_limits_that_are_in_force_are_read_back(version: str, request: pytest.FixtureRequest) -> None:
    room = Groups(request.getfixturevalue(version), "one")
    room.make(1 << 20, 7, 500)
    assert room.limits_in_force() == {"memory_bytes": 1 << 20, "processes": 7, "cpu_millis": 500}
