"""One layer switched off at a time: either the launcher itself refuses to serve, or attacks that failed before work.

So no layer can be lost without a red test. `none` first: the harness itself changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.errors import LaunchFailed
from app.core.network_rules import parse_rule
from app.core.policy import Network, Policy
from app.launcher.kernel import landlock
from tests.kernel.attacks.catalog import ALL, BY_NAME
from tests.kernel.attacks.mutant_launcher import MUTATIONS
from tests.kernel.attacks.mutants import Launcher
from tests.require import require

# Mutation -> the step that refuses. What is not served cannot be attacked.
REFUSED = {
    "seccomp_off": "prove_filter",
    "seccomp_allows_all": "prove_filter",
    "landlock_off": "prove_landlock",
    "landlock_rules_for_all": "prove_landlock",
    "no_new_privs_off": "restrict_files",
    "capabilities_kept": "prove",
    "bounding_set_kept": "prove",
    "identity_kept": "mount_storage",
    "user_namespace_of_root": "prove",
    "no_user_namespace": "map_identity",
    "no_mount_namespace": "mount_proc",
    "no_pid_namespace": "mount_proc",
    "no_ipc_namespace": "prove",
    "no_uts_namespace": "name_host",
    "no_network_namespace": "raise_loopback",
    "no_cgroup_namespace": "mount_groups",
    "groups_of_workers": "prove_groups",
    "groups_writable": "prove_groups",
    "meminfo_writable": "prove_read_only_root",
    "root_writable": "prove_read_only_root",
    "usr_writable": "prove_read_only_root",
    "proc_writable": "prove_read_only_root",
    "proc_unmasked": "prove_masks",
}
# The same with a network.
REFUSED_WITH_PORTS = {
    "network_not_opened": "prove_network",
    "addresses_not_owned": "prove_network",
    "listener_kept": "worker",
    "other_ports_connected": "prove_network",
    "landlock_without_tcp": "restrict_files",
}
# Mutation -> attacks that work now.
RED = {
    "none": "",
    "worker_dumpable": "target_mem target_environ target_maps target_fd target_cwd target_exe",
    "no_limits": "lock_memory",
    "landlock_without_tcp": "bind_tcp tcp_host",
    "landlock_without_scopes": "",
    "landlock_without_ioctl": "device_ioctl",
    "landlock_without_char_devices": "make_whiteout make_char",
    "clone_unfiltered": "clone_user",
    "sockets_unfiltered": "vsock netlink_audit mptcp mptcp_connect fast_open",
    "socket_options_unfiltered": "attach_filter attach_port_filter",
    "prctl_unfiltered": "filter_by_prctl",
    "seccomp_call_allowed": "filter_allow filter_notify",
    "ptrace_allowed": "ptrace_child ptrace_me read_memory_child write_memory_child",
    "io_uring_allowed": "io_uring_setup",
    "keys_allowed": "keyctl add_key",
    "terminals_made_by_all": "make_terminal",
}
NETWORK = Network("proxy", rules=(parse_rule("index.example.org:443"),))
NAMES = [attack.name for attack in ALL]
Start = Callable[[str], Launcher]


@pytest.fixture
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Start:
    require("landlock", landlock.abi() >= 6, "the mutations are those of a host with every layer")
    return lambda mutation: Launcher(tmp_path_factory.mktemp("m"), mutation)


@pytest.mark.parametrize("mutation", REFUSED)
async def test_launcher_serves_nothing_without(mutation: str, launcher: Start, probe: Path) -> None:
    with launcher(mutation) as running, pytest.raises(LaunchFailed) as failed:
        await running.attack(probe, "read_shadow")
    assert failed.value.step == REFUSED[mutation]


@pytest.mark.parametrize("mutation", REFUSED_WITH_PORTS)
async def test_launcher_serves_no_network_without(mutation: str, launcher: Start) -> None:
    with launcher(mutation) as running, pytest.raises(LaunchFailed) as failed:
        await running.run("true", policy=Policy(network=NETWORK))
    assert failed.value.step == REFUSED_WITH_PORTS[mutation]


@pytest.mark.parametrize("mutation", RED)
async def test_attacks_notice_the_loss_of(mutation: str, launcher: Start, probe: Path, prey: dict[str, str]) -> None:
    env = {**prey, "TARGET": "1", "OWN_NETWORK": "1", "LINK": "/usr/bin/env"}
    with launcher(mutation) as running:
        said = await running.attack(probe, *NAMES, env=env)
    turned = {name: word for name, word in said.items() if word != BY_NAME[name].expected}
    missed = set(RED[mutation].split()) - set(turned)
    assert not missed, turned
    if mutation == "none":
        assert not turned


def test_every_mutation_is_noticed_by_somebody() -> None:
    noticed = set(REFUSED) | set(REFUSED_WITH_PORTS) | set(RED)
    assert set(MUTATIONS) == noticed | {"worker_never_rests"}  # by test_busy_worker.py
