"""The system calls a sandbox may make: an allow list, compiled into the filter program that the kernel runs.

A filter sees a call's number and its register arguments, and never the memory behind a pointer. So Landlock and the
mounts decide which files can be opened, and the PID namespace decides which processes can be signalled.

A refused call returns an error with which programs can cope: EPERM; ENOSYS for calls newer than this table, and for
clone3, whose flags lie behind a pointer (libc then uses clone); EAFNOSUPPORT for kinds of sockets that "this kernel
does not have"; EOPNOTSUPP for extended attributes, as on a file system without them; ENOPROTOOPT, ENOTTY and EINVAL for
options and commands that are not in allowed_arguments.py. A process that enters the kernel by another ABI (32-bit,
x32), where the numbers mean other calls, is killed.

Measured on a 2-core guest with Linux 6.18, in fresh children, the medians of 200 loads each: 166 us, against 421 us for
the same rules one after the other
(`pytest tests/kernel/test_seccomp_filter.py -k load_time -s` measures both, in turns).
"""

from __future__ import annotations

import ctypes
from errno import EAFNOSUPPORT, EINVAL, ENOPROTOOPT, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM

from app.launcher.kernel import bpf
from app.launcher.kernel.allowed_arguments import (
    FCNTL_COMMANDS,
    IOCTL_COMMANDS,
    PRCTL_OPTIONS,
    SOCKET_OPTIONS,
    SOL_IP,
    SOL_IPV6,
    SOL_SOCKET,
    SOL_TCP,
    SOL_UDP,
)
from app.launcher.kernel.bpf import (
    ALLOW,
    KILL_PROCESS,
    PRETENDED,
    Node,
    refuse,
    when,
    when_any_bit,
    when_more,
    when_null,
)
from app.launcher.kernel.syscall_table import HIGHEST_KNOWN, NUMBERS
from app.launcher.kernel.syscalls import NR_SECCOMP, syscall

ALLOWED = (
    # Files. Which ones, and who may write them, Landlock, the mounts and the file modes decide.
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek open openat openat2 creat close"
    " close_range dup dup2 dup3 stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2"
    " readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2"
    " link linkat symlink symlinkat unlink unlinkat truncate ftruncate fallocate utime utimes futimesat utimensat"
    " flock fadvise64 readahead cachestat umask"
    " sendfile copy_file_range splice tee vmsplice inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    # Owners, modes, attributes. Programs that unpack and install call them; without capabilities they reach own files
    # only, and of mknod only FIFOs, sockets and plain files are left.
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat mknod mknodat"
    " getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat"
    " removexattr lremovexattr fremovexattr removexattrat file_getattr",
    # The own mount table, read only: what /proc/self/mountinfo shows.
    "statmount listmount",
    # Memory, with what just-in-time compilers need. A memfd that is executed stays as confined as its creator.
    "brk munmap mremap mprotect mincore mlock mlock2 munlock mlockall munlockall mseal"
    " pkey_alloc pkey_free pkey_mprotect map_shadow_stack membarrier",
    # Processes and threads. Everything here is inherited by what they start. The two probes are entered by trampolines
    # that a tracer on the host plants; without them a traced libc would break, and elsewhere they do nothing.
    "fork vfork execve execveat exit exit_group wait4 waitid pidfd_open getpid getppid gettid getpgid getpgrp setpgid"
    " getsid setsid set_tid_address set_robust_list get_robust_list rseq arch_prctl restart_syscall"
    " futex futex_waitv futex_wake futex_wait futex_requeue uretprobe uprobe",
    # Signals, which the PID namespace and Landlock's scope keep inside. PID 1 only receives those it has a handler for.
    "kill tkill tgkill pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo rt_sigaction rt_sigprocmask rt_sigpending"
    " rt_sigsuspend rt_sigtimedwait rt_sigreturn sigaltstack pause signalfd signalfd4",
    # Identity. To change it takes capabilities that nobody inside has; giving up what is not there must not fail.
    "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid"
    " setfsuid setfsgid setgroups capget capset",
    # Scheduling as far as it only asks, own limits, own usage.
    "sched_yield sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_get_priority_max"
    " sched_get_priority_min sched_rr_get_interval getpriority ioprio_get getcpu getrlimit getrusage times"
    " sysinfo uname getrandom",
    # Clocks to read and to wait for.
    "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer timer_create"
    " timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime",
    # Waiting for descriptors, and pipes.
    "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 pipe pipe2",
    # Sockets once they exist. Whom they reach the network namespace decides.
    "bind connect listen accept accept4 getsockname getpeername getsockopt shutdown recvfrom recvmsg recvmmsg",
    # System V and POSIX IPC, of the own IPC namespace.
    "shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl"
    " mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
    # To confine oneself further.
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
)

