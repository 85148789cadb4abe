"""One layer at a time around a program: `python -m tests.kernel.attacks.layers LAYER NETWORK FOLDER PROGRAM ARG...`.

The layers are made by the launcher's own steps, in the launcher's order, minus those of the other layers. The program
starts in FOLDER (with `namespaces`: in the sandbox's /workspace). Whatever the layer, it runs as root of the host in a
mount and UTS namespace of its own, so that what gets through hurts nobody.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.launcher.config import Config
from app.launcher.daemon import template
from app.launcher.daemon.zygote import _CLONE
from app.launcher.kernel import landlock, seccomp
from app.launcher.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    clone3,
    mount,
    unshare,
)
from app.launcher.protocol import CreatePlan
from app.launcher.sandbox import lockdown, mounts, steps

LAYERS = ("none", "seccomp", "landlock", "namespaces")
UID = 1_890_000_000  # of nobody on the host, and outside of any service's range
_NAMESPACES = (
    "enter_network_namespace", "raise_loopback", "name_host", "enter_cgroup_namespace",
    "take_identity", "mount_proc", "mask_proc", "mount_storage", "set_limits",
    "empty_bounding_set", "drop_all_capabilities", "prove_identity",
)  # fmt: skip


def _room(config: Config, read_only: list[str], read_write: list[str]) -> Any:
    """As much of a `SandboxSetup` as the steps below look at."""
    program = seccomp.compile_filter("default", os.uname().machine)
    return SimpleNamespace(
        config=config,
        plan=CreatePlan("layer", "host", "default", 1000, 1 << 28, 1 << 26, 64, False, read_only, read_write),
        uid=mounts.INSIDE_ID,
        filters={"default": program},
        landlock_abi=landlock.abi(),
        masks=[],
        group_mounts=[],
        rules=None,
    )


def apply(layer: str, folder: str, program: str) -> None:
    config = Config()
    config.run_dir = folder + "/run"
    config.root_paths = ["/usr"]
    setup = _room(config, ["/usr", "/etc", str(Path(program).parent)], [folder])
    if layer == "seccomp":
        lockdown.forbid_new_privileges(setup)
        lockdown.filter_system_calls(setup)
    elif layer == "landlock":
        lockdown.forbid_new_privileges(setup)
        lockdown.restrict_files(setup)
    elif layer == "namespaces":
        _enter_namespaces(config, setup)
        os.chdir("/workspace")


def _enter_namespaces(config: Config, setup: Any) -> None:
    template.enter_template(config, [])
    setup.masks = template.masks()
    mapped, go = os.pipe()
    pid, _ = clone3(_CLONE | CLONE_NEWUSER)
    if pid == 0:
        os.read(mapped, 1)
        for name in _NAMESPACES:
            step = getattr(steps, name, None) or getattr(lockdown, name)
            step(setup)
        return
    for name in ("uid_map", "gid_map"):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        os.write(descriptor, b"%d %d 1" % (mounts.INSIDE_ID, UID))
    os.write(go, b"x")
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def main(layer: str, network: str, folder: str, program: str, *arguments: str) -> None:
    """`network`: `own`, or `host` for attacks on what listens there."""
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (CLONE_NEWNET if network == "own" else 0))
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    if network == "own":
        steps.raise_loopback(_room(Config(), [], []))
        os.environ["OWN_NETWORK"] = "1"
    os.chdir(folder)
    descriptor = os.open(program, os.O_RDONLY | os.O_CLOEXEC)  # by its path a sandbox does not see it
    apply(layer, folder, program)
    os.execve(descriptor, [program, *arguments], os.environ)


if __name__ == "__main__":
    main(*sys.argv[1:])
