"""What the filter allows, and which probe makes it take memory; or why it cannot.

A probe is a function of pin_*.c. A test compares these tables with the filter: what it allows and is not here is new,
and needs a probe or a reason.
"""

from __future__ import annotations

# probe: the system calls that it makes in number or at the limits of their arguments
PROBED = {
    "open_files": "open openat openat2 creat",
    "copies_of_descriptors": "dup dup2 dup3 fcntl",
    "descriptors_in_flight": "sendmsg sendmmsg recvmsg recvmmsg socketpair",
    "epoll_instances": "epoll_create epoll_create1",
    "epoll_watches": "epoll_ctl",
    "eventfds": "eventfd eventfd2",
    "timerfds": "timerfd_create timerfd_settime",
    "signalfds": "signalfd signalfd4",
    "pidfds": "pidfd_open",
    "memfds": "memfd_create",
    "sparse_files": "pwrite64 pwritev pwritev2 ftruncate truncate",
    "inotify_instances": "inotify_init inotify_init1",
    "inotify_watches": "inotify_add_watch",
    "record_locks": "fcntl",
    "whole_file_locks": "flock",
    "missing_names_in_usr": "access faccessat faccessat2 stat lstat newfstatat statx statfs readlink readlinkat",
    "small_files": "rename renameat renameat2 link linkat",
    "folders_and_links": "mkdir mkdirat symlink symlinkat mknod mknodat",
    "unlinked_files": "fallocate unlink unlinkat rmdir",
    "full_pipes": "pipe pipe2 write writev",
    "pipes_of_others_pages": "vmsplice tee",
    "pipes_of_files": "splice sendfile copy_file_range",
    "landlock_rulesets": "landlock_create_ruleset",
    "landlock_rules": "landlock_add_rule landlock_restrict_self",
    "opens_of_a_terminal": "ioctl",
    "page_tables": "mmap munmap",
    "many_mappings": "mprotect pkey_mprotect map_shadow_stack brk",
    "advised_memory": "madvise mlock mlock2 mlockall mseal",
    "moved_mappings": "mremap",
    "shared_segments": "shmget shmat shmctl",
    "semaphores": "semget",
    "undos_of_semaphores": "semop semtimedop semctl",
    "messages": "msgget msgsnd msgctl",
    "message_queues": "mq_open mq_timedsend mq_notify mq_getsetattr",
    "protection_keys": "pkey_alloc",
    "threads": "clone",
    "zombies": "fork vfork exit exit_group",
    "short_lives": "wait4 waitid",
    "programs": "execve execveat",
    "interval_timers": "timer_create timer_settime",
    "queued_signals": "rt_sigqueueinfo rt_tgsigqueueinfo kill tkill tgkill pidfd_send_signal",
    "inherited_priorities": "futex set_robust_list",
    "futex_waits": "futex_waitv futex_wait futex_requeue",
    "waits_for_descriptors": "poll ppoll select pselect6",
    "credentials": ("capset setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups"),
    "attributes_of_processes": (
        "prctl membarrier sched_setaffinity sched_setattr sched_setparam sched_setscheduler setpriority ioprio_set"
    ),
    "lists_of_mounts": "read readv",
    "udp_sockets": "socket",
    "addresses": "bind",
    "routes": "connect",
    "unix_backlogs": "listen accept accept4",
    "udp_datagrams": "sendto",
    "options_of_ip": "setsockopt",
}

# More probes of the same calls.
ALSO = (
    "owned_descriptors inotify_events directory_notices missing_names_in_tmp missing_names_in_proc names_in_proc"
    " attributes access_lists tables_of_huge_pages names_of_mappings empty_messages family_of_mappings tcp_sockets"
    " unix_sockets unix_datagrams unix_packets unix_streams unix_single_bytes udp_small_datagrams tcp_streams"
    " tcp_single_bytes tcp_backlogs tcp_goodbyes netlink_answers options_of_sockets options_of_ipv6 options_of_tcp"
    " options_of_udp multicast_groups multicast_sources keys_of_segments flow_labels pages_that_are_sent error_messages"
    " terminals"
)

# reason: the system calls for which it holds
CANNOT_PIN = {
    "it only tells, and what it needs for that is gone when it returns": (
        "fstat fstatfs getdents getdents64 getcwd lseek cachestat mincore statmount listmount file_getattr"
        " getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat"
        " getpid getppid gettid getpgid getpgrp getsid get_robust_list rt_sigpending"
        " getuid geteuid getgid getegid getresuid getresgid getgroups capget"
        " sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_get_priority_max"
        " sched_get_priority_min sched_rr_get_interval getpriority ioprio_get getcpu getrlimit getrusage times"
        " sysinfo uname getrandom time gettimeofday clock_gettime clock_getres getitimer timer_gettime timer_getoverrun"
        " timerfd_gettime getsockname getpeername getsockopt"
    ),
    "it gives something back": (
        "close close_range inotify_rm_watch removexattr lremovexattr fremovexattr removexattrat munlock munlockall"
        " pkey_free shmdt timer_delete mq_unlink shutdown"
    ),
    "it takes what others have sent or written": (
        "pread64 preadv preadv2 recvfrom msgrcv mq_timedreceive rt_sigtimedwait epoll_wait epoll_pwait epoll_pwait2"
    ),
    "it changes a number of a file, or of a process, that is there": (
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat umask"
        " chdir fchdir personality prlimit64 setrlimit setpgid setsid set_tid_address rseq arch_prctl sigaltstack"
        " rt_sigaction rt_sigprocmask alarm setitimer"
    ),
    "it waits, or goes on, and has nothing of its own": (
        "pause rt_sigsuspend rt_sigreturn sched_yield clock_nanosleep nanosleep futex_wake restart_syscall msync"
    ),
    "what it reads into memory is cache, which is charged and can be reclaimed": "readahead fadvise64",
    "a tracer on the host enters it, nobody else can": "uprobe uretprobe",
}

