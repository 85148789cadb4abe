"""The compiled filter against an independent interpreter and an independent table of what it should say."""

from __future__ import annotations

import ctypes
import struct
from errno import EAFNOSUPPORT, EINVAL, ENOPROTOOPT, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.launcher.kernel import bpf, seccomp
from app.launcher.kernel.allowed_arguments import FCNTL_COMMANDS, IOCTL_COMMANDS, PRCTL_OPTIONS, SOCKET_OPTIONS
from app.launcher.kernel.syscall_table import HIGHEST_KNOWN, NUMBERS
from tests.require import require

X86_64, AARCH64, I386, ARM, RISCV64 = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028, 0xC00000F3
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}
MACHINES = sorted(ARCHITECTURES)

ALLOW, KILL = 0x7FFF0000, 0x80000000
ERRNO = 0x00050000
ALL_ONES = (1 << 64) - 1
GARBAGE = 0xDEADBEEF << 32


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def run(program: bytes, number: int, architecture: int, *args: int) -> int:
    """What the kernel would do, by the letter of its documentation: linux/filter.h, struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, architecture, 0x7FFF_DEAD_BEEF, *args, *[0] * (6 - len(args)))
    code = instructions(program)
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                assert operand % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def check_as_the_kernel_does(program: bytes) -> None:
    code = instructions(program)
    assert 0 < len(code) <= 4096
    assert code[-1][0] == 0x06
    for at, (operation, if_true, if_false, operand) in enumerate(code):
        assert operation in (0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06)
        if operation == 0x20:
            assert operand % 4 == 0
            assert operand < 64
        if operation == 0x05:
            assert at + 1 + operand < len(code)
        if operation in (0x15, 0x35, 0x45):
            assert at + 1 + max(if_true, if_false) < len(code)


# Everything in the tables that a command must not call. What is neither here nor in ARGUMENT_CASES must be allowed, so
# a call that is new in the table needs a decision here as well.
_DENIED = """
mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr
unshare setns
ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise process_mrelease
bpf perf_event_open userfaultfd seccomp
io_uring_setup io_uring_enter io_uring_register
io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
add_key request_key keyctl
open_by_handle_at name_to_handle_at fanotify_init fanotify_mark lookup_dcookie
init_module finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load
reboot swapon swapoff acct quotactl quotactl_fd syslog vhangup
settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname
iopl ioperm modify_ldt set_thread_area get_thread_area
mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages memfd_secret remap_file_pages
file_setattr lsm_get_self_attr lsm_set_self_attr lsm_list_modules
uselib ustat sysfs _sysctl nfsservctl getpmsg putpmsg afs_syscall tuxcall security vserver
epoll_ctl_old epoll_wait_old
"""
DENIED = set(_DENIED.split())
NOT_SUPPORTED = {"setxattr", "lsetxattr", "fsetxattr", "setxattrat"}  # as on a file system without attributes
PRETENDED = {"sync", "syncfs", "fsync", "fdatasync", "sync_file_range"}  # answered with 0, and not done

ARGUMENT_CASES: list[tuple[str, tuple[int, ...], int]] = [
    ("clone", (17,), ALLOW),
    ("clone", (0x003D0F00,), ALLOW),  # a thread, as glibc makes it
    ("clone", (0x00004111,), ALLOW),  # posix_spawn: CLONE_VM | CLONE_VFORK | SIGCHLD
    *(("clone", (17 | 1 << bit,), ERRNO | EPERM) for bit in (7, 17, 25, 26, 27, 28, 29, 30)),
    ("clone3", (0, 0), ERRNO | ENOSYS),
    *(("socket", (1, kind, 0), ALLOW) for kind in (1, 2, 3, 5, 1 | 0x80800)),
    *(
        ("socket", (family, kind, protocol), ALLOW)
        for family in (2, 10)
        for kind, own in ((1, 6), (2, 17), (1 | 0x80000, 6), (2 | 0x800, 17))
        for protocol in (0, own)
    ),
    *(
        ("socket", (family, kind, protocol), ERRNO | EPERM)
        for family in (2, 10)
        for kind, protocol in ((1, 17), (2, 6), (1 | 0x80800, 17), (2 | 0x80800, 6))
    ),
    *(("madvise", (0, 4096, advice), ALLOW) for advice in (0, 4, 8, 13, 14, 25)),
    ("madvise", (0, 4096, 12), ERRNO | EINVAL),
    *(
        ("socket", (family, kind, protocol), ERRNO | EPERM)
        for family in (2, 10)
        for kind, protocol in [(1, 262), (1, 132), (1, 33), (2, 1), (2, 58), (2, 136), (2, 255)]
        + [(kind | flags, 0) for kind in (0, 3, 4, 5, 6, 10, 15) for flags in (0, 0x80800)]
        + [(3, 1), (3, 6), (3, 255)]
    ),
    *(("socket", (16, 3, protocol), ERRNO | EAFNOSUPPORT) for protocol in range(33)),
    *(("setsockopt", (3, 1, option), ERRNO | EPERM) for option in (37, 65)),
    ("setsockopt", (3, 17, 1), ERRNO | EPERM),
    *(("setsockopt", (3, *option), ERRNO) for option in ((0, 11), (41, 25))),  # glibc's resolver asks for them
    *(("setsockopt", (3, *option), ALLOW) for option in ((0, 2), (41, 26))),
    *(
        ("socket", (family, 1, 0), ERRNO | EAFNOSUPPORT)
        for family in [*range(47), 0xFFFFFFFF]
        if family not in (1, 2, 10, 16)
    ),
    ("socketpair", (1, 1, 0), ALLOW),
    *(("socketpair", (family, 1, 0), ERRNO | EAFNOSUPPORT) for family in (0, 2, 10, 16, 30, 40)),
    *(
        (name, (3, 0, 0, flags) if name != "sendmsg" else (3, 0, flags), verdict)
        for name in ("sendto", "sendmsg", "sendmmsg")
        for flags, verdict in [(0, ALLOW), (0x4000, ALLOW), (0x8000, ERRNO | EPERM), (0x20004040, ERRNO | EPERM)]
    ),
    ("setsockopt", (3, 6, 1), ALLOW),
    ("setsockopt", (3, 6, 31), ERRNO | EPERM),
    *(("setsockopt", (3, 1, option), ERRNO) for option in (7, 8, 15)),
    *(("setsockopt", (3, 1, option), ALLOW) for option in (2, 9, 13)),
    ("mmap", (0, 4096, 3, 0x22), ALLOW),
    ("mmap", (0, 4096, 3, 0x40022), ERRNO | EPERM),
    *(("msync", (0, 4096, flags), ALLOW) for flags in (0, 1, 2, 3, 8)),  # MS_ASYNC, MS_INVALIDATE
    *(("msync", (0, 4096, flags), ERRNO) for flags in (4, 5, 6)),  # MS_SYNC
    ("memfd_create", (0, 1), ALLOW),
    ("memfd_create", (0, 5), ERRNO | EPERM),
    ("shmget", (0, 4096, 0o1600), ALLOW),
    ("shmget", (0, 4096, 0o5600), ERRNO | EPERM),
    *(("ioctl", (0, command), ALLOW) for command in (0x5401, 0x5413, 0x540E, 0x5421, 0x8912, 0x5414)),
    *(("ioctl", (0, command), ERRNO | EPERM) for command in (0x5412, 0x541C, 0x541D, 0x5423, 0x401C5820)),
    *(("ioctl", (0, command), ERRNO | ENOTTY) for command in (0x8906, 0x8914, 0x40049409, 0xC020660B, 0x45430)),
    *(("fcntl", (0, command), ALLOW) for command in (0, 1, 2, 3, 4, 6, 8, 1030, 1032, 1033)),
    *(("fcntl", (0, command), ERRNO | EPERM) for command in (1024, 1031, 1040)),
    *(("fcntl", (0, command), ERRNO | EINVAL) for command in (10, 13, 15, 36, 37, 38, 1026, 1036)),
    *(("prctl", (option,), ALLOW) for option in (1, 3, 4, 15, 16, 21, 23, 36, 38, 39, 41)),
    *(("prctl", (option,), ERRNO | EPERM) for option in (22, 62)),
    *(("prctl", (option,), ERRNO | EINVAL) for option in (0, 24, 28, 35, 53, 59, 0x53564D41, 0x59616D61)),
    *((name, (0, many), ALLOW) for name in ("poll", "ppoll") for many in (0, 1, 1024)),
    *((name, (0, many), ERRNO | EINVAL) for name in ("poll", "ppoll") for many in (1025, 4096, 0xFFFFFFFF)),
    *((name, (many,), ALLOW) for name in ("select", "pselect6") for many in (0, 1, 1024)),
    *((name, (many,), ERRNO | EINVAL) for name in ("select", "pselect6") for many in (1025, 4096, 0xFFFFFFFF)),
    ("personality", (0,), ALLOW),
    ("personality", (0xFFFFFFFF,), ALLOW),
    *(("personality", (p,), ERRNO | EPERM) for p in (8, 0x20000, 0x40000, 0x400000, 0x20008, 0xFFFFFFFE)),
    ("prlimit64", (0, 7), ALLOW),
    *(("prlimit64", (pid, 7), ERRNO | EPERM) for pid in (1, 2, 4711, 0xFFFFFFFF)),
    *(
        (name, (pid,), verdict)
        for name in ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler")
        for pid, verdict in [(0, ALLOW), (2, ALLOW), (4711, ALLOW), (1, ERRNO | EPERM)]
    ),
    *(("setpriority", (which, who, 5), ALLOW) for which in (0, 1) for who in (0, 2, 4711)),
    *(("setpriority", args, ERRNO | EPERM) for args in [(0, 1, 5), (1, 1, 5), (2, 0, 5), (2, 1000, 5), (3, 0, 0)]),
    *(("ioprio_set", (which, who, 0), ALLOW) for which in (1, 2) for who in (0, 2, 4711)),
    *(("ioprio_set", args, ERRNO | EPERM) for args in [(1, 1, 0), (2, 1, 0), (3, 0, 0), (3, 1000, 0), (0, 0, 0)]),
]
DEPENDS_ON_ARGUMENTS = {name for name, _, _ in ARGUMENT_CASES}


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program(machine: str) -> bytes:
    return seccomp.compile_filter("default", machine)


def test_the_kernel_would_accept_the_program(program: bytes) -> None:
    check_as_the_kernel_does(program)
    assert len(program) // 8 < 360  # each instruction is translated once per sandbox


def test_every_number_is_decided_as_the_table_says(machine: str, program: bytes) -> None:
    names = {number: name for name, number in NUMBERS[machine].items()}
    for number in range(601):
        name = names.get(number)
        if name in DEPENDS_ON_ARGUMENTS:
            continue
        if number > HIGHEST_KNOWN:
            expected = ERRNO | ENOSYS
        elif name is None or name in DENIED:
            expected = ERRNO | EPERM
        elif name in NOT_SUPPORTED:
            expected = ERRNO | EOPNOTSUPP
        else:
            expected = ERRNO if name in PRETENDED else ALLOW
        for args in ([0] * 6, [1] * 6, [ALL_ONES] * 6):
            assert run(program, number, ARCHITECTURES[machine], *args) == expected, (name, number)


def cases(machine: str) -> list[tuple[str, tuple[int, ...], int]]:
    """Of calls that the machine has: arm64 has no poll and select beside ppoll and pselect6."""
    return [case for case in ARGUMENT_CASES if case[0] in NUMBERS[machine]]


def test_arguments_are_decided_as_the_table_says(machine: str, program: bytes) -> None:
    for name, args, expected in cases(machine):
        number = NUMBERS[machine][name]
        assert run(program, number, ARCHITECTURES[machine], *args) == expected, (name, args)


def test_high_halves_of_arguments_change_nothing(machine: str, program: bytes) -> None:
    for name, args, expected in cases(machine):
        number = NUMBERS[machine][name]
        garbled = [arg | GARBAGE for arg in args]
        assert run(program, number, ARCHITECTURES[machine], *garbled, *[ALL_ONES] * (6 - len(args))) == expected, name


# The decisions about options and commands once more, by number.
OPTIONS: dict[int, dict[int, set[int]]] = {
    0: {ALLOW: {1, 2, 8, 10, 13, 32, 33, 34, 49}, ERRNO: {11}},
    1: {
        ALLOW: {2, 6, 9, 10, 13, 16, 20, 21, 25, 66, 67},
        ERRNO: {7, 8, 15},
        ERRNO | EPERM: {26, 37, 50, 51, 52, 65},
    },
    6: {ALLOW: {1, 3, 4, 5, 6, 9, 12, 18}, ERRNO | EPERM: {31}},
    17: {ERRNO | EPERM: {1}},
    41: {ALLOW: {16, 17, 18, 19, 23, 26, 29, 49, 51, 66, 67}, ERRNO: {25}},
    270: {ALLOW: {11, 12}},
}
TERMINALS = {0x5401, 0x5402, 0x5403, 0x5404, 0x5409, 0x540A, 0x540B, 0x540E, 0x540F, 0x5410, 0x5411, 0x5413, 0x5414}
TERMINALS |= {0x541B, 0x5421, 0x5422, 0x5425, 0x5429, 0x5450, 0x5451, 0x5452}
TERMINALS |= {0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D}
INTERFACES = {0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x8921, 0x8927, 0x8933, 0x8942, 0x8970}
COMMANDS: dict[str, tuple[int, int, dict[int, set[int]]]] = {  # the command's argument, the errno of all others
    "ioctl": (
        1,
        ENOTTY,
        {
            ALLOW: TERMINALS | INTERFACES | {0x80086601},
            ERRNO | EPERM: {0x5412, 0x541C, 0x541D, 0x5423, 0x401C5820},
        },
    ),
    "fcntl": (1, EINVAL, {ALLOW: {*range(10), 1030, 1032, 1033, 1034}, ERRNO | EPERM: {1024, 1031, 1040}}),
    "prctl": (
        0,
        EINVAL,
        {
            ALLOW: {1, 2, 3, 4, 15, 16, 21, 23, 27, 36, 37, 38, 39, 41, 42, 47, 50, 51, 55, 56},
            ERRNO | EPERM: {22, 62},
        },
    ),
}
SIGN_EXTENDED = 0xFFFFFFFF << 32  # a C library that keeps the command in an int fills the register's high half so


def answer(answers: dict[int, set[int]], number: int, otherwise: int) -> int:
    return next((said for said, numbers in answers.items() if number in numbers), otherwise)


def test_every_socket_option_is_decided_as_the_table_says(machine: str, program: bytes) -> None:
    call = NUMBERS[machine]["setsockopt"]
    for level in [*range(300), 0xFFFFFFFF]:
        answers = OPTIONS.get(level, {})
        for option in range(130) if answers else (0, 1, 2, 9, 15, 42):
            expected = answer(answers, option, ERRNO | ENOPROTOOPT)
            assert run(program, call, ARCHITECTURES[machine], 3, level, option) == expected, (level, option)
            garbled = (GARBAGE | 3, GARBAGE | level, SIGN_EXTENDED | option)
            assert run(program, call, ARCHITECTURES[machine], *garbled) == expected, (level, option)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_decided_as_the_table_says(name: str, machine: str, program: bytes) -> None:
    argument, errno, answers = COMMANDS[name]
    known = set().union(*answers.values())
    near = {number ^ 1 << bit for number in known for bit in range(32)}  # one bit away, the size in an ioctl's included
    for number in known | near | {*range(1100), *range(0x5400, 0x5480), *range(0x8900, 0x8A00), 0xFFFFFFFF}:
        expected = answer(answers, number, ERRNO | errno)
        for high_half in (0, GARBAGE, SIGN_EXTENDED):
            args = [0] * argument + [high_half | number]
            assert run(program, NUMBERS[machine][name], ARCHITECTURES[machine], *args) == expected, hex(number)


def test_options_and_commands_are_named_once_and_never_allowed_and_refused() -> None:
    for table in (SOCKET_OPTIONS, IOCTL_COMMANDS, FCNTL_COMMANDS, PRCTL_OPTIONS):
        assert len(set(table.values())) == len(table)
    for special in (seccomp.SOCKET_OPTIONS_REFUSED, seccomp.SOCKET_OPTIONS_PRETENDED):
        pairs = {(level, option) for level, options in special.items() for option in options}
        assert not pairs & set(SOCKET_OPTIONS.values())


def test_other_architectures_are_death_for_every_number(machine: str, program: bytes) -> None:
    for architecture in {X86_64, AARCH64, I386, ARM, RISCV64, 0, 0xFFFFFFFF} - {ARCHITECTURES[machine]}:
        for number in [*range(601), 0x40000000, 0xFFFFFFFF]:
            assert run(program, number, architecture) == KILL


def test_x32_is_death_for_every_number() -> None:
    program = seccomp.compile_filter("default", "x86_64")
    for number in range(601):
        assert run(program, 0x40000000 | number, X86_64) == KILL
    for number in (0x7FFFFFFF, 0xC0000000, 0xFFFFFFFF):
        assert run(program, number, X86_64) == KILL


def test_numbers_beyond_the_table_do_not_exist(machine: str, program: bytes) -> None:
    for number in (HIGHEST_KNOWN + 1, 600, 1000, 0xF0002, 0x3FFFFFFF):
        assert run(program, number, ARCHITECTURES[machine]) == ERRNO | ENOSYS


def test_names_in_the_profile_exist_and_are_named_once() -> None:
    known = {name for table in NUMBERS.values() for name in table}
    allowed = [name for group in seccomp.ALLOWED for name in group.split()]
    assert len(allowed) == len(set(allowed))
    assert set(allowed) <= known
    assert set(seccomp.CONDITIONAL) <= known
    assert not set(seccomp.CONDITIONAL) & set(allowed)
    assert known >= DENIED


@pytest.mark.parametrize("wrong", ["i686", "armv7l", "riscv64", ""])
def test_unknown_machines_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="machine"):
        seccomp.compile_filter("default", wrong)


def test_unknown_profiles_are_refused(machine: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        seccomp.compile_filter("defualt", machine)


# --- The compiler, with any rules ------------------------------------------------------------------------------------

RETURNS = st.integers(0, 400).map(bpf.refuse) | st.sampled_from([bpf.ALLOW, bpf.KILL_PROCESS])
SMALL = st.integers(0, 3)


def _conditions(inner: st.SearchStrategy[bpf.Node]) -> st.SearchStrategy[bpf.Node]:
    argument, masks = st.integers(0, 5), st.sampled_from([1, 3, bpf.WORD])
    values = st.lists(SMALL, max_size=3).map(tuple)
    by_value = st.builds(bpf.when, argument, values, inner, inner, masks)
    return by_value | st.builds(bpf.when_any_bit, argument, SMALL, inner, inner)


DECISIONS = st.recursive(RETURNS, _conditions, max_leaves=6)


def follow(node: bpf.Node | None, data: bytes, accumulator: int = 0) -> int:
    """What a graph means, without laying it out."""
    while node is not None:
        operation, operand, then, otherwise = node
        match operation:
            case bpf.LOAD:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case bpf.AND:
                accumulator &= operand
            case bpf.RETURN:
                return operand
        held = {
            bpf.EQUAL: accumulator == operand,
            bpf.GREATER_EQUAL: accumulator >= operand,
            bpf.ANY_BIT: accumulator & operand != 0,
        }.get(operation, True)
        node = then if held else otherwise
    raise AssertionError("the graph has a loose end")


@given(
    st.dictionaries(st.integers(0, HIGHEST_KNOWN), DECISIONS, max_size=60),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_compiled_rules_mean_what_the_rules_say(rules: dict[int, bpf.Node], args: list[int]) -> None:
    program = bpf.assemble(bpf.looking_at(bpf.NUMBER, bpf.search(seccomp.stretches(rules, "x86_64"))))
    check_as_the_kernel_does(program)
    for number in range(HIGHEST_KNOWN + 1):
        data = struct.pack("<IIQ6Q", number, X86_64, 0, *args)
        assert run(program, number, X86_64, *args) == follow(rules.get(number, bpf.refuse(EPERM)), data)


@given(st.sets(st.integers(1, 0xFFFFFFFF), max_size=400), st.lists(st.integers(0, 0xFFFFFFFF), max_size=20))
def test_search_finds_the_stretch_of_any_number(starts: set[int], probes: list[int]) -> None:
    firsts = [0, *sorted(starts)]
    program = bpf.assemble(
        bpf.looking_at(bpf.NUMBER, bpf.search([(first, (bpf.RETURN, first, None, None)) for first in firsts]))
    )
    check_as_the_kernel_does(program)
    edges = [context for first in firsts for context in (first, max(first - 1, 0))]
    for number in [*edges, *probes, 0xFFFFFFFF]:
        assert run(program, number, X86_64) == max(first for first in firsts if first <= number)


@pytest.mark.parametrize("length", [253, 254, 255, 256, 257, 400])
def test_targets_beyond_the_reach_of_a_test_are_reached(length: int) -> None:
    """Every link of a chain leads to the same two far places, of which one is no return and cannot be copied."""
    far = bpf.when(0, (7,), bpf.ALLOW, bpf.KILL_PROCESS)
    chain: bpf.Node = bpf.refuse(ENOSYS)
    for number in reversed(range(length)):
        chain = (bpf.EQUAL, number, far if number % 2 else bpf.refuse(EPERM), chain)
    program = bpf.assemble(bpf.looking_at(bpf.NUMBER, chain))
    check_as_the_kernel_does(program)
    for number in range(length):
        for argument, verdict in [(7, ALLOW), (8, KILL)]:
            assert run(program, number, X86_64, argument) == (verdict if number % 2 else ERRNO | EPERM)
    assert run(program, length, X86_64) == ERRNO | ENOSYS


@pytest.mark.parametrize("length", range(248, 262))
@pytest.mark.parametrize("copyable", [True, False])
@pytest.mark.parametrize("crossed", [True, False])
def test_both_branches_of_a_test_may_be_beyond_its_reach(length: int, copyable: bool, crossed: bool) -> None:
    """Between the two places and the second test of them lie instructions that decide nothing."""
    one = bpf.ALLOW if copyable else bpf.when(0, (7,), bpf.ALLOW, bpf.KILL_PROCESS)
    other = bpf.refuse(EPERM) if copyable else bpf.when(0, (7,), bpf.refuse(EPERM), bpf.KILL_PROCESS)
    filler: bpf.Node = (bpf.ANY_BIT, 2, one, other)
    for _ in range(length):
        filler = bpf.looking_at(bpf.NUMBER, filler)
    second: bpf.Node = (bpf.ANY_BIT, 1, other, one) if crossed else (bpf.ANY_BIT, 1, one, other)
    program = bpf.assemble(bpf.looking_at(bpf.NUMBER, (bpf.GREATER_EQUAL, 1000, filler, second)))
    check_as_the_kernel_does(program)
    for number, first in [(1, not crossed), (2, crossed), (1001, False), (1002, True)]:
        assert run(program, number, X86_64, 7) == (ALLOW if first else ERRNO | EPERM)


def test_equal_parts_of_rules_are_laid_out_once() -> None:
    shared = bpf.when(1, (3, 4, 5), bpf.ALLOW, bpf.refuse(EPERM))
    one = bpf.assemble(shared)
    two = bpf.assemble(bpf.when(0, (1,), shared, bpf.when(0, (2,), shared, bpf.ALLOW)))
    assert len(two) - len(one) <= 8 * 5  # two loads, two tests, perhaps a jump


# --- The numbers -----------------------------------------------------------------------------------------------------


def libseccomp() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as missing:
        require("libseccomp", False, str(missing))
        raise
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    return library


def test_numbers_are_those_of_libseccomp(machine: str) -> None:
    library = libseccomp()
    architecture = ARCHITECTURES[machine]
    not_known = -1
    newer = []
    for name, number in NUMBERS[machine].items():
        theirs = library.seccomp_syscall_resolve_name_arch(architecture, name.encode())
        if theirs == not_known:
            newer.append(name)
        else:
            assert theirs == number, name
    # A misspelt name would look like one that the library does not know yet.
    assert {NUMBERS[machine][name] for name in newer} <= {335, 336, *range(451, HIGHEST_KNOWN + 1)}, newer


def test_no_call_that_libseccomp_knows_is_missing(machine: str) -> None:
    library = libseccomp()
    for number in range(HIGHEST_KNOWN + 1):
        name = library.seccomp_syscall_resolve_num_arch(ARCHITECTURES[machine], number)
        if name is not None:
            assert NUMBERS[machine].get(name.decode()) == number, name


def test_no_number_has_two_names_and_the_newest_is_the_highest(machine: str) -> None:
    numbers = list(NUMBERS[machine].values())
    assert len(numbers) == len(set(numbers))
    assert max(numbers) == HIGHEST_KNOWN
