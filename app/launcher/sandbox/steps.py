"""One isolation action, one function: `step(setup: SandboxSetup) -> None`, raises OSError.

The order is in `confine.py`. When the kernel refuses a step, the client reads its name.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

from app.launcher.kernel.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    NR_KEYCTL,
    PR_SET_KEEPCAPS,
    attach_mount,
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
from app.launcher.protocol import DISK, GO, GROUPS, IDENTITY, LISTENERS, NETWORK_UP, TERMINALS, CreatePlan, Reader
from app.launcher.protocol.packets import receive, send
from app.launcher.sandbox import mounts, network, own_memory, trust
from app.launcher.sandbox.own_memory import OwnMemory
from app.launcher.sandbox.setup import SandboxSetup

# Of the network namespace, below /proc/sys/net. An older kernel may have one of them for the whole host, and not here.
_NETWORK_SETTINGS = (
    ("core/tstamp_allow_data", b"0"),
    ("ipv4/tcp_syncookies", b"0"),
    ("ipv4/tcp_abort_on_overflow", b"1"),
)
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_KEYCTL_JOIN_SESSION_KEYRING = 1
_MOST_CPUS = 8192  # CONFIG_NR_CPUS of the largest kernels


def let_go_of_the_launcher(setup: SandboxSetup) -> None:
    """Closes every descriptor but the clone's own: even the worker must not reach sockets and groups of other
    sandboxes."""
    for number in range(3):
        os.dup2(setup.null, number)
    first = 3
    for descriptor in sorted({setup.channel.fileno(), setup.null}):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, 0xFFFFFFFF)


def await_groups(setup: SandboxSetup) -> None:
    """Takes the descriptors that lead into the sandbox's control groups and out of them, and its pids.max and
    pids.current."""
    source, descriptors = _receive(setup, GROUPS, "no control groups")
    join_descriptors, counts_processes = source.u8(), source.u8()
    if counts_processes:
        setup.processes_count, setup.processes_file = descriptors.pop(), descriptors.pop()
    setup.join_descriptors, setup.worker_group = descriptors[:join_descriptors], descriptors[join_descriptors:]


def enter_own_cgroup(setup: SandboxSetup) -> None:
    for descriptor in setup.join_descriptors:
        os.write(descriptor, b"0")


def enter_cgroup_namespace(setup: SandboxSetup) -> None:
    unshare(CLONE_NEWCGROUP)


def mount_groups(setup: SandboxSetup) -> None:
    for group in setup.group_mounts:
        group.attach()


def prove_groups(setup: SandboxSetup) -> None:
    """What is mounted is the sandbox's own group, into which the launcher's descriptors lead, and read-only."""
    for group in setup.group_mounts:
        group.prove(setup.join_descriptors[group.number])


def join_cgroup(setup: SandboxSetup) -> None:
    for descriptor in setup.worker_group:
        os.write(descriptor, b"0")
    with_memory = next((group.number for group in setup.group_mounts if group.has_memory), -1)
    for number, descriptor in enumerate(setup.join_descriptors):
        if number == with_memory:
            setup.memory_group = descriptor
        else:
            os.close(descriptor)


def open_network(setup: SandboxSetup) -> None:
    """For a plan with ports: makes every address the sandbox's own, and sends the launcher a listening socket for each
    port and the resolver's socket. None of them stays here."""
    if not setup.plan.ports:
        return
    setup.ipv6 = network.own_every_address()
    sockets = [network.name_socket(), *network.listeners(setup.plan.ports, ipv6=setup.ipv6)]
    send(setup.channel, bytes((LISTENERS,)), [socket.fileno() for socket in sockets])
    for socket in sockets:
        socket.close()


def keep_to_cpus(setup: SandboxSetup) -> None:
    """On a host without the cpuset controller. Commands inherit it and can undo it."""
    if setup.cpus:
        os.sched_setaffinity(0, setup.cpus)


