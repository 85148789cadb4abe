"""The steps that take rights away, and the steps that prove it. They have the form of `steps.py`. None of them can be
undone."""

from __future__ import annotations

import errno
import os
import resource

from app.launcher.kernel import landlock, seccomp
from app.launcher.kernel.syscalls import (
    NR_CLONE3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    prctl,
    set_capabilities,
    set_user_ids,
    syscall,
)
from app.launcher.protocol import CreatePlan, Reader, Writer, pack_command, unpack_command
from app.launcher.sandbox import mounts, network, own_memory
from app.launcher.sandbox.setup import SandboxSetup
from app.launcher.sandbox.spawn import search_and_spawn

# The table of open files is one for the host and charged to nobody: every process of every sandbox may fill this much.
NOFILE_SOFT, NOFILE_HARD = 1024, 4096
# Signals that wait, and POSIX timers, which hold one each: of all processes of a sandbox together, getrlimit(2). The
# kernel's default is half of the host's threads.
SIGPENDING = 4096
MSGQUEUE = 819_200  # bytes in POSIX message queues, likewise for all together: the kernel's default
MEMLOCK = 65_536  # bytes
_LIMITS = {
    resource.RLIMIT_NOFILE: (NOFILE_SOFT, NOFILE_HARD),
    resource.RLIMIT_MEMLOCK: (MEMLOCK, MEMLOCK),
    resource.RLIMIT_SIGPENDING: (SIGPENDING, SIGPENDING),
    resource.RLIMIT_MSGQUEUE: (MSGQUEUE, MSGQUEUE),
}


def set_limits(setup: SandboxSetup) -> None:
    # Not 0: a core_pattern that is a pipe ignores that and would feed a program of the host, core(5); 1 stops both
    # kinds. The system call filter keeps commands from setting it to something else.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    for kind, (soft, hard) in _LIMITS.items():
        inherited = resource.getrlimit(kind)[1]
        ceiling = hard if inherited == resource.RLIM_INFINITY else min(inherited, hard)
        resource.setrlimit(kind, (min(soft, ceiling), ceiling))
    resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    # A service may run at a better priority than others, or in real time; what it starts for strangers may not.
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    os.umask(0o022)


def empty_bounding_set(setup: SandboxSetup) -> None:
    capability = 0
    while True:
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL and capability > 37:  # past the last one this kernel knows (37: Linux 3.16)
                return
            raise
        capability += 1


def rehearse(setup: SandboxSetup) -> None:
    """Does once, without effect, what a client will wait for later: it reads a plan, writes the text of a meminfo, and
    starts a command that does not exist. The pages that this writes to become the clone's own now (measured: the first
    command in a clone that was made ahead takes 0.8 ms less)."""
    plan = CreatePlan("x", "", "", 1, 1, 1, 1, False, ["/"], ["/"])
    CreatePlan.read(Reader(bytes(plan.write(Writer(0)).data[1:])))
    own_memory.text_of(1, 1, {})
    argv, env, _ = unpack_command(pack_command([b"/nonexistent"], [b"PATH=/nonexistent"], b"/"))
    try:
        search_and_spawn(argv, env, [setup.null] * 3)
    except OSError:
        return


def drop_all_capabilities(setup: SandboxSetup) -> None:
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    set_capabilities(0)


def prove_identity(setup: SandboxSetup) -> None:
    if os.getresuid() != (setup.uid,) * 3 or os.getresgid() != (setup.uid,) * 3 or os.getgroups():
        raise OSError(errno.EPERM, "the identity was not taken")
    try:
        set_user_ids(0)
    except OSError:
        return
    raise OSError(errno.EPERM, "the way back to root is open")


def die_with_the_launcher(setup: SandboxSetup) -> None:
    """Sets it again, as the kernel clears it at every change of credentials. The worker sees on its channel whether the
    launcher is still there."""
    prctl(PR_SET_PDEATHSIG, 9)