# The same for the options and commands of setsockopt, ioctl, fcntl and prctl.
PROBED_ARGUMENTS = {
    "options_of_sockets": (
        "SO_REUSEADDR SO_BROADCAST SO_KEEPALIVE SO_OOBINLINE SO_LINGER SO_PASSCRED SO_RCVTIMEO SO_SNDTIMEO"
        " SO_BINDTODEVICE SO_RCVTIMEO_NEW SO_SNDTIMEO_NEW"
    ),
    "options_of_ip": (
        "IP_TOS IP_TTL IP_PKTINFO IP_MTU_DISCOVER IP_RECVTOS IP_MULTICAST_IF IP_MULTICAST_TTL IP_MULTICAST_LOOP"
        " IP_MULTICAST_ALL"
    ),
    "options_of_ipv6": (
        "IPV6_UNICAST_HOPS IPV6_MULTICAST_IF IPV6_MULTICAST_HOPS IPV6_MULTICAST_LOOP IPV6_MTU_DISCOVER IPV6_V6ONLY"
        " IPV6_MULTICAST_ALL IPV6_RECVPKTINFO IPV6_RECVHOPLIMIT IPV6_RECVTCLASS IPV6_TCLASS"
    ),
    "options_of_tcp": (
        "TCP_NODELAY TCP_CORK TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_DEFER_ACCEPT TCP_QUICKACK TCP_USER_TIMEOUT"
    ),
    "opens_of_a_terminal": "TIOCSWINSZ TCSETS",
    "owned_descriptors": "F_SETFL F_SETOWN FIOASYNC",
    "copies_of_descriptors": "F_DUPFD F_DUPFD_CLOEXEC",
    "record_locks": "F_SETLK F_SETLKW",
    "memfds": "F_ADD_SEALS",
    "attributes_of_processes": (
        "PR_SET_PDEATHSIG PR_SET_DUMPABLE PR_SET_NAME PR_SET_CHILD_SUBREAPER PR_SET_NO_NEW_PRIVS PR_SET_THP_DISABLE"
        " PR_CAP_AMBIENT PR_SVE_SET_VL PR_SET_TAGGED_ADDR_CTRL"
    ),
}
ARGUMENTS_CANNOT_PIN = {
    "it only tells": (
        "TCGETS TCGETS2 TIOCGPGRP TIOCOUTQ TIOCGWINSZ FIONREAD TIOCGSID FS_IOC_GETFLAGS SIOCGIFNAME"
        " SIOCGIFCONF SIOCGIFFLAGS SIOCGIFADDR SIOCGIFDSTADDR SIOCGIFBRDADDR SIOCGIFNETMASK SIOCGIFMETRIC SIOCGIFMTU"
        " SIOCGIFHWADDR SIOCGIFINDEX SIOCGIFTXQLEN SIOCGIFMAP F_GETFD F_GETFL F_GETLK F_GETOWN F_GETPIPE_SZ F_GET_SEALS"
        " PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_GET_NAME PR_GET_SECCOMP PR_CAPBSET_READ PR_GET_SECUREBITS"
        " PR_GET_CHILD_SUBREAPER PR_GET_NO_NEW_PRIVS PR_GET_THP_DISABLE PR_SVE_GET_VL PR_GET_TAGGED_ADDR_CTRL"
    ),
    "it sets a flag or a number of a descriptor, a terminal or a socket that is there": (
        "F_SETFD FIONCLEX FIOCLEX FIONBIO TCSETSW TCSETSF TCSETS2 TCSETSW2 TCSETSF2 TCXONC TIOCSCTTY TIOCSPGRP"
        " TIOCNOTTY NETLINK_EXT_ACK NETLINK_GET_STRICT_CHK"
    ),
    "it waits for a terminal, or empties it": "TCSBRK TCSBRKP TCFLSH",
}


def probes() -> set[str]:
    return set(PROBED) | set(ALSO.split())


def calls() -> list[str]:
    """Every system call that has a probe or a reason; one may have several probes."""
    probed = {name for names in PROBED.values() for name in names.split()}
    return [*probed, *(name for names in CANNOT_PIN.values() for name in names.split())]


def arguments() -> list[str]:
    """Every option and command that has a probe or a reason, by its name in allowed_arguments.py."""
    tables = (*PROBED_ARGUMENTS.values(), *ARGUMENTS_CANNOT_PIN.values())
    return [name for names in tables for name in names.split()]
