"""What is written into the control groups of a sandbox, on a fake tree of plain files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.launcher.daemon import cgroup, groups
from app.launcher.daemon.cgroup import CgroupTree, Hierarchy
from app.launcher.daemon.cgroup_v1 import CgroupTreeV1
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2
from app.launcher.daemon.groups import Groups
from tests.kernel.host import own_descriptors

FILES_1 = {
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.kmem.tcp.limit_in_bytes",
        "tasks",
        "cgroup.procs",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
    ),
    "pids": ("pids.max", "pids.current", "tasks", "cgroup.procs"),
    "cpu": ("cpu.cfs_quota_us", "cpu.shares", "tasks", "cgroup.procs"),
    "cpuacct": ("cpuacct.usage", "tasks", "cgroup.procs"),
    "cpuset": ("cpuset.cpus", "cpuset.mems", "cpuset.sched_load_balance", "tasks", "cgroup.procs"),
}
MEMORY_2 = ("memory.max", "memory.current", "memory.swap.max", "memory.events", "memory.peak")
GROUP_2 = ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill")
FILES_2 = (*MEMORY_2, *GROUP_2, "pids.max", "pids.current", "cpu.max", "cpu.stat", "cpu.weight", "cpuset.cpus")


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
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CgroupTree]:
    (tmp_path / "cpuset").mkdir()
    for name, text in (("cpus", "0-3"), ("mems", "0")):
        (tmp_path / f"cpuset/cpuset.{name}").write_text(text)
    yield from _tree(CgroupTreeV1, tmp_path, monkeypatch, {name: ((name,), files) for name, files in FILES_1.items()})


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CgroupTree]:
    yield from _tree(CgroupTreeV2, tmp_path, monkeypatch, {"": (("memory", "pids", "cpu", "cpuset"), FILES_2)})


def _tree(
    kind: type[CgroupTree],
    root: Path,
    patch: pytest.MonkeyPatch,
    trees: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
) -> Iterator[CgroupTree]:
    hierarchies, files = [], {}
    for name, (controllers, names) in trees.items():
        (root / name).mkdir(exist_ok=True)
        descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY)
        hierarchies.append(Hierarchy(controllers, descriptor))
        files[descriptor] = names
    kernel = Kernel(files)
    patch.setattr(cgroup, "os", kernel)
    patch.setattr(groups, "os", kernel)
    tree = kind("bulkhead/1", hierarchies)
    tree.start()
    tree.has_swap_limit = True
    tree.make_workers_group(10)
    yield tree
    for hierarchy in hierarchies:
        if not hierarchy.cpuset_only:
            os.close(hierarchy.workers)
        os.close(hierarchy.parent)


def led(descriptor: int) -> str:
    """Where it leads to."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def written(root: Path) -> dict[str, str]:
    """Without the limits of all workers together."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.parent.name != "_workers"]
    found = {str(path.relative_to(root)): path.read_text() for path in files}
    return {name: text for name, text in found.items() if text}


def test_every_tree_of_version_1_has_room_for_as_many_workers(first: CgroupTree, tmp_path: Path) -> None:
    """`pids` comes second here: its number is that of the sandboxes too, 10."""
    workers = tmp_path / "memory/_workers/memory.limit_in_bytes", tmp_path / "pids/_workers/pids.max"
    assert [path.read_text() for path in workers] == [str((256 + 4 * 10) << 20), str(2 * 10 + 16)]


def test_version_1_writes_every_limit_of_a_room(first: CgroupTree, tmp_path: Path) -> None:
    payload = Groups(first, "one")
    payload.make()
    payload.limit(1 << 30, 64, 1500)
    assert written(tmp_path) == {
        "memory/one/memory.limit_in_bytes": str(1 << 30),
        "memory/one/memory.memsw.limit_in_bytes": str(1 << 30),
        "memory/one/memory.kmem.tcp.limit_in_bytes": str(32 << 20),
        "pids/one/pids.max": "65",
        "cpu/one/cpu.cfs_quota_us": "150000",
        "cpu/_workers/one/cpu.cfs_quota_us": "20000",
        "cpuset/cpuset.cpus": "0-3",
        "cpuset/cpuset.mems": "0",
        "cpuset/one/cpuset.cpus": "0-3",
        "cpuset/one/cpuset.mems": "0",
        "cpuset/one/cpuset.sched_load_balance": "0",
    }


def test_version_1_lets_the_worker_live_with_the_processors_of_its_sandbox(first: CgroupTree, tmp_path: Path) -> None:
    """Then commands are born there, and no execution needs a group or a move."""
    payload = Groups(first, "one")
    payload.make()
    payload.limit(1 << 30, 64, 1500)
    payload.limit_cpus([1, 3])
    assert (tmp_path / "cpuset/one/cpuset.cpus").read_text() == "1,3"
    assert f"{tmp_path}/cpuset/one/tasks" in [led(fd) for fd in payload.join_descriptors]
    assert [led(fd) for fd in payload.worker_group if "cpuset" in led(fd)] == []
    assert [path.name for path in (tmp_path / "cpuset").iterdir() if path.is_dir()] == ["one"]
    member = {"memory": "/_workers", "pids": "/one", "cpu": "/_workers/one", "cpuacct": "/_workers", "cpuset": "/one"}
    member = {name: f"/bulkhead/1{path}" for name, path in member.items()}
    assert payload.not_with_workers(member) == []
    assert payload.not_with_workers(member | {"cpuset": "/bulkhead/1"}) == ["cpuset"]


def test_cpuset_mounted_with_others_is_written_in_every_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody could join an execution."""
    files = (*FILES_1["cpuset"], *FILES_1["memory"], *FILES_1["cpu"])
    for name, text in (("cpus", "0-3"), ("mems", "0")):
        (tmp_path / f"cpuset.{name}").write_text(text)
    for tree in _tree(CgroupTreeV1, tmp_path, monkeypatch, {"": (("memory", "cpu", "cpuset"), files)}):
        payload = Groups(tree, "one")
        payload.make()
        payload.limit(1 << 30, 64, 1500)
        payload.limit_cpus([1, 3])
        for descriptor in payload.open_execution(1):
            os.close(descriptor)
        cpus = {str(path.parent.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("cpuset.cpus")}
        assert cpus == {".": "0-3", "_workers": "0-3", "_workers/one": "1,3", "one": "1,3", "one/1": "1,3"}
        assert {path.read_text() for path in tmp_path.rglob("cpuset.mems")} == {"0"}


def test_version_2_gives_the_processors_to_the_worker_too(second: CgroupTree, tmp_path: Path) -> None:
    """Then nobody is moved to another one when the worker starts a command."""
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 1500)
    payload.limit_cpus([1, 3])
    assert [(tmp_path / path / "cpuset.cpus").read_text() for path in ("one", "_workers/one")] == ["1,3"] * 2


