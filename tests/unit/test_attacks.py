"""The benchmark of attacks works; what it measures is measured by hand, alone on a machine."""

from __future__ import annotations

import asyncio

from app.core.resources import Capacity
from benchmarks import attacks, attacks_inside, attacks_outside
from benchmarks.attacks_outside import Target
from tests.unit.api.service import Service


async def test_attack_runs_for_its_time_and_both_honest_clients_are_measured() -> None:
    async with Service().served() as live:
        target = Target(live.port, "nobody", "nothing", seconds=0.5)
        _, waited = await asyncio.gather(
            asyncio.to_thread(attacks_outside.send_refused_bodies, target),
            asyncio.to_thread(attacks.observe, live.port, 0.5),
        )
    assert min(len(waited.health), len(waited.creates)) > 0
    assert waited.refused == 0


def test_row_tells_what_others_waited() -> None:
    quiet = attacks.Waited([0.001] * 10, [0.002] * 10)
    assert attacks.row("none", quiet, quiet) == "| none | 1.0 | 1.0 | 2.0 | 1.0 | 0 |"
    assert "none was made" in attacks.row("all", attacks.Waited([0.001] * 10, [], 7), quiet)


def test_programs_for_the_inside_are_python() -> None:
    for name, (script, executions) in attacks_inside.ATTACKS.items():
        compile(script, name, "exec")
        assert 0 < executions <= Capacity().executions_running
    for attack in attacks_outside.ATTACKS.values():
        compile(attack.prepare, "prepare", "exec")