# Not in the list, and so refused, are the calls that administer the machine, make namespaces, mounts or more filters,
# reach into other processes or load programs into the kernel. Of what applications do ask for:
# - ptrace, process_vm_*, pidfd_getfd, kcmp, process_madvise: no debugger, not even of one's own children;
# - io_uring_*: whole families of calls that no filter sees. Runtimes fall back;
# - io_setup and the rest of Linux AIO: their contexts come out of one pool of the whole host;
# - mbind, set_mempolicy, move_pages and also get_mempolicy: with all refused, libnuma says "no NUMA here" and is quiet;
# - name_to_handle_at, fanotify_*, userfaultfd, memfd_secret, keyctl, modify_ldt: surface, and programs do without;
# - file_setattr, for the same reason as FS_IOC_FSSETXATTR below;
# - options and commands: see allowed_arguments.py.

# Every argument that is looked at below is an int or a 32-bit word to the kernel, so the low half is all of it:
# what else the register holds must not matter to the filter, as it does not to the kernel.

CLONE_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x40000, 0x4, 0x800
MS_SYNC, MADV_MERGEABLE = 4, 12
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE_MASK = 1, 2, 0xF
IPPROTO_TCP, IPPROTO_UDP, NETLINK_ROUTE = 6, 17, 0
SO_SNDBUF, SO_RCVBUF, SO_REUSEPORT = 7, 8, 15
SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF = 26, 50, 51, 52
SO_TIMESTAMPING_OLD, SO_TIMESTAMPING_NEW = 37, 65
IP_RECVERR, IPV6_RECVERR, UDP_CORK, TCP_ULP = 11, 25, 1, 31
MSG_FASTOPEN, MSG_MORE = 0x20000000, 0x8000
TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
FS_IOC_FSSETXATTR = 0x401C5820
F_SETLEASE, F_SETPIPE_SZ, F_SETDELEG = 1024, 1031, 1040
PR_SET_SECCOMP, PR_SCHED_CORE = 22, 62
PRIO_PROCESS, PRIO_PGRP = 0, 1
IOPRIO_WHO_PROCESS, IOPRIO_WHO_PGRP = 1, 2
SELF, WORKER = 0, 1
RLIMIT_CORE = 4
MOST_POLLED = 1024

REFUSED, UNKNOWN, NO_SUCH_SOCKET = refuse(EPERM), refuse(ENOSYS), refuse(EAFNOSUPPORT)
NO_ATTRIBUTES, NO_SUCH_OPTION, NO_SUCH_IOCTL, INVALID = (
    refuse(EOPNOTSUPP), refuse(ENOPROTOOPT), refuse(ENOTTY), refuse(EINVAL),
)  # fmt: skip


def only(argument: int, *values: int) -> Node:
    return when(argument, values, ALLOW, otherwise=REFUSED)


def at_most(argument: int, most: int) -> Node:
    """Refuses more descriptors as the kernel refuses more than the process may have."""
    return when_more(argument, most, INVALID, ALLOW)


def never(argument: int, *values: int) -> Node:
    return when(argument, values, REFUSED, otherwise=ALLOW)


def without(argument: int, bits: int) -> Node:
    return when_any_bit(argument, bits, REFUSED, otherwise=ALLOW)


# Plain TCP and UDP. Raw sockets, ping sockets and MPTCP (which Landlock's connect rule does not see) are refused.
# Of a pair that does not fit the kernel would look for a module, by a program that runs as root of the host
# (`inet_create`, request_module).
INTERNET = when(
    1,
    (SOCK_STREAM,),
    mask=SOCK_TYPE_MASK,
    then=only(2, 0, IPPROTO_TCP),
    otherwise=when(1, (SOCK_DGRAM,), mask=SOCK_TYPE_MASK, then=only(2, 0, IPPROTO_UDP), otherwise=REFUSED),
)
# The one netlink that runtimes ask for addresses, only where there is a use for them (profile `loopback`): what waits
# in such a socket is charged to nobody. Measured, 4,000 of them take 830 MiB of the host in 2 s.
NETLINK = when(2, (NETLINK_ROUTE,), ALLOW, otherwise=NO_SUCH_SOCKET)


def sockets(netlink: Node) -> Node:
    return when(
        0, (AF_INET, AF_INET6), INTERNET, when(0, (AF_UNIX,), ALLOW, when(0, (AF_NETLINK,), netlink, NO_SUCH_SOCKET))
    )


