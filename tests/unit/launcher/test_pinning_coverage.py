"""Nothing gets into the filter without a probe that shows what memory it can take, or a reason why it takes none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.launcher.kernel import allowed_arguments, seccomp
from app.launcher.kernel.bpf import ALLOW, Node
from tests.kernel.pinning import coverage

SOURCES = Path(coverage.__file__).parent


def may_allow(node: Node | None) -> bool:
    return node is not None and (node == ALLOW or may_allow(node[2]) or may_allow(node[3]))


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_each_system_call_that_is_allowed_has_a_probe_or_a_reason(profile: str) -> None:
    plain = {name for group in seccomp.ALLOWED for name in group.split()}
    decided = seccomp.CONDITIONAL | seccomp.PROFILES[profile]
    allowed = plain | {name for name, node in decided.items() if may_allow(node)}
    known = coverage.calls()
    assert allowed - set(known) == set()
    assert set(known) - allowed == set(), "these are not allowed any more"
    assert len(known) == len(set(known)), "a call has a probe or a reason, not both"


def test_tables_and_probes_are_the_same() -> None:
    written = [
        name
        for path in SOURCES.glob("pin_*.c")
        for name in re.findall(r'^    \{"(\w+)", \w+\},$', path.read_text(), re.M)
    ]
    assert len(written) == len(set(written))
    assert set(written) == coverage.probes()


def test_each_option_and_command_that_is_allowed_has_a_probe_or_a_reason() -> None:
    tables = (
        allowed_arguments.SOCKET_OPTIONS,
        allowed_arguments.IOCTL_COMMANDS,
        allowed_arguments.FCNTL_COMMANDS,
        allowed_arguments.PRCTL_OPTIONS,
    )
    allowed = {name for table in tables for name in table}
    known = coverage.arguments()
    assert allowed - set(known) == set()
    assert set(known) - allowed == set(), "these are not allowed any more"
    assert len(known) == len(set(known))
    assert set(coverage.PROBED_ARGUMENTS) <= coverage.probes()
