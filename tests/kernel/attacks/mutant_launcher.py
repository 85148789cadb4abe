"""The launcher with one of its layers switched off: `mutant_launcher.py PROJECT MUTATION CONFIG_FD PARENT`.

For tests alone: the change is made here, in this process, and nothing in `app` knows of it. `none` is the launcher as
it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv.pop(1))

from app.launcher import __main__ as launcher
from app.launcher.daemon import template, terminals, zygote
from app.launcher.kernel import bpf, landlock, seccomp
from app.launcher.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    PR_SET_DUMPABLE,
    clone3,
    prctl,
)
from app.launcher.sandbox import confine, mounts, network, own_groups, own_memory, steps, worker


def nothing(*_: Any, **__: Any) -> None:
    pass


def without_step(name: str, instead: Callable[..., Any] = nothing) -> Callable[[], None]:
    def mutate() -> None:
        found = 0
        for group, members in tuple(vars(confine).items()):
            if isinstance(members, tuple):
                found += sum(step.__name__ == name for step in members)
                setattr(confine, group, tuple(instead if step.__name__ == name else step for step in members))
        if not found:
            raise LookupError(name)

    return mutate


def without_clone_flag(flag: int) -> Callable[[], None]:
    def mutate() -> None:
        clone = vars(zygote)["clone_owned_by"]
        replaced(zygote, "clone_owned_by", lambda uid, flags: clone(uid, flags & ~flag))()

    return mutate


def replaced(module: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(module, name, value)


def allowed(*names: str) -> Callable[[], None]:
    """System calls that the filter lets through whatever their arguments."""
    return lambda: seccomp.CONDITIONAL.update(dict.fromkeys(names, bpf.ALLOW))


def mounted_without(flags: int, only_if: int = 0) -> Callable[[], None]:
    def mutate() -> None:
        mount = vars(template)["mount"]

        def wrong(source: str, target: str, kind: str | None, given: int, data: str | None = None) -> None:
            if given & only_if == only_if:
                given &= ~flags
            mount(source, target, kind, given, data)

        replaced(template, "mount", wrong)()

    return mutate


def _ruleset_without(part: str) -> Callable[[], None]:
    ruleset = landlock.Ruleset
    return replaced(landlock, "Ruleset", lambda version, **handled: ruleset(version, **{**handled, part: 0}))


def _one_port_more() -> None:
    allow = landlock.Ruleset.allow_connect

    def wrong(rules: landlock.Ruleset, port: int) -> None:
        allow(rules, port)
        allow(rules, 53)

    replaced(landlock.Ruleset, "allow_connect", wrong)()


def _one_listener_less() -> None:
    send = vars(steps)["send"]
    replaced(steps, "send", lambda channel, word, sockets: send(channel, word, sockets[:-1]))()


def _proc_writable() -> None:
    mount = vars(mounts)["mount"]
    replaced(mounts, "mount_proc", lambda: mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV))()


def _meminfo_writable() -> None:
    mount = vars(mounts)["mount"]

    def wrong(source: str, target: str, kind: str | None, given: int, data: str | None = None) -> None:
        mount(source, target, kind, given & ~MS_RDONLY if target == own_memory.PLACE else given, data)

    replaced(mounts, "mount", wrong)()


MUTATIONS: dict[str, Callable[[], None]] = {
    "none": nothing,
    "seccomp_off": replaced(seccomp, "load", nothing),
    "seccomp_allows_all": replaced(seccomp, "compile_filter", lambda *_: bpf.assemble(bpf.ALLOW)),
    "landlock_off": without_step("restrict_files"),
    "landlock_rules_for_all": replaced(mounts, "CANARY", "/etc/passwd"),
    "no_new_privs_off": without_step("forbid_new_privileges"),
    "capabilities_kept": without_step("drop_all_capabilities"),
    "bounding_set_kept": without_step("empty_bounding_set"),
    "identity_kept": without_step("take_identity"),
    "user_namespace_of_root": replaced(zygote, "clone_owned_by", lambda _, flags: clone3(flags)),
    "no_user_namespace": without_clone_flag(CLONE_NEWUSER),
    "no_mount_namespace": without_clone_flag(CLONE_NEWNS),
    "no_pid_namespace": without_clone_flag(CLONE_NEWPID),
    "no_ipc_namespace": without_clone_flag(CLONE_NEWIPC),
    "no_uts_namespace": without_clone_flag(CLONE_NEWUTS),
    "no_network_namespace": without_step("enter_network_namespace"),
    "no_cgroup_namespace": without_step("enter_cgroup_namespace"),
    "groups_of_workers": without_step("enter_own_cgroup"),
    "groups_writable": replaced(own_groups, "READ_ONLY", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    "meminfo_writable": _meminfo_writable,
    "root_writable": mounted_without(MS_RDONLY, MS_REMOUNT | MS_BIND),
    "usr_writable": replaced(template, "mount_setattr", nothing),
    "proc_writable": _proc_writable,
    "proc_unmasked": without_step("mask_proc"),
    # Of plans with ports.
    "network_not_opened": without_step("open_network"),
    "addresses_not_owned": replaced(network, "own_every_address", lambda: True),
    "listener_kept": _one_listener_less,
    "other_ports_connected": _one_port_more,
    # Served: nothing measures these, so attacks must notice.
    "worker_dumpable": without_step("hide_from_commands", lambda _: prctl(PR_SET_DUMPABLE, 1)),
    "no_limits": without_step("set_limits"),
    "landlock_without_tcp": _ruleset_without("network"),
    "landlock_without_scopes": _ruleset_without("scopes"),
    "landlock_without_ioctl": replaced(landlock, "_FS_BY_ABI", (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0x7FFF)),
    "landlock_without_char_devices": replaced(landlock, "MAKE_CHAR", 0),
    "clone_unfiltered": allowed("clone"),
    "sockets_unfiltered": allowed("socket", "sendto", "sendmsg"),
    "socket_options_unfiltered": allowed("setsockopt"),
    "prctl_unfiltered": allowed("prctl"),
    "seccomp_call_allowed": allowed("seccomp"),
    "ptrace_allowed": allowed("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
    "io_uring_allowed": allowed("io_uring_setup"),
    "keys_allowed": allowed("keyctl", "add_key"),
    "worker_never_rests": replaced(worker, "_REST", 0),
    "terminals_made_by_all": replaced(terminals, "_MAKERS", "0666"),
}


if __name__ == "__main__":
    MUTATIONS[sys.argv.pop(1)]()
    launcher.main(int(sys.argv[1]), int(sys.argv[2]))
