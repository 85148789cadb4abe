"""`bulkhead probe` shows what `host.probe_host` found."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from app.cli import host, operate
from app.cli.host import LayerReport

FOUND = [
    LayerReport("seccomp", True, "filters can be loaded"),
    LayerReport("swap_limit", False, "no memsw limit", "boot with swapaccount=1", optional=True),
]


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probe_host", lambda: FOUND)
    monkeypatch.delenv("BULKHEAD_PROCESS__ACCEPT_MISSING", raising=False)


def test_missing_layer_is_shown_with_its_cure_and_fails(capfd: pytest.CaptureFixture[str]) -> None:
    assert operate.probe(Namespace(json=False)) == 1
    shown = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown] == [["LAYER", "THERE"], ["seccomp", "yes"], ["swap_limit", "no"]]
    assert shown[2].endswith("boot with swapaccount=1")


def test_layer_that_the_operator_gave_up_by_name_is_no_failure(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_PROCESS__ACCEPT_MISSING", "swap_limit")
    assert operate.probe(Namespace(json=False)) == 0
    assert capfd.readouterr().out.splitlines()[2].split()[:2] == ["swap_limit", "accepted"]


def test_json_is_a_list_of_layers(capfd: pytest.CaptureFixture[str]) -> None:
    assert operate.probe(Namespace(json=True)) == 1
    found = json.loads(capfd.readouterr().out)
    assert [layer["layer"] for layer in found] == ["seccomp", "swap_limit"]
    assert found[1]["cure"] == "boot with swapaccount=1"