def test_version_2_writes_every_limit_of_a_room_and_no_group_kill_on_it(second: CgroupTree, tmp_path: Path) -> None:
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    assert written(tmp_path) == {
        "one/memory.max": str(1 << 30),
        "one/memory.swap.max": "0",
        "one/pids.max": "64",
        "one/cpu.max": "25000 100000",
        "_workers/one/cpu.max": "20000 100000",
    }


def test_all_workers_together_have_limits_in_every_tree_of_version_1(first: CgroupTree, tmp_path: Path) -> None:
    assert (tmp_path / "memory/_workers/memory.limit_in_bytes").read_text() == str((256 + 4 * 10) << 20)
    assert (tmp_path / "pids/_workers/pids.max").read_text() == str(2 * 10 + 16)


def test_all_workers_together_have_limits_on_version_2(second: CgroupTree, tmp_path: Path) -> None:
    assert (tmp_path / "_workers/memory.max").read_text() == str((256 + 4 * 10) << 20)
    assert (tmp_path / "_workers/memory.swap.max").read_text() == "0"
    assert (tmp_path / "_workers/pids.max").read_text() == str(2 * 10 + 16)


def test_workers_come_before_commands_on_version_1(first: CgroupTree, tmp_path: Path) -> None:
    assert (tmp_path / "cpu/_workers/cpu.shares").read_text() == "10240"


def test_workers_come_before_commands_on_version_2(second: CgroupTree, tmp_path: Path) -> None:
    assert (tmp_path / "_workers/cpu.weight").read_text() == "1000"


def test_version_2_hands_controllers_down_once_the_worker_has_left_the_room(second: CgroupTree, tmp_path: Path) -> None:
    """In a group with processes the kernel refuses it, and with it no process may enter."""
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    handed_down = tmp_path / "one/cgroup.subtree_control"
    assert [led(fd) for fd in payload.join_descriptors] == [f"{tmp_path}/one/cgroup.procs"]
    assert handed_down.read_text() == ""
    for number in (1, 2):
        for descriptor in payload.open_execution(number):
            os.close(descriptor)
        assert handed_down.read_text() == "+cpu +memory +pids"


def test_version_2_has_one_group_for_an_execution_and_kills_none_as_a_whole(second: CgroupTree, tmp_path: Path) -> None:
    assert (tmp_path / "_workers/cgroup.subtree_control").read_text() == "+cpu +cpuset"
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    joins = payload.open_execution(1)
    assert len(joins) == 1
    assert led(joins[0]) == f"{tmp_path}/one/1/cgroup.procs"
    os.close(joins[0])
    assert not [name for name in written(tmp_path) if name.endswith("memory.oom.group")]
    assert [led(fd) for fd in payload.worker_group] == [f"{tmp_path}/_workers/one/cgroup.procs"]


