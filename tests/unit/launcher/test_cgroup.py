"""Finding our control groups in recorded hosts, and what is written into them, on a fake tree of plain files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.launcher.daemon import cgroup_mounts
from app.launcher.daemon.cgroup import Hierarchy
from app.launcher.daemon.cgroup_files import cpus_of, field, list_of, number_of
from app.launcher.daemon.cgroup_mounts import locate
from app.launcher.daemon.cgroup_v1 import CgroupTreeV1
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2

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
        (("freezer",), f"{tmp_path}/freezer"),
    ])  # fmt: skip


def test_version_1_in_a_container_counts_from_the_mounts_root(tmp_path: Path) -> None:
    mounts = f"32 24 0:28 /docker/abc {tmp_path}/memory ro - cgroup cgroup rw,memory\n"
    assert locate(mounts, "4:memory:/docker/abc\n")[1] == [(("memory",), f"{tmp_path}/memory")]
    assert locate(mounts, "4:memory:/docker/abc/in/it\n")[1] == [(("memory",), f"{tmp_path}/memory/in/it")]


def test_the_first_of_two_mounts_of_the_same_controller_counts(tmp_path: Path) -> None:
    twice = V1.format(root=tmp_path) + f"40 24 0:28 / {tmp_path}/again rw - cgroup cgroup rw,memory\n"
    found = [names for names, _ in locate(twice, V1_MEMBERS)[1]]
    assert found == [("cpu", "cpuacct"), ("memory",), ("pids",), ("freezer",)]


def test_version_2_is_one_tree_with_all_controllers(tmp_path: Path) -> None:
    folder = host(tmp_path, group="/system.slice/bulkhead.service")
    version, places = locate(V2.format(root=tmp_path), "0::/system.slice/bulkhead.service\n")
    assert (version, places) == (2, [(("memory", "pids", "cpu", "cpuset"), str(folder))])


def test_version_2_in_a_container_with_its_own_namespace(tmp_path: Path) -> None:
    host(tmp_path)
    assert locate(V2.format(root=tmp_path), "0::/\n") == (2, [(("memory", "pids", "cpu", "cpuset"), str(tmp_path))])


def test_version_2_without_cpuset_has_the_others(tmp_path: Path) -> None:
    host(tmp_path, "cpu io memory pids")
    version, places = locate(V2.format(root=tmp_path), "0::/\n")
    assert (version, places) == (2, [(("memory", "pids", "cpu"), str(tmp_path))])
    tree = CgroupTreeV2("x", [Hierarchy(places[0][0], -1)])
    assert tree.layers == {"cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_freezer"}
    CgroupTreeV2.make_parent(str(tmp_path), "bulkhead")
    assert (tmp_path / "bulkhead/cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_version_2_after_we_moved_ourselves_into_the_leaf(tmp_path: Path) -> None:
    folder = host(tmp_path, group="/a")
    assert locate(V2.format(root=tmp_path), "0::/a/service\n")[1][0][1] == str(folder)


def test_version_2_that_lacks_controllers_says_which_it_has(tmp_path: Path) -> None:
    host(tmp_path, "cpuset pids")
    version, places = locate(V2.format(root=tmp_path), "0::/\n")
    assert (version, places) == (2, [(("cpuset", "pids"), str(tmp_path))])
    layers = {"cgroup_cpuset", "cgroup_pids", "cgroup_freezer"}
    assert CgroupTreeV2("x", [Hierarchy(places[0][0], -1)]).layers == layers


def test_what_counts_nothing_on_version_1_does_not_hide_what_version_2_has(tmp_path: Path) -> None:
    host(tmp_path, "pids", group="/unified")
    freezer = V1.splitlines()[4].format(root=tmp_path)
    mounts = f"{freezer}\n{freezer.replace('freezer', 'cpuset')}\n{V2.format(root=f'{tmp_path}/unified')}"
    assert locate(mounts, "5:freezer:/\n0::/\n") == (2, [(("pids",), f"{tmp_path}/unified")])


def test_version_1_can_freeze_only_where_the_freezer_is_mounted() -> None:
    memory, freezer = Hierarchy(("memory",), -1), Hierarchy(("freezer",), -1)
    assert CgroupTreeV1("x", [memory]).freezer is None
    assert "cgroup_freezer" not in CgroupTreeV1("x", [memory]).layers
    assert CgroupTreeV1("x", [memory, freezer]).freezer is freezer
    assert CgroupTreeV1("x", [memory, freezer]).layers == {"cgroup_memory", "cgroup_freezer"}


def test_a_hybrid_host_is_version_1_as_its_unified_tree_is_empty(tmp_path: Path) -> None:
    host(tmp_path, "", group="/unified/init.scope")
    assert locate(HYBRID.format(root=tmp_path), V1_MEMBERS)[0] == 1


def test_a_hybrid_host_whose_unified_tree_has_the_controllers_is_version_2(tmp_path: Path) -> None:
    host(tmp_path, group="/unified/init.scope")
    assert locate(HYBRID.format(root=tmp_path), V1_MEMBERS)[0] == 2


def test_a_host_without_any_has_no_layer() -> None:
    assert locate("24 1 0:22 / / rw - ext4 /dev/vda rw\n", "") == (1, [])
    assert CgroupTreeV1("x", []).layers == set()


def test_version_1_gives_a_new_folder_the_processors_of_the_one_above(tmp_path: Path) -> None:
    """The kernel makes the files; without processors nobody could join."""
    for folder, text in ((tmp_path, "0-3\n"), (tmp_path / "bulkhead", ""), (tmp_path / "bulkhead/1", "")):
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            (folder / name).write_text(text)
    CgroupTreeV1.make_parent(str(tmp_path), "bulkhead/1")
    assert [(tmp_path / f"bulkhead/1/cpuset.{name}").read_text() for name in ("cpus", "mems")] == ["0-3\n"] * 2


def test_version_1_writes_no_processors_where_another_controller_is_mounted(tmp_path: Path) -> None:
    CgroupTreeV1.make_parent(str(tmp_path), "bulkhead/1")
    assert list((tmp_path / "bulkhead/1").iterdir()) == []


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8\n", [0, 1, 2, 3, 8]), ("5", [5]), ("\n", [])])
def test_a_list_of_processors_is_read_and_written(text: str, cpus: list[int]) -> None:
    assert (cpus_of(text), list_of(cpus)) == (cpus, text.strip())


@pytest.mark.parametrize(("text", "number"), [("max\n", 0), ("4096\n", 4096), ("1", 1)])
def test_no_limit_reads_as_0(text: str, number: int) -> None:
    assert number_of(text) == number


def test_a_field_is_found_by_its_whole_name() -> None:
    text = "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n"
    assert (field(text, "oom_kill"), field(text, "oom"), field("", "oom_kill")) == (3, 0, 0)


def test_version_2_moves_us_into_a_leaf_and_hands_controllers_down_to_our_folder(tmp_path: Path) -> None:
    ours = host(tmp_path, group="/system.slice/bulkhead.service")
    (ours / "cgroup.type").write_text("domain\n")
    (ours / "cgroup.procs").write_text("12\n13\n")
    (ours / "service").mkdir()
    CgroupTreeV2.make_parent(str(ours), "bulkhead/1")
    assert (ours / "service/cgroup.procs").read_text() == "13"  # the kernel moves what was written last, and before
    for group in (ours, ours / "bulkhead", ours / "bulkhead/1"):
        assert (group / "cgroup.subtree_control").read_text() == "+cpu +memory +pids +cpuset"


def test_version_2_hands_down_those_that_it_has_and_no_other(tmp_path: Path) -> None:
    host(tmp_path, "io memory")
    CgroupTreeV2.make_parent(str(tmp_path), "bulkhead")
    assert (tmp_path / "bulkhead/cgroup.subtree_control").read_text() == "+memory"


def test_version_2_turns_on_in_all_groups_above_what_ours_lacks(tmp_path: Path) -> None:
    """As systemd leaves it for a login session."""
    session = "/user.slice/user-0.slice/session-1.scope"
    above = [host(tmp_path), host(tmp_path, group="/user.slice")]
    above.append(host(tmp_path, "cpu memory pids", "/user.slice/user-0.slice"))
    ours = host(tmp_path, "cpu memory pids", session)
    for group in above:
        (group / "cgroup.subtree_control").write_text("")
    CgroupTreeV2.obtain_controllers(str(ours))
    assert [(group / "cgroup.subtree_control").read_text() for group in above] == ["", "+cpuset", "+cpuset"]
    assert not (ours / "cgroup.subtree_control").exists()


def test_version_2_leaves_us_in_the_root_group(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("12\n")
    CgroupTreeV2.make_parent(str(tmp_path), "bulkhead/1")
    assert not (tmp_path / "service").exists()
    assert (tmp_path / "bulkhead/1/cgroup.subtree_control").exists()


def test_only_the_classes_of_the_versions_know_which_it_is() -> None:
    daemon = Path(cgroup_mounts.__file__).parent
    files = [path for path in daemon.glob("*.py") if not path.name.startswith("cgroup_v")]
    assert [path.name for path in files if re.search(r"\bversion [=!]= [12]\b", path.read_text())] == []
