"""One isolation action, one function: `step(room) -> None`, raises OSError. The order is in `confine.py`.

A step's name is what the client reads when the kernel refuses it.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import struct

from app.launcher import landlock, mounts, seccomp
from app.launcher.config import Config
from app.launcher.packets import receive
from app.launcher.protocol import GO, IDENTITY, NETWORK_UP, CreatePlan, Reader, pack_command, unpack_command
from app.launcher.spawn import search_and_spawn
from app.launcher.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    NR_CLONE3,
    NR_KEYCTL,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    close_range,
    permitted_capabilities,
    prctl,
    set_capabilities,
    set_group_ids,
    set_user_ids,
    sethostname,
    syscall,
    unshare,
)

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NOFILE_SOFT, _NOFILE_HARD = 1024, 65_536


class Room:
    """Everything that the steps of one sandbox need. Lives in the copy of the launcher that becomes the worker."""

    __slots__ = (
        "channel", "config", "filters", "home", "landlock_abi", "masks", "null", "owner", "plan", "processes_file",
        "uid",
    )  # fmt: skip

    def __init__(self, config: Config, channel: _socket.socket, null: int, uid: int) -> None:
        self.config = config
        self.channel = channel  # to the launcher
        self.null = null
        self.uid = uid  # as it is called inside
        self.landlock_abi = 0
        self.filters: dict[str, bytes] = {}
        self.masks: list[tuple[str, str]] = []
        # These come with the plan.
        self.plan: CreatePlan
        self.owner: _socket.socket  # to the gateway
        self.home: list[int] = []
        self.processes_file = -1


# --- the room


def let_go_of_the_launcher(room: Room) -> None:
    """Every descriptor but ours: other sandboxes' sockets and groups must not be in reach even of the worker."""
    for number in range(3):
        os.dup2(room.null, number)
    first = 3
    for descriptor in sorted({room.channel.fileno(), room.null}):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, 0xFFFFFFFF)


def join_cgroup(room: Room) -> None:
    for descriptor in room.home:
        os.write(descriptor, b"0")


def enter_cgroup_namespace(room: Room) -> None:
    unshare(CLONE_NEWCGROUP)


def enter_network_namespace(room: Room) -> None:
    unshare(CLONE_NEWNET)


def raise_loopback(room: Room) -> None:
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        fcntl.ioctl(socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    finally:
        socket.close()


def show_network(room: Room) -> None:
    room.channel.send(bytes((NETWORK_UP,)))


def name_host(room: Room) -> None:
    sethostname(room.config.hostname.encode())


def await_identity(room: Room) -> None:
    """The launcher writes the uid and gid maps; until then nothing inside can have an owner."""
    if room.channel.recv(1) != bytes((IDENTITY,)):
        raise OSError(errno.EPIPE, "the launcher went away")


def await_plan(room: Room) -> None:
    """What this sandbox is to be, with the owner's socket, the ways out of the limits, and the room's pids.max."""
    word, descriptors = receive(room.channel)
    if not word:
        raise OSError(errno.EPIPE, "the launcher went away")
    source = Reader(word)
    if source.u8() != GO:
        raise OSError(errno.EPROTO, "not a plan")
    has_processes_file = source.u8()
    room.plan = CreatePlan.read(source)
    room.owner = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptors.pop(0))
    room.processes_file = descriptors.pop() if has_processes_file else -1
    room.home = descriptors