def test_version_1_joins_by_thread_in_every_tree_that_tells_executions_apart(first: CgroupTree, tmp_path: Path) -> None:
    payload = Groups(first, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    joins = payload.open_execution(1)
    files = {led(fd).removeprefix(f"{tmp_path}/") for fd in joins}
    for descriptor in joins:
        os.close(descriptor)
    assert files == {"memory/one/1/tasks", "pids/one/1/tasks", "cpu/one/tasks", "cpuacct/one/1/tasks"}


def test_usage_of_version_2_is_read_from_its_files(second: CgroupTree, tmp_path: Path) -> None:
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    for descriptor in payload.open_execution(1):
        os.close(descriptor)
    folder = tmp_path / "one/1"
    (folder / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (folder / "memory.peak").write_text("4096\n")
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    usage = payload.usage(1)
    assert (usage.cpu_ns, usage.peak_bytes, usage.ooms, usage.alive) == (1_234_000, 4096, 1, False)
    (folder / "memory.peak").write_text(f"{(1 << 30) + 8192}\n")
    assert payload.usage(1).peak_bytes == 1 << 30, "what was refused it never had"
    (folder / "memory.peak").unlink()
    assert payload.usage(1).peak_bytes == 0, "before Linux 5.19"


def test_usage_of_version_1_is_read_from_its_trees(first: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(first, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    (tmp_path / "cpuacct/one/1/cpuacct.usage").write_text("1234567\n")
    (tmp_path / "memory/one/1/memory.max_usage_in_bytes").write_text("4096\n")
    (tmp_path / "memory/one/1/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    usage = groups.usage(1)
    assert (usage.cpu_ns, usage.peak_bytes, usage.ooms, usage.alive) == (1_234_567, 4096, 1, False)


def test_what_is_used_now_is_read_from_the_trees_of_version_1(first: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(first, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    for group, processes in (("one", 3), ("one/1", 2)):
        (tmp_path / "memory" / group / "memory.usage_in_bytes").write_text("4096\n")
        (tmp_path / "memory" / group / "memory.max_usage_in_bytes").write_text("8192\n")
        (tmp_path / "cpuacct" / group / "cpuacct.usage").write_text("1234567\n")
        (tmp_path / "pids" / group / "pids.current").write_text(f"{processes}\n")
    for number in (0, 1):  # the worker lives in the sandbox's group, and is none of its processes
        used = groups.figures(number)
        assert (used.memory_bytes, used.peak_bytes, used.cpu_ns, used.processes) == (4096, 8192, 1_234_567, 2)


def test_what_is_used_now_is_read_from_the_files_of_version_2(second: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(second, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    for group in ("one", "one/1"):
        (tmp_path / group / "memory.current").write_text("4096\n")
        (tmp_path / group / "memory.peak").write_text("8192\n")
        (tmp_path / group / "cpu.stat").write_text("usage_usec 1234\n")
        (tmp_path / group / "pids.current").write_text("2\n")
    for number in (0, 1):
        used = groups.figures(number)
        assert (used.memory_bytes, used.peak_bytes, used.cpu_ns, used.processes) == (4096, 8192, 1_234_000, 2)
    (tmp_path / "one/1/memory.peak").unlink()
    assert groups.figures(1).peak_bytes is None, "before Linux 5.19"


def test_sockets_of_version_1_have_a_limit_and_are_counted_in_each_execution(first: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(first, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    name = "memory.kmem.tcp.limit_in_bytes"
    assert [(tmp_path / "memory" / group / name).read_text() for group in ("one", "one/1")] == [str(32 << 20)] * 2


def test_each_execution_of_version_1_has_the_memory_limit_of_its_sandbox(first: CgroupTree, tmp_path: Path) -> None:
    """That of cpu is in a group that no execution has one below."""
    groups = Groups(first, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        assert (tmp_path / "memory/one/1" / name).read_text() == str(1 << 30)
    assert not (tmp_path / "cpu/one/1").exists()
    groups.limit_execution(1, 1 << 25)  # the files of this tree keep what was longer
    assert (tmp_path / "memory/one/1/memory.limit_in_bytes").read_text().startswith(str(1 << 25))


def test_each_execution_of_version_2_has_the_limits_of_its_sandbox(second: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(second, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    assert (tmp_path / "one/1/memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "one/1/cpu.max").read_text() == (tmp_path / "one/cpu.max").read_text() == "25000 100000"


def test_sandbox_sees_four_trees_of_version_1_and_the_one_of_version_2(first: CgroupTree, second: CgroupTree) -> None:
    assert [(each.number, each.path) for each in first.group_mounts] == [
        (number, f"/sys/fs/cgroup/{tree.names}")
        for number, tree in enumerate(first.hierarchies)
        if tree.controllers != ("pids",)
    ]
    assert [(each.number, each.path, each.has_memory) for each in second.group_mounts] == [(0, "/sys/fs/cgroup", True)]


def test_killing_beside_the_worker_on_version_2_forbids_forks_and_spares_it(second: CgroupTree, tmp_path: Path) -> None:
    groups = Groups(second, "one")
    groups.make()
    groups.limit(1 << 30, 64, 250)
    for descriptor in groups.open_execution(1):
        os.close(descriptor)
    (tmp_path / "one/1/cgroup.procs").write_text("99\n")
    assert groups.kill_execution(1, 99) is True
    assert (tmp_path / "one/1/pids.max").read_text() == "0"
    assert (tmp_path / "one/1/cgroup.kill").read_text() == ""


def test_killing_on_version_2_is_one_write_and_waits_for_the_last(second: CgroupTree, tmp_path: Path) -> None:
    payload = Groups(second, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    for descriptor in payload.open_execution(1):
        os.close(descriptor)
    (tmp_path / "one/1/cgroup.procs").write_text("12\n13\n")
    assert payload.kill_execution(1, 99) is False
    assert (tmp_path / "one/1/cgroup.kill").read_text() == "1"
    assert payload.remove_execution(1) is False
    (tmp_path / "one/1/cgroup.procs").write_text("")
    assert payload.kill_execution(1, 99) is True
    assert payload.remove_execution(1) is True


def test_one_busy_group_of_an_execution_keeps_the_others(first: CgroupTree, tmp_path: Path) -> None:
    """Its end comes between two of the calls at any time, and what is half gone cannot be killed or measured."""
    payload = Groups(first, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    for descriptor in payload.open_execution(1):
        os.close(descriptor)
    (tmp_path / "memory/one/1/cgroup.procs").write_text("12\n")
    assert payload.remove_execution(1) is False
    assert (tmp_path / "pids/one/1").is_dir()
    (tmp_path / "memory/one/1/cgroup.procs").write_text("")
    assert payload.remove_execution(1) is True


@pytest.mark.parametrize("tree", ["first", "second"])
def test_an_execution_that_is_gone_can_be_killed_measured_and_removed_again(
    tree: str, request: pytest.FixtureRequest
) -> None:
    payload = Groups(request.getfixturevalue(tree), "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    for descriptor in payload.open_execution(1):
        os.close(descriptor)
    assert payload.remove_execution(1) is True
    assert payload.kill_execution(1, 99) is True
    usage = payload.usage(1)
    assert (usage.cpu_ns, usage.peak_bytes, usage.ooms, usage.alive) == (0, 0, 0, False)
    assert payload.remove_execution(1) is True


@pytest.mark.parametrize("version", ["first", "second"])
def test_nothing_is_left_of_a_room_that_was_removed(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tree = request.getfixturevalue(version)
    before = own_descriptors()
    payload = Groups(tree, "one")
    payload.make()
    payload.limit(1 << 30, 64, 250)
    for number in (1, 2):
        for descriptor in payload.open_execution(number):
            os.close(descriptor)
    assert payload.remove() is True
    assert [path for path in tmp_path.rglob("*") if "one" in path.name] == []
    assert own_descriptors() == before


@pytest.mark.parametrize("version", ["first", "second"])
def test_limits_that_are_in_force_are_read_back(version: str, request: pytest.FixtureRequest) -> None:
    payload = Groups(request.getfixturevalue(version), "one")
    payload.make()
    payload.limit(1 << 20, 7, 500)
    limits = {"memory_bytes": 1 << 20, "processes": 7, "cpu_millis": 500, "worker_cpu_millis": 200}
    assert payload.limits_in_force() == limits


def test_each_worker_has_a_cpu_group_of_its_own_and_lives_with_the_others_else(
    first: CgroupTree, tmp_path: Path
) -> None:
    rooms = [Groups(first, name) for name in ("one", "two")]
    for payload in rooms:
        payload.make()
        payload.limit(1 << 20, 7, 500)
    homes = [[led(fd).removeprefix(f"{tmp_path}/") for fd in payload.worker_group] for payload in rooms]
    assert homes == [
        ["memory/_workers/tasks", f"pids/{name}/tasks", f"cpu/_workers/{name}/tasks", "cpuacct/_workers/tasks"]
        for name in ("one", "two")
    ]
    member = {"memory": "/_workers", "pids": "/one", "cpu": "/_workers/one", "cpuacct": "/_workers", "cpuset": "/one"}
    member = {name: f"/bulkhead/1{path}" for name, path in member.items()}
    assert rooms[0].not_with_workers(member) == []
    assert rooms[1].not_with_workers(member) == ["cpu", "cpuset", "pids"]
    assert rooms[0].not_with_workers(member | {"cpu": "/bulkhead/1/_workers"}) == ["cpu"], "no limit of its own"
