"""The attacks of probe.c: what a sandbox answers to each, and what the same attack must show outside, unconfined.

The letter is what is attacked: files (A), processes (B), the kernel (C), the network (D). Attacks of one kind have one
number. Numbers that are missing are kinds of attack that need more than a call of the kernel. Their tests stand in
other files: paths, links, FIFOs and archives that a client touches (3 to 5, 7 to 9) in tests/kernel/test_files.py,
tests/contract/test_files.py and test_trees.py; bombs, endings and daemons (22 to 30) in test_exhaustion.py,
test_own_init.py, tests/kernel/test_endings.py and test_lifecycle.py; neighbours (48) in test_neighbours.py; inherited
descriptors (14) in test_visibility.py. There is none for a proxy (50): no sandbox has a way out.
"""

from __future__ import annotations

from typing import NamedTuple

# A call with nonsense for arguments: the kernel looked at them, so an attacker with better ones would have had his way.
REACHED = ("EFAULT", "EINVAL", "EBADF", "E2BIG", "ENOENT", "ok")


class Attack(NamedTuple):
    """`section` and `line`: the letter and the number. `network`: the control's; `host` for attacks on what listens
    there."""

    section: str
    line: int
    name: str
    expected: str
    control: tuple[str, ...] = ("ok",)
    network: str = "own"


def _rows(section: str, line: int, expected: str, names: str, *control: str, network: str = "own") -> list[Attack]:
    return [Attack(section, line, name, expected, control or ("ok",), network) for name in names.split()]


FILES = [
    *_rows("A", 15, "EACCES", "read_cmdline read_interrupts"),  # the host's boot parameters, secrets among them; timing
    *_rows("A", 1, "ENOENT", "read_shadow read_secret read_source read_data"),
    *_rows("A", 2, "EROFS", "write_root write_usr write_bin write_lib write_etc"),
    *_rows("A", 2, "EACCES", "write_passwd"),
    *_rows("A", 6, "EXDEV", "hard_link hard_link_by_descriptor hard_link_by_proc"),
    *_rows("A", 10, "EACCES", "make_block make_char make_whiteout"),
    *_rows("A", 10, "ENOENT", "open_block open_mem open_kmsg open_kvm open_vsock open_fuse"),
    *_rows("A", 11, "EOPNOTSUPP", "set_capability set_acl set_default_acl set_acl_by_descriptor"),
    *_rows("A", 11, "EINVAL", "chown_root"),
    *_rows("A", 12, "EPERM", "name_handle open_handle"),
    *_rows("A", 13, "EACCES", "target_mem target_environ target_maps target_fd target_root target_cwd target_exe"),
    *_rows("A", 13, "ENOENT", "gateway_environ"),
    *_rows("A", 15, "EROFS", "open_core_pattern open_sysctl open_oom_score open_uid_map"),
    *_rows("A", 15, "EACCES", "read_keys read_kallsyms read_timers read_kmsg"),
    *_rows("A", 15, "ENOENT", "open_sysrq open_kcore read_firmware"),
    *_rows("A", 16, "EACCES", "make_terminal"),
    *_rows("A", 16, "EPERM", "let_all_make_terminals"),
    *_rows("A", 19, "EACCES", "device_ioctl", "ENOTTY"),
    *_rows("A", 19, "EROFS", "touch_device"),
    *_rows("A", 19, "EPERM", "type_into_terminal"),
]

PROCESSES = [
    *_rows("B", 27, "EPERM", "huge_pages", "ok", "ENOMEM"),  # the host's reserved pool, which no memory limit counts
    *_rows("B", 20, "EPERM", "ptrace_target ptrace_child ptrace_me read_memory_child write_memory_child"),
    *_rows("B", 20, "EPERM", "read_memory_target", "ok", "EFAULT"),
    *_rows("B", 20, "EPERM", "get_descriptor compare_processes"),
    *_rows("B", 20, "EPERM", "advise_target", *REACHED),
    *_rows("B", 20, "ESRCH", "signal_gateway"),
    *_rows("B", 28, "EPERM", "real_time slow_down_target slow_down_user disk_first idle_disk_of_target pin_target"),
    *_rows("B", 28, "EACCES", "be_urgent"),
    *_rows("B", 29, "EPERM", "limits_of_target raise_limit raise_core_limit"),
    *_rows("B", 29, "ENOMEM", "lock_memory"),
]