def enter_network_namespace(setup: SandboxSetup) -> None:
    """It also forbids that copies of sent datagrams come back with a time stamp (net.core.tstamp_allow_data,
    sysctl/net.rst). A control message of sendmsg can ask for them, which no filter sees. They wait in the socket's
    error queue, charged to nobody: 1,500 sockets took 298 MiB of the host (measured).

    And a connection that finds a backlog full is not forgotten by one side alone (networking/ip-sysctl.rst). With SYN
    cookies, or without an abort, its client was connected and nobody ever answered it: one of 200 at once, measured.
    """
    unshare(CLONE_NEWNET)
    for name, value in _NETWORK_SETTINGS:
        path = f"/proc/sys/net/{name}"
        if os.path.exists(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(descriptor, value)
            os.close(descriptor)


def raise_loopback(setup: SandboxSetup) -> None:
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        fcntl.ioctl(socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    finally:
        socket.close()


def show_network(setup: SandboxSetup) -> None:
    setup.channel.send(bytes((NETWORK_UP,)))


def name_host(setup: SandboxSetup) -> None:
    sethostname(setup.config.hostname.encode())


def await_identity(setup: SandboxSetup) -> None:
    """Waits until the launcher has written the uid and gid maps. Before that nothing inside can have an owner."""
    if setup.channel.recv(1) != bytes((IDENTITY,)):
        raise OSError(errno.EPIPE, "the launcher went away")


def await_plan(setup: SandboxSetup) -> None:
    """Takes the plan of this sandbox and the owner's socket."""
    source, descriptors = _receive(setup, GO, "not a plan")
    setup.cpus = [int(text) for text in source.many(_MOST_CPUS, 8)]
    setup.plan = CreatePlan.read(source)
    setup.owner = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptors[0])


def leave_keyring(setup: SandboxSetup) -> None:
    """Replaces the session keyring, which was inherited from whoever started the service, by a new, empty one."""
    try:
        syscall(NR_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to leave
            raise


def take_identity(setup: SandboxSetup) -> None:
    """Drops supplementary groups first, as without CAP_SETGID they would stay. Capabilities survive this, as uid 0 of
    the namespace is not mapped. `drop_all_capabilities` drops them."""
    os.setgroups([])
    set_group_ids(setup.uid)
    if setup.uid != mounts.INSIDE_ID:  # no user namespace: uid 0 is root, and leaving it would take them away here
        prctl(PR_SET_KEEPCAPS, 1)
        held = permitted_capabilities()
        set_user_ids(setup.uid)
        set_capabilities(held)
    else:
        set_user_ids(setup.uid)


def mount_proc(setup: SandboxSetup) -> None:
    mounts.mount_proc()


def mask_proc(setup: SandboxSetup) -> None:
    mounts.mask_proc(setup.masks)


def prove_masks(setup: SandboxSetup) -> None:
    if found := mounts.unmasked(setup.masks):
        raise OSError(errno.EACCES, f"{found[0]} can be read")


def mount_storage(setup: SandboxSetup) -> None:
    with_meminfo = any(group.has_memory for group in setup.group_mounts)
    setup.meminfo = mounts.mount_private_storage(with_meminfo=with_meminfo)


def size_storage(setup: SandboxSetup) -> None:
    """With a disk it is that of /dev/shm alone."""
    most = setup.plan.memory_bytes - mounts.NEVER_FILES
    size = most if setup.plan.on_disk else min(setup.plan.disk_bytes, most)
    mounts.size_private_storage(size + own_memory.FILE_BYTES if setup.meminfo >= 0 else size)


def mount_disk(setup: SandboxSetup) -> None:
    """The launcher's child made it: a file system with a device is root's of the host to mount."""
    if setup.plan.on_disk:
        disk = _receive_mount(setup, DISK)
        setup.disk_device = os.fstat(disk).st_dev
        mounts.mount_private_disk(disk)
        os.close(disk)


def prove_storage(setup: SandboxSetup) -> None:
    """/workspace and /tmp are on the disk, if the plan asks for one. Else they are where /dev/shm is."""
    wanted = setup.disk_device if setup.plan.on_disk else os.stat("/dev/shm").st_dev  # noqa: S108
    for path in ("/workspace", "/tmp"):  # noqa: S108
        if os.stat(path).st_dev != wanted:
            raise OSError(errno.EXDEV, f"{path} is on another file system")


def show_memory(setup: SandboxSetup) -> None:
    """Writes the limit into /proc/meminfo. The worker writes the other numbers when a command starts."""
    group = next((group for group in setup.group_mounts if group.has_memory), None)
    if group is not None:
        setup.memory = OwnMemory(setup.meminfo, group, setup.plan.memory_bytes)


def prove_memory(setup: SandboxSetup) -> None:
    if any(group.has_memory for group in setup.group_mounts):
        own_memory.prove(setup.plan.memory_bytes)


def trust_authority(setup: SandboxSetup) -> None:
    """For a plan with an authority: its certificate gets into the trust stores. These are files of the sandbox, so
    they are written from inside of its memory limit."""
    if setup.plan.authority:
        if setup.memory_group >= 0:
            os.write(setup.memory_group, b"0")
        trust.mount_stores(setup.trust_stores, setup.plan.authority)
        for descriptor in setup.worker_group:
            os.write(descriptor, b"0")
    if setup.memory_group >= 0:
        os.close(setup.memory_group)


def prove_trust(setup: SandboxSetup) -> None:
    if setup.plan.authority:
        trust.prove(setup.trust_stores, setup.plan.authority)


def mount_terminals(setup: SandboxSetup) -> None:
    """A devpts of its own. The launcher made it: what makes terminals in it must belong to root, and nobody here is."""
    terminals = _receive_mount(setup, TERMINALS)
    attach_mount(terminals, "/dev/pts")
    os.close(terminals)


def _receive_mount(setup: SandboxSetup, kind: int) -> int:
    _, descriptors = _receive(setup, kind, "no mount")
    if len(descriptors) != 1:
        raise OSError(errno.EPROTO, "no mount")
    return descriptors[0]


def _receive(setup: SandboxSetup, kind: int, otherwise: str) -> tuple[Reader, list[int]]:
    """The launcher's next message and its descriptors. `otherwise`: what it is if it is of another kind."""
    word, descriptors = receive(setup.channel)
    if not word:
        raise OSError(errno.EPIPE, "the launcher went away")
    source = Reader(word)
    if source.u8() != kind:
        raise OSError(errno.EPROTO, otherwise)
    return source, descriptors
