"""Every attack of the catalogue in a real sandbox: refused with the exact errno or signal, and shown to work outside.

`pytest tests/kernel/attacks -rs` lists what this host cannot show.
"""

from __future__ import annotations

import pytest

from tests.kernel.attacks.catalog import FILES, KERNEL, LOOPBACK, NETWORK, PROCESSES, Attack
from tests.kernel.attacks.conftest import Results, Verdict


def _named(attack: Attack) -> str:
    return f"{attack.section}{attack.line}-{attack.name}-{attack.expected}"


@pytest.mark.parametrize("attack", FILES, ids=_named)
def test_attack_on_files_is_refused(attack: Attack, confined: Results, refused: Verdict) -> None:
    refused(attack, confined)


@pytest.mark.parametrize("attack", FILES, ids=_named)
def test_attack_on_files_is_refused_on_a_disk(attack: Attack, on_disk: Results, refused: Verdict) -> None:
    refused(attack, on_disk)


@pytest.mark.parametrize("attack", PROCESSES, ids=_named)
def test_attack_on_processes_is_refused(attack: Attack, confined: Results, refused: Verdict) -> None:
    refused(attack, confined)


@pytest.mark.parametrize("attack", KERNEL, ids=_named)
def test_attack_on_the_kernel_is_refused(attack: Attack, confined: Results, refused: Verdict) -> None:
    refused(attack, confined)


@pytest.mark.parametrize("attack", NETWORK, ids=_named)
def test_attack_on_the_network_is_refused(attack: Attack, confined: Results, refused: Verdict) -> None:
    refused(attack, confined)


@pytest.mark.parametrize("attack", LOOPBACK, ids=_named)
def test_profile_loopback_opens_no_way_out(attack: Attack, on_loopback: Results, refused: Verdict) -> None:
    refused(attack, on_loopback)