def leave_keyring(room: Room) -> None:
    """The session keyring is inherited from whoever started the service; a new, empty one takes its place."""
    try:
        syscall(NR_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to leave
            raise


def take_identity(room: Room) -> None:
    """Supplementary groups first: without CAP_SETGID they would stay. Capabilities survive this, as uid 0 of the
    namespace is not mapped; they go in `drop_all_capabilities`."""
    os.setgroups([])
    set_group_ids(room.uid)
    if room.uid != mounts.INSIDE_ID:  # no user namespace: uid 0 is root, and leaving it would take them away here
        prctl(PR_SET_KEEPCAPS, 1)
        held = permitted_capabilities()
        set_user_ids(room.uid)
        set_capabilities(held)
    else:
        set_user_ids(room.uid)


def mount_proc(room: Room) -> None:
    mounts.mount_proc()


def mask_proc(room: Room) -> None:
    mounts.mask_proc(room.masks)


def prove_masks(room: Room) -> None:
    if found := mounts.unmasked(room.masks):
        raise OSError(errno.EACCES, f"{found[0]} can be read")


def mount_storage(room: Room) -> None:
    mounts.mount_private_storage()


def size_storage(room: Room) -> None:
    mounts.size_private_storage(room.plan.disk_bytes)


def mount_terminals(room: Room) -> None:
    mounts.mount_terminals()


def rehearse(room: Room) -> None:
    """Does once, without effect, what somebody will wait for later: a rule set that is thrown away, a command that does
    not exist. The pages that this writes to become the copy's own now (measured: a first command in a copy that was
    made ahead takes 0.8 ms less)."""
    if room.landlock_abi:
        rules = _rules(room, loopback_tcp=False)
        rules.allow("/usr", landlock.READ)
        rules.close()
    argv, env, _ = unpack_command(pack_command([b"/nonexistent"], [b"PATH=/nonexistent"], b"/"))
    try:
        search_and_spawn(argv, env, [room.null] * 3)
    except OSError:
        return


# --- the lock


def set_limits(room: Room) -> None:
    # Not 0: a core_pattern that is a pipe ignores that and would feed a program of the host, core(5); 1 stops both
    # kinds. The system call filter keeps commands from setting it to something else.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ceiling = _NOFILE_HARD if hard == resource.RLIM_INFINITY else min(hard, _NOFILE_HARD)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_NOFILE_SOFT, ceiling), ceiling))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65_536, 65_536))
    resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    # A service may run at a better priority than others, or in real time; what it starts for strangers may not.
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    os.umask(0o022)


def empty_bounding_set(room: Room) -> None:
    capability = 0
    while True:
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL and capability > 37:  # past the last one this kernel knows (37: Linux 3.16)
                return
            raise
        capability += 1


def drop_all_capabilities(room: Room) -> None:
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    set_capabilities(0)


def prove_identity(room: Room) -> None:
    if os.getresuid() != (room.uid,) * 3 or os.getresgid() != (room.uid,) * 3 or os.getgroups():
        raise OSError(errno.EPERM, "the identity was not taken")
    try:
        set_user_ids(0)
    except OSError:
        return
    raise OSError(errno.EPERM, "the way back to root is open")


def die_with_the_launcher(room: Room) -> None:
    """Set again here: the kernel clears it at every change of credentials. That the launcher is still there the worker
    sees on its channel."""
    prctl(PR_SET_PDEATHSIG, 9)


def forbid_new_privileges(room: Room) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def hide_from_commands(room: Room) -> None:
    """Commands share the worker's uid: not dumpable means no ptrace, no /proc/1/mem, no /proc/1/fd for them. It does
    not outlive exec, so commands themselves stay debuggable by nobody but their own kind."""
    prctl(PR_SET_DUMPABLE, 0)


def _rules(room: Room, *, loopback_tcp: bool) -> landlock.Ruleset:
    version = room.landlock_abi
    return landlock.Ruleset(
        version,
        files=landlock.handled_files(version),
        network=0 if loopback_tcp else landlock.handled_network(version),
        scopes=landlock.handled_scopes(version),
    )


def restrict_files(room: Room) -> None:
    version, plan = room.landlock_abi, room.plan
    if version == 0:
        return  # only when the operator gave the layer up by name: the launcher checked
    rules = _rules(room, loopback_tcp=plan.loopback_tcp)
    for path in plan.read_only:
        rules.allow(path, landlock.READ)
        if path == "/usr":  # on a host without merged /usr the rest of the system lies beside it
            for name in mounts.SYSTEM_LINKS:
                if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"):
                    rules.allow(f"/{name}", landlock.READ)
    for path in plan.read_write:
        rules.allow(path, landlock.read_write(version))
    rules.allow("/proc", landlock.LOOK)
    rules.allow("/dev", landlock.READ_DIR | landlock.NODE)  # the template has only harmless devices there
    if "/usr" in plan.read_only:
        rules.allow("/", landlock.READ_DIR)  # names only, and of nothing but the system: people begin with `ls /`
    rules.enforce()


def filter_system_calls(room: Room) -> None:
    seccomp.load(room.filters[room.plan.filter_name])


# --- the proof


def prove_read_only_root(room: Room) -> None:
    for path in ("/", "/usr", "/proc"):
        if not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, f"{path} is writable")


def prove_landlock(room: Room) -> None:
    """The canary may be read as far as owners and mounts are concerned; no rule names it."""
    if room.landlock_abi:
        try:
            os.close(os.open(mounts.CANARY, os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return
        raise OSError(errno.ENOTSUP, "Landlock let a file through that no rule names")


def prove_filter(room: Room) -> None:
    """clone3 with no arguments is EINVAL in every kernel that has it (5.3), so ENOSYS is the filter's word."""
    try:
        syscall(NR_CLONE3, None, 0)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return
    raise OSError(errno.ENOTSUP, "the system call filter let clone3 through")