# Options with an answer of their own, by level.
# Promised and not given: a larger buffer, as the kernel sizes those of TCP itself; and SO_REUSEPORT, whose group takes
# 2 KiB for each socket, charged to nobody. A program that shares no port notices nothing, and a second socket on the
# same port is EADDRINUSE. And error queues, which are charged to nobody: glibc asks no name server without IP_RECVERR,
# and never reads the queue; a refused datagram is told by the next call all the same.
SOCKET_OPTIONS_PRETENDED = {
    SOL_SOCKET: (SO_SNDBUF, SO_RCVBUF, SO_REUSEPORT),
    SOL_IP: (IP_RECVERR,),
    SOL_IPV6: (IPV6_RECVERR,),
}
# Programs for sockets: what they compile to comes out of one pool of the whole host (net.core.bpf_jit_limit). With
# 9,400 of them, measured, nobody on the host can load another, the filter of the next sandbox included. Time stamps and
# corked datagrams are charged to nobody: 2.2 GiB in 1 s, measured. TCP_ULP is TLS and SMC inside the
# kernel: large, and TLS libraries do without.
SOCKET_OPTIONS_REFUSED = {
    SOL_SOCKET: (
        SO_ATTACH_FILTER,
        SO_ATTACH_BPF,
        SO_ATTACH_REUSEPORT_CBPF,
        SO_ATTACH_REUSEPORT_EBPF,
        SO_TIMESTAMPING_OLD,
        SO_TIMESTAMPING_NEW,
    ),
    SOL_TCP: (TCP_ULP,),
    SOL_UDP: (UDP_CORK,),
}


def socket_options() -> Node:
    """Decides by level and then by option: allowed, pretended or refused. Any other option is answered as if the kernel
    did not have it."""
    by_level: dict[int, list[int]] = {level: [] for level in SOCKET_OPTIONS_REFUSED}
    for level, option in SOCKET_OPTIONS.values():
        by_level.setdefault(level, []).append(option)
    decision = NO_SUCH_OPTION
    for level, allowed in by_level.items():
        refused = when(2, SOCKET_OPTIONS_REFUSED.get(level, ()), REFUSED, NO_SUCH_OPTION)
        others = when(2, SOCKET_OPTIONS_PRETENDED.get(level, ()), PRETENDED, refused)
        decision = when(1, (level,), when(2, tuple(allowed), ALLOW, others), decision)
    return decision


def commands(argument: int, allowed: dict[str, int], refused: tuple[int, ...], otherwise: Node) -> Node:
    return when(argument, tuple(allowed.values()), ALLOW, when(argument, refused, REFUSED, otherwise))


