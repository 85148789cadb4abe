"""A sandbox at all its limits at once: who else pays for it, in processor time, and what its neighbours still get."""

from __future__ import annotations

import statistics

from benchmarks.rest import Rest
from benchmarks.stress import neighbour, stress
from tests.kernel import host
from tests.service import Service

ROUNDS = 40


def test_only_the_sandbox_itself_pays_for_being_at_all_its_limits(service: Service) -> None:
    rest, launcher = Rest(service.port), service.children()["launcher"]
    samples: dict[tuple[str, str], list[float]] = {}
    before = host.cpu_ns(launcher)
    neighbour(rest, "quiet", ROUNDS, samples)
    quiet = host.cpu_ns(launcher) - before
    sandbox = stress(rest)
    worker = host.worker_of(service, sandbox)
    worked, before = host.cpu_ns(worker), host.cpu_ns(launcher)
    neighbour(rest, "stressed", ROUNDS, samples)
    stressed, worked = host.cpu_ns(launcher) - before, host.cpu_ns(worker) - worked
    executions = rest("GET", f"/sandboxes/{sandbox}/executions")[1]["items"]
    used = 0.0
    for execution in executions:
        path = f"/sandboxes/{sandbox}/executions/{execution['id']}"
        rest("DELETE", path)
        used += service.ended(path)["exit"]["cpu_seconds"]
    rest.delete(sandbox)
    rest.close()
    for name in ("create", "execute"):
        many, few = (statistics.quantiles(samples[name, state], n=100)[98] for state in ("stressed", "quiet"))
        print(f"{name}: p99 {many / few:.1f} times its quiet value")
    assert all(len(values) == ROUNDS for values in samples.values()), "every create and command of the neighbours"
    assert worked / 1e9 < 0.1 * used, "the worker is outside of the limit"
    assert stressed < 2 * quiet, "the launcher does the same work for the same creates"
