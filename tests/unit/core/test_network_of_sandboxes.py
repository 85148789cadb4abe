"""The log of a sandbox's network: as old as the sandbox, charged to it, and kept with its record."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from app.core.commands import rules_bytes, spec_bytes
from app.core.network_log import EVENT_BYTES, NetworkLog
from app.core.network_rules import parse_rule
from app.core.policy import Network, Policy
from app.core.sandboxes import Sandbox
from tests.unit.core.support import Core, spec, until

PROXIED = spec(policy=Policy(network=Network("proxy", rules=(parse_rule("a.test:443"),))))


def log_of(sandbox: Sandbox) -> NetworkLog:
    assert sandbox.network_log is not None
    return sandbox.network_log


async def test_sandbox_without_a_network_has_no_log() -> None:
    async with Core() as core:
        assert (await core.create()).network_log is None


async def test_events_count_towards_what_is_kept_of_the_sandbox_and_are_given_back() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        budget = core.sandboxes._resources.commands
        before = budget.used
        for _ in range(3):
            core.backend.sandboxes[sandbox.id].dial("a.test", 443)
        assert budget.used == before + 3 * EVENT_BYTES
        await sandbox.destroy()
        assert budget.used == 0
        assert [logged.event.name for logged in log_of(sandbox)] == ["a.test"] * 3


async def test_rules_count_towards_what_is_kept_of_the_sandbox() -> None:
    rules = tuple(parse_rule({"host": f"n{n}.test", "ports": list(range(1, 17))}) for n in range(64))
    many = spec(policy=Policy(network=Network("proxy", rules=rules)))
    assert spec_bytes(many) - spec_bytes(spec()) > 64 * 1500, "measured for the longest names"


@pytest.mark.parametrize(
    "http",
    [
        None,
        [{}],
        [{"methods": [f"M{n}"]} for n in range(8)],
        [{"methods": [f"M{n}-{m}".ljust(32, "X") for m in range(16)]} for n in range(8)],
        [{"paths": [f"/{n}" for n in range(32)]}],
        [{"paths": [f"/{n}/".ljust(256, "x") for n in range(32)]}],
        [{"paths": [f"/{n}/\U0001d538".ljust(253, "x") for n in range(32)]}],
    ],
    ids=["no http", "one", "many", "methods", "paths", "long paths", "wide letters"],
)
def test_rules_count_with_the_memory_that_they_take(http: Any) -> None:
    """In the policy and in the receipt."""
    texts = [json.dumps({"host": f"n{n}.test", "ports": [443], "http": http}) for n in range(16)]
    parse_rule(json.loads(texts[0]))  # what is kept of the first one for all
    tracemalloc.start()
    rules = tuple(parse_rule(json.loads(text)) for text in texts)
    told = [rule.as_dict() for rule in rules]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(told) == len(rules)
    assert taken <= rules_bytes(rules) <= 3 * taken


async def test_log_takes_nothing_more_after_the_end_of_the_sandbox() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        inside = core.backend.sandboxes[sandbox.id]
        await sandbox.destroy()
        inside.dial("a.test", 443)
        assert (log_of(sandbox).closed, log_of(sandbox).total) == (True, 0)


async def test_log_of_a_lost_sandbox_is_closed() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        await core.backend.lose(sandbox.id, "its worker ended")
        await until(lambda: log_of(sandbox).closed)
        assert sandbox.state == "failed"


async def test_one_sandbox_does_not_fill_the_memory_of_all() -> None:
    async with Core(commands_mib=1) as core:
        first, second = await core.create(PROXIED), await core.create(PROXIED)
        for _ in range(1000):
            core.backend.sandboxes[first.id].dial("a.test", 443)
        for _ in range(10):
            core.backend.sandboxes[second.id].dial("a.test", 443)
        assert len(log_of(first).read(0)) < 1000
        assert len(log_of(second).read(0)) == 10