CONDITIONAL: dict[str, Node] = {
    "clone": without(0, CLONE_NAMESPACES),
    "clone3": UNKNOWN,
    # The host's pool of huge pages is one for all, and no group of the sandbox is charged for them.
    "mmap": without(3, MAP_HUGETLB),
    "memfd_create": without(1, MFD_HUGETLB),
    "shmget": without(2, SHM_HUGETLB),
    "socket": sockets(NO_SUCH_SOCKET),
    "socketpair": when(0, (AF_UNIX,), ALLOW, NO_SUCH_SOCKET),
    # Fast open connects without asking Landlock. MSG_MORE corks a datagram.
    "sendto": without(3, MSG_FASTOPEN | MSG_MORE),
    "sendmsg": without(2, MSG_FASTOPEN | MSG_MORE),
    "sendmmsg": without(3, MSG_FASTOPEN | MSG_MORE),
    "setsockopt": socket_options(),
    # Typing into a terminal, taking over the console, loading a line discipline. And the project a file is charged to,
    # which its owner may change outside of a user namespace, and so leave a quota.
    "ioctl": commands(
        1, IOCTL_COMMANDS, (TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD, FS_IOC_FSSETXATTR), otherwise=NO_SUCH_IOCTL
    ),
    # A command must not grow the pipes that the gateway pays for; a lease makes whoever opens the file next wait.
    "fcntl": commands(1, FCNTL_COMMANDS, (F_SETPIPE_SZ, F_SETLEASE, F_SETDELEG), otherwise=INVALID),
    # Filters of its own would let a command feign answers to programs that trust it. A core-scheduling cookie keeps
    # neighbours off the sibling hardware thread.
    "prctl": commands(0, PRCTL_OPTIONS, (PR_SET_SECCOMP, PR_SCHED_CORE), otherwise=INVALID),
    # Linux as it is, or the question which it is: no executable heap, no address layout without chance.
    "personality": only(0, 0, 0xFFFFFFFF),
    # Where the host merges equal pages (KSM), a thread of the kernel would do that work, and the time of a write to a
    # merged page would tell a sandbox what another one has in memory.
    "madvise": when(2, (MADV_MERGEABLE,), INVALID, ALLOW),
    # The kernel charges POSIX ACLs to nobody: a sandbox of 96 MiB took 3,009 MiB of the host in 5.5 s, measured. The
    # attribute's name is behind a pointer, so all attributes are refused. cp, tar, git, npm and pip go on without.
    "setxattr": NO_ATTRIBUTES,
    "lsetxattr": NO_ATTRIBUTES,
    "fsetxattr": NO_ATTRIBUTES,
    "setxattrat": NO_ATTRIBUTES,
    # No call of a sandbox flushes a disk of the host: an fsync of a read-only file of /usr does, 14,000 to 21,000 times
    # a second, measured. The filter cannot tell whose file a descriptor is. The sandbox's own files are in memory and
    # do not outlive the host, so there is nothing to flush. Without MS_SYNC msync flushes nothing, and unwinders ask
    # with it whether an address is mapped.
    "sync": PRETENDED,
    "syncfs": PRETENDED,
    "fsync": PRETENDED,
    "fdatasync": PRETENDED,
    "sync_file_range": PRETENDED,
    "msync": when_any_bit(2, MS_SYNC, PRETENDED, ALLOW),
    # While such a call waits the kernel keeps 80 bytes for each descriptor, which it charges to nobody: 328 KiB for a
    # thread that waits for 4,096, measured, and one descriptor may be named as often. With the soft limit that a
    # command starts with, 1,024, more is EINVAL anyway. epoll is charged.
    "poll": at_most(1, MOST_POLLED),
    "ppoll": at_most(1, MOST_POLLED),
    "select": at_most(0, MOST_POLLED),
    "pselect6": at_most(0, MOST_POLLED),
    # The worker is PID 1 with one thread, runs under the same uid, and is nobody's to slow down. Other ids stay open
    # since pthread_setaffinity_np and pthread_setschedparam name threads by theirs.
    # The core limit stays as the worker set it: a lower one would wake a host's core dump program, see steps.py.
    # Reading it is the same call; a program that only wants to be sure of no core dumps is told that it is.
    "prlimit64": when(0, (SELF,), when(1, (RLIMIT_CORE,), when_null(2, ALLOW, PRETENDED), ALLOW), REFUSED),
    "setrlimit": when(0, (RLIMIT_CORE,), PRETENDED, ALLOW),
    "sched_setaffinity": never(0, WORKER),
    "sched_setattr": never(0, WORKER),
    "sched_setparam": never(0, WORKER),
    "sched_setscheduler": never(0, WORKER),
    "setpriority": when(0, (PRIO_PROCESS, PRIO_PGRP), never(1, WORKER), REFUSED),
    "ioprio_set": when(0, (IOPRIO_WHO_PROCESS, IOPRIO_WHO_PGRP), never(1, WORKER), REFUSED),
}

# What a profile decides otherwise than `default`.
PROFILES: dict[str, dict[str, Node]] = {"default": {}, "loopback": {"socket": sockets(NETLINK)}}

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_NUMBERS = 0x40000000


def rules(profile: str, machine: str) -> dict[int, Node]:
    """The decision about each number that the tables mention. Any other known number is refused."""
    if profile not in PROFILES:
        raise ValueError(f"no system-call profile is named {profile!r}")
    if machine not in NUMBERS:
        raise ValueError(f"no system-call numbers are known for the machine {machine!r}")
    decisions = {name: ALLOW for group in ALLOWED for name in group.split()} | CONDITIONAL | PROFILES[profile]
    return {number: decisions[name] for name, number in NUMBERS[machine].items() if name in decisions}


def stretches(decisions: dict[int, Node], machine: str) -> list[tuple[int, Node]]:
    """All possible numbers, as (first number, decision) of each range with the same decision."""
    found = [(0, decisions.get(0, REFUSED))]
    for number in range(1, HIGHEST_KNOWN + 1):
        decision = decisions.get(number, REFUSED)
        if decision != found[-1][1]:
            found.append((number, decision))
    found.append((HIGHEST_KNOWN + 1, UNKNOWN))
    if machine == "x86_64":
        found.append((X32_NUMBERS, KILL_PROCESS))
    return found


def compile_filter(profile: str, machine: str) -> bytes:
    """Returns the program of a profile, for a machine as uname(2) names it. Raises ValueError if either is not
    known."""
    by_number = bpf.search(stretches(rules(profile, machine), machine))
    native = bpf.looking_at(bpf.NUMBER, by_number)
    return bpf.assemble(bpf.looking_at(bpf.ARCHITECTURE, (bpf.EQUAL, ARCHITECTURES[machine], native, KILL_PROCESS)))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def load(program: bytes) -> None:
    """Loads the program for the calling thread and everything that it starts from now on. This cannot be undone. It
    needs no_new_privs or CAP_SYS_ADMIN, else EACCES. It is the last step of confinement, as the program then refuses
    this call too.
    """
    set_mode_filter, no_flags = 1, 0
    syscall(NR_SECCOMP, set_mode_filter, no_flags, ctypes.byref(_Program(len(program) // 8, program)))