_NAMESPACES = "user mounts pids net ipc uts cgroup"
KERNEL = [
    *_rows("C", 31, "EPERM", " ".join(f"unshare_{name} clone_{name}" for name in _NAMESPACES.split())),
    *_rows("C", 31, "EPERM", "unshare_time enter_namespace enter_by_pidfd"),
    *_rows("C", 31, "ENOSYS", "clone3_user"),
    *_rows("C", 32, "EPERM", "mount_tmpfs mount_proc remount_root change_root open_filesystem clone_tree"),
    *_rows("C", 32, "EPERM", "pivot_root fsmount fsconfig fspick move_mount mount_setattr", *REACHED),
    *_rows("C", 33, "EPERM", "io_uring_setup"),
    *_rows("C", 33, "EPERM", "io_uring_enter io_uring_register io_setup", *REACHED),
    *_rows("C", 34, "EPERM", "keyctl add_key"),
    *_rows("C", 34, "EPERM", "request_key", *REACHED),
    *_rows("C", 35, "EPERM", "userfaultfd fanotify_init"),
    *_rows("C", 35, "EPERM", "bpf perf_event_open fanotify_mark lookup_dcookie", *REACHED),
    *_rows("C", 37, "EPERM", "read_implies_exec no_randomize modify_ldt io_privilege io_permission"),
    *_rows("C", 38, "EPERM", "init_module finit_module delete_module reboot swapon swapoff quotactl", *REACHED),
    *_rows("C", 38, "EPERM", "settimeofday clock_settime adjtimex kexec_load accounting move_pages mbind", *REACHED),
    *_rows("C", 38, "EPERM", "read_kernel_log name_host hang_up grow_pipe take_lease"),
    *_rows("C", 38, "EINVAL", "lock_description"),
    *_rows("C", 38, "ENOTTY", "map_extents"),
    *_rows("C", 40, "EPERM", "filter_allow filter_by_prctl filter_trace filter_notify"),
    *_rows("C", 40, "EPERM", "gain_capabilities raise_ambient join_groups"),
    *_rows("C", 40, "EINVAL", "drop_bounding set_securebits"),
    *_rows("C", 40, "EINVAL", "become_root become_group_root"),
    *_rows("C", 41, "EPERM", "secret_memory"),
    *_rows("C", 42, "EAFNOSUPPORT", "vsock packet packet_in_user_space crypto key bluetooth can tipc"),
    *_rows("C", 42, "EAFNOSUPPORT", "netlink_audit netlink_netfilter netlink_uevent netlink_generic"),
    *_rows("C", 42, "EPERM", "raw_icmp raw_ip raw_icmp6 ping mptcp udplite"),
    *_rows("C", 42, "EPERM", "fast_open mptcp_connect", network="host"),
    *_rows("C", 42, "ENOPROTOOPT", "fast_open_by_option", network="host"),
    *_rows("C", 42, "EPERM", "attach_filter attach_port_filter"),
    *_rows("C", 42, "ENOPROTOOPT", "join_group join_group6 join_any_group sign_segments"),
    *_rows("C", 42, "ENOPROTOOPT", "stamp_datagrams send_without_copy split_datagrams"),
    *_rows("C", 42, "EADDRINUSE", "share_port"),
    *_rows("C", 43, "EPERM", "mount_cgroup"),
    *_rows("C", 43, "ENOENT", "open_release_agent open_cgroup_procs"),
    *_rows("C", 44, "SIGSYS", "int80_call"),
    *_rows("C", 44, "SIGSYS", "x32_call", "ENOSYS", "ok"),
]

_TCP_HOST = "tcp_gateway tcp_host tcp_host_zero tcp_host_v6 tcp_host_mapped"
_ROUTES = "route_metadata route_private route_public route_mapped route_v6"
NETWORK = [
    *_rows("D", 45, "EACCES", _TCP_HOST, network="host"),
    *_rows("D", 45, "EACCES", "bind_tcp"),
    *_rows("D", 45, "ENETUNREACH", _ROUTES, network="host"),
    *_rows("D", 45, "ECONNREFUSED", "udp_host", network="host"),
    *_rows("D", 46, "ECONNREFUSED", "unix_abstract", network="host"),
    *_rows("D", 46, "ENOENT", "unix_named open_run_folder", network="host"),
    *_rows("D", 49, "ENOPROTOOPT", "transparent"),
    *_rows("D", 49, "ENOTTY", "take_loopback_down"),
    *_rows("D", 49, "EAFNOSUPPORT", "add_address"),
]

# With the profile `loopback` Landlock lets TCP pass, and the network namespace alone must hold.
LOOPBACK = [
    *_rows("D", 45, "ECONNREFUSED", _TCP_HOST, network="host"),
    *_rows("D", 45, "ENETUNREACH", _ROUTES, network="host"),
    *_rows("D", 45, "ECONNREFUSED", "udp_host", network="host"),
    *_rows("D", 45, "EPERM", "fast_open mptcp_connect", network="host"),
    *_rows("D", 45, "ENOPROTOOPT", "fast_open_by_option", network="host"),
]

ALL = FILES + PROCESSES + KERNEL + NETWORK
NAMES = {network: [a.name for a in ALL if a.network == network] for network in ("own", "host")}
BY_NAME = {attack.name: attack for attack in ALL}
