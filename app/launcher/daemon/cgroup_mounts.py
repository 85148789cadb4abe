"""Finds the host's control groups, and makes this instance's folder in them."""

from __future__ import annotations

import os

from app.launcher.daemon.cgroup import CgroupTree, Hierarchy
from app.launcher.daemon.cgroup_files import controllers_of
from app.launcher.daemon.cgroup_v1 import CgroupTreeV1
from app.launcher.daemon.cgroup_v2 import SERVICE, CgroupTreeV2

KINDS: dict[int, type[CgroupTree]] = {1: CgroupTreeV1, 2: CgroupTreeV2}
CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "cpuacct", "freezer")


def locate(mountinfo: str, membership: str) -> tuple[int, list[tuple[tuple[str, ...], str]]]:
    """(version, [(controllers, folder of our own group)]) from /proc/self/mountinfo and /proc/self/cgroup.

    It is version 2 where the unified tree has the controllers, and version 1 otherwise. A hybrid host mounts an empty
    version 2 tree beside the version 1 ones, so the files that exist decide and not the file systems.
    """
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(",") if names else ("",):
            own[name] = path
    first: list[tuple[tuple[str, ...], str]] = []
    unified = ""
    for line in mountinfo.splitlines():  # proc_pid_mountinfo(5)
        fields = line.split(" ")
        dash = fields.index("-")
        root, target, kind, options = fields[3], fields[4], fields[dash + 1], fields[dash + 3].split(",")
        if kind == "cgroup":
            here = tuple(name for name in CONTROLLERS if name in options)
            if here and all(here != seen for seen, _ in first):
                first.append((here, _below(target, root, own.get(here[0], "/"))))
        elif kind == "cgroup2" and not unified:
            # Once we moved ourselves into the leaf, see `CgroupTreeV2.make_parent`, ours is the group above it.
            unified = _below(target, root, own.get("", "/")).removesuffix("/" + SERVICE)
    if unified:
        with_controllers = controllers_of(unified)
        if {"memory", "pids", "cpu"} <= with_controllers:
            return 2, [(tuple(name for name in CONTROLLERS if name in with_controllers), unified)]
        if all(names in (("freezer",), ("cpuset",)) for names, _ in first):
            return 2, [(tuple(sorted(with_controllers & set(CONTROLLERS))), unified)]
    return 1, first


def _below(target: str, root: str, own: str) -> str:
    relative = own[len(root) :] if root != "/" and own.startswith(root) else own
    return (target + "/" + relative.strip("/")).rstrip("/")


def _all_names(controllers: tuple[str, ...], membership: str) -> str:
    """The controllers of that hierarchy, also those that the service has no use for. Empty for version 2."""
    listed = [line.split(":", 2)[1] for line in membership.splitlines()]
    return next((names for names in listed if set(controllers) & set(names.split(","))), "")


def open_tree(parent: str) -> CgroupTree:
    """Makes `parent` below the service's own group in every hierarchy and opens it. A layer that the host lacks is not
    in `layers`. Code that needs it refuses."""
    with open("/proc/self/mountinfo") as file:
        mountinfo = file.read()
    with open("/proc/self/cgroup") as file:
        membership = file.read()
    version, places = locate(mountinfo, membership)
    for _, folder in places:
        KINDS[version].obtain_controllers(folder)
    version, places = locate(mountinfo, membership)
    kind = KINDS[version]
    hierarchies: list[Hierarchy] = []
    for controllers, folder in places:
        try:
            kind.make_parent(folder, parent)
            descriptor = os.open(f"{folder}/{parent}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # read-only or not ours: the layer is missing, and `layers` says so
        hierarchies.append(Hierarchy(controllers, descriptor, _all_names(controllers, membership)))
    tree = kind(parent, hierarchies)
    tree.start()
    return tree
