"""Layers by attacks: each layer alone around the same probe. `pytest -s` prints the grid.

A cell is expected to hold (`#`) or to let through (`.`). Who takes a layer away silently turns its column to dots, and
this test red; and every attack must be held by at least one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from app.launcher.kernel import landlock
from tests.kernel.attacks.catalog import BY_NAME
from tests.kernel.attacks.conftest import Results, run_layer
from tests.kernel.attacks.layers import LAYERS
from tests.require import require

# seccomp, Landlock, namespaces with an own uid and without capabilities
EXPECTED = {
    "read_secret": ". # #",
    "read_shadow": ". . #",
    "write_usr": ". # #",
    "write_etc": ". # #",
    "open_core_pattern": ". # #",
    "read_kallsyms": ". . #",
    "open_handle": "# # #",
    "make_block": ". # #",
    "device_ioctl": ". # .",
    "target_environ": ". . #",
    "ptrace_target": "# # #",
    "ptrace_child": "# . .",
    "signal_gateway": ". # #",
    "real_time": ". . #",
    "become_root": ". . #",
    "gain_capabilities": ". . #",
    "unshare_user": "# . .",
    "unshare_mounts": "# . #",
    "mount_tmpfs": "# # #",
    "change_root": "# . #",
    "io_uring_setup": "# . .",
    "bpf": "# . .",
    "keyctl": "# . .",
    "filter_allow": "# . .",
    "int80_call": "# . .",
    "vsock": "# . .",
    "raw_icmp": "# . #",
    "mptcp_connect": "# . #",
    "fast_open": "# . #",
    "tcp_host": ". # #",
    "udp_host": ". . #",
    "route_metadata": ". . #",
    "unix_abstract": ". # #",
    "unix_named": ". . #",
    "name_host": "# . #",
    "hang_up": "# . #",
    "read_kernel_log": "# . #",
}
Grid = Mapping[str, Mapping[str, str]]


@pytest.fixture(scope="module")
def grid(probe: Path, prey: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """What the probe says, by layer and attack."""
    folder = tmp_path_factory.mktemp("grid")
    found: dict[str, dict[str, str]] = {layer: {} for layer in LAYERS}
    for layer in LAYERS:
        for network in ("own", "host"):
            names = [name for name in EXPECTED if BY_NAME[name].network == network]
            found[layer] |= run_layer(layer, network, probe, prey, folder / layer / network, *names)
    return found


def _cell(name: str, said: str) -> str:
    return "." if said in BY_NAME[name].control else "#"


def test_each_layer_holds_what_it_is_there_for(grid: Grid, confined: Results) -> None:
    require("landlock", landlock.abi() >= 6, "the grid is that of a kernel with Landlock's scopes")
    print(f"\n{'attack':20}{'control':>10}" + "".join(f"{layer:>15}" for layer in (*LAYERS[1:], "all")))
    wrong = []
    for name, expected in EXPECTED.items():
        said = [grid[layer][name] for layer in LAYERS]
        row = [_cell(name, word) for word in said]
        shown = [f"{mark} {word}" for mark, word in zip(row[1:], said[1:], strict=True)]
        print(f"{name:20}{said[0]:>10}" + "".join(f"{cell:>15}" for cell in (*shown, confined[name])))
        if row[0] != ".":
            print(f"{'':20}the control fails on this host: not judged")
        elif " ".join(row[1:]) != expected:
            wrong.append(f"{name}: {' '.join(row[1:])} instead of {expected}")
    assert not wrong


def test_every_attack_is_held_by_a_layer() -> None:
    assert [name for name, cells in EXPECTED.items() if "#" not in cells] == []


def test_no_layer_is_idle() -> None:
    """Each layer alone holds something that no other holds."""
    alone = {cells.split().index("#") for cells in EXPECTED.values() if cells.count("#") == 1}
    assert alone == {0, 1, 2}
