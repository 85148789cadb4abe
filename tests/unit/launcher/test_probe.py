"""What is missing, and what a worker lacks: decided from what was read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.launcher.config import OPTIONAL_LAYERS
from app.launcher.daemon import probe

GOOD = {
    "Uid": "1900000001\t1900000001\t1900000001\t1900000001", "Gid": "1900000001\t1900000001\t1900000001\t1900000001",
    "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
}  # fmt: skip
ALL = list(probe.NAMESPACES)


def test_a_worker_with_everything_lacks_nothing() -> None:
    assert probe.shortcomings(GOOD, ALL, ALL) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CapEff": "0000000000000001"}, "CapEff is 0000000000000001"),
        ({"CapBnd": "000001ffffffffff"}, "CapBnd is 000001ffffffffff"),
        ({"NoNewPrivs": "0"}, "no_new_privs is not set"),
        ({"Seccomp": "0"}, "no system call filter is in force"),
        ({"Seccomp": "1"}, "no system call filter is in force"),
        ({"Uid": "0\t0\t0\t0"}, "it runs as root of the host"),
        ({"Uid": "7\t7\t0\t7"}, "it runs as root of the host"),
        ({"Gid": "7\t7\t7\t0"}, "it runs as root of the host"),
    ],
)
def test_what_a_worker_lacks_is_named(change: dict[str, str], said: str) -> None:
    assert probe.shortcomings(GOOD | change, ALL, ALL) == [said]


@pytest.mark.parametrize("name", probe.NAMESPACES)
def test_a_namespace_that_was_not_entered_is_named(name: str) -> None:
    entered = [other for other in ALL if other != name]
    assert probe.shortcomings(GOOD, entered, ALL) == [f"namespace {name} was not entered"]
    assert probe.shortcomings(GOOD, entered, entered) == []


def test_missing_layers_are_those_neither_there_nor_given_up_in_their_order() -> None:
    assert probe.missing_layers(set(OPTIONAL_LAYERS), []) == []
    assert probe.missing_layers(set(), []) == list(OPTIONAL_LAYERS)
    assert probe.missing_layers(set(), ["landlock", "swap_limit"]) == [
        layer for layer in OPTIONAL_LAYERS if layer not in ("landlock", "swap_limit")
    ]


@pytest.mark.parametrize("call", [os.getpid, Path("/does/not/exist").stat], ids=["returns", "raises"])
def test_launcher_that_cannot_return_to_its_namespace_ends(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]
) -> None:
    own, entered = 10_000, []

    def setns(descriptor: int, _: int) -> None:
        entered.append(descriptor)
        if descriptor == own:
            raise OSError(errno.EPERM, "not permitted")

    def exit_(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(probe, "setns", setns)
    monkeypatch.setattr(os, "_exit", exit_)
    with pytest.raises(SystemExit) as end:
        probe.in_network(os.getpid(), own, call)
    assert (end.value.code, len(entered)) == (1, 2)


def test_our_own_status_and_namespaces_can_be_read() -> None:
    status = probe.status_of(os.getpid())
    assert status["Uid"].split()[0] == str(os.getuid())
    assert set(status) >= {"CapBnd", "NoNewPrivs", "Seccomp"}
    assert set(probe.namespaces_of("self")) == set(probe.NAMESPACES)