def forbid_new_privileges(setup: SandboxSetup) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def hide_from_commands(setup: SandboxSetup) -> None:
    """Makes the worker not dumpable. Commands have its uid, and this denies them ptrace, /proc/1/mem and /proc/1/fd.
    The flag does not survive exec, so it does not apply to commands."""
    prctl(PR_SET_DUMPABLE, 0)


def begin_rules(setup: SandboxSetup) -> None:
    """The rules that most plans have. What is mounted below their folders later is below these rules too."""
    if setup.landlock_abi:
        setup.rules = _fixed_rules(setup, loopback_tcp=False)


def _fixed_rules(setup: SandboxSetup, *, loopback_tcp: bool) -> landlock.Ruleset:
    version = setup.landlock_abi
    rules = landlock.Ruleset(
        version,
        files=landlock.handled_files(version),
        network=0 if loopback_tcp else landlock.handled_network(version),
        scopes=landlock.handled_scopes(version),
    )
    rules.allow("/proc", landlock.LOOK)
    if setup.group_mounts:
        rules.allow("/sys", landlock.LOOK)  # of the template, and empty but for the sandbox's own groups
    rules.allow("/dev", landlock.READ_DIR | landlock.NODE)  # the template has only harmless devices there
    for path in ("/dev/pts", "/dev/tty"):
        rules.allow(path, landlock.TERMINAL)
    return rules


def limits_tcp(setup: SandboxSetup) -> bool:
    """Whether Landlock decides about TCP. With `loopback_tcp` the network namespace alone is the fence."""
    return bool(landlock.handled_network(setup.landlock_abi)) and not setup.plan.loopback_tcp


def restrict_files(setup: SandboxSetup) -> None:
    version, plan = setup.landlock_abi, setup.plan
    if version == 0:
        return  # only when the operator gave the layer up by name: the launcher checked
    rules = setup.rules
    if rules is None or plan.loopback_tcp:
        rules = _fixed_rules(setup, loopback_tcp=plan.loopback_tcp)
        if setup.rules is not None:
            setup.rules.close()
    for path in plan.read_only:
        rules.allow(path, landlock.READ)
        if path == "/usr":  # on a host without merged /usr the rest of the system lies beside it
            for name in mounts.SYSTEM_LINKS:
                if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"):
                    rules.allow(f"/{name}", landlock.READ)
    for path in plan.read_write:
        rules.allow(path, landlock.read_write(version))
    if limits_tcp(setup):
        for port in plan.ports:
            rules.allow_connect(port)
    if "/usr" in plan.read_only:
        rules.allow("/", landlock.READ_DIR)  # names only, and of nothing but the system: people begin with `ls /`
    rules.enforce()


def filter_system_calls(setup: SandboxSetup) -> None:
    seccomp.load(setup.filters[setup.plan.filter_name])


# --- the proof


def prove_read_only_root(setup: SandboxSetup) -> None:
    own = [own_memory.PLACE] if setup.meminfo >= 0 else []
    for path in ("/", "/usr", "/proc", *own):
        if not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, f"{path} is writable")


def prove_landlock(setup: SandboxSetup) -> None:
    """Tries to read a file that owners and mounts allow and that no rule names."""
    if setup.landlock_abi:
        try:
            os.close(os.open(mounts.CANARY, os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return
        raise OSError(errno.ENOTSUP, "Landlock let a file through that no rule names")


def prove_network(setup: SandboxSetup) -> None:
    """For a plan with ports: every address is the sandbox's own, and a port that is not listed is refused, by Landlock
    where it limits TCP. No plan lists the resolver's."""
    if setup.plan.ports:
        network.prove_any_address(ipv6=setup.ipv6)
        network.prove_refused(errno.EACCES if limits_tcp(setup) else errno.ECONNREFUSED)


def prove_filter(setup: SandboxSetup) -> None:
    """clone3 without arguments is EINVAL in every kernel that has it (5.3), so ENOSYS comes from the filter."""
    try:
        syscall(NR_CLONE3, None, 0)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return
    raise OSError(errno.ENOTSUP, "the system call filter let clone3 through")
