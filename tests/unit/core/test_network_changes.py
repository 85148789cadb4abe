"""Other network rules for a sandbox that runs, beside everything else that can happen to it."""

from __future__ import annotations

import asyncio

import pytest

from app.core.commands import rules_bytes
from app.core.errors import BackendTimeout, BackendUnavailable, BulkheadError, CapacityExceeded, Conflict, WrongState
from app.core.network_rules import NetworkRule, parse_rule
from app.core.policy import Network, Policy
from app.core.sandboxes import Sandbox
from tests.null_backend import Gate
from tests.unit.core.support import Core, cancelled_after, spec, until
from tests.unit.core.test_network_of_sandboxes import PROXIED

OLD, NEW, OTHER = [(parse_rule(f"{name}.test:443"),) for name in "abc"]
MANY = tuple(parse_rule({"host": f"n{n}.test", "ports": list(range(1, 17))}) for n in range(64))


def in_force(core: Core, sandbox: Sandbox) -> tuple[tuple[NetworkRule, ...], ...]:
    return sandbox.network.rules, core.backend.sandboxes[sandbox.id].rules


async def test_new_rules_are_in_force_and_the_request_stays_what_it_was() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        for rules in (NEW, (), OLD + OTHER):
            before = sandbox.expires_at
            await sandbox.change_network(rules)
            assert in_force(core, sandbox) == (rules, rules)
            assert sandbox.expires_at == before, "its time goes on"
        assert sandbox.spec == PROXIED, "a repeated create finds it"


@pytest.mark.parametrize("mode", ["none", "direct"])
async def test_sandbox_without_such_rules_says_which_mode_it_has(mode: str) -> None:
    async with Core() as core:
        sandbox = await core.create(spec(policy=Policy(network=Network(mode))))
        with pytest.raises(Conflict, match=f"has the network mode '{mode}'; only rules of the mode 'proxy' can change"):
            await sandbox.change_network(NEW)


async def test_of_two_changes_at_once_the_later_one_holds_and_they_do_not_mix() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        core.backend.network_gate = gate = Gate()
        first = asyncio.ensure_future(sandbox.change_network(NEW))
        await gate.reached.wait()
        second = asyncio.ensure_future(sandbox.change_network(OTHER))
        await asyncio.sleep(0)
        assert in_force(core, sandbox) == (OLD, OLD)
        core.backend.network_gate = None
        gate.open()
        await asyncio.gather(first, second)
        assert in_force(core, sandbox) == (OTHER, OTHER)


async def test_paused_sandbox_gets_other_rules() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        await sandbox.pause()
        await sandbox.change_network(NEW)
        assert (sandbox.state, in_force(core, sandbox)) == ("paused", (NEW, NEW))


async def test_change_that_waits_does_not_hold_up_the_end() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        core.backend.network_gate = gate = Gate()
        changing = asyncio.ensure_future(sandbox.change_network(NEW))
        await gate.reached.wait()
        behind = asyncio.ensure_future(sandbox.change_network(OTHER))
        await sandbox.destroy()
        for waiting in (changing, behind):
            with pytest.raises(WrongState):
                await waiting
        assert sandbox.network.rules == OLD
        assert core.sandboxes._resources.commands.used == 0


@pytest.mark.parametrize("state", ["creating", "ended", "lost"])
async def test_sandbox_that_does_not_run_is_not_changed(state: str) -> None:
    async with Core() as core:
        if state == "creating":
            core.backend.create_gate = gate = Gate()
            sandbox, _ = core.sandboxes.create(PROXIED)
            await gate.reached.wait()
        else:
            sandbox = await core.create(PROXIED)
            await (sandbox.destroy() if state == "ended" else core.backend.lose(sandbox.id, "its worker ended"))
            await until(lambda: sandbox.over)
        with pytest.raises(WrongState):
            await sandbox.change_network(NEW)
        assert sandbox.network.rules == OLD
        if state == "creating":
            gate.open()


@pytest.mark.parametrize(
    ("error", "rules"),
    [
        (Conflict("a program of the sandbox holds port 443"), OLD),
        (BackendUnavailable("process", "the launcher is gone"), OLD),
        (BackendTimeout("process", "the egress process did not answer"), NEW),
    ],
)
async def test_change_that_fails_leaves_the_old_rules_unless_nobody_knows(
    error: BulkheadError, rules: tuple[NetworkRule, ...]
) -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        used = core.sandboxes._resources.commands.used
        core.backend.network_error = error
        with pytest.raises(type(error)):
            await sandbox.change_network(NEW)
        assert in_force(core, sandbox) == (rules, rules)
        assert core.sandboxes._resources.commands.used == used + rules_bytes(rules if rules != OLD else ())


async def test_change_goes_on_when_its_caller_is_gone() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        core.backend.network_gate = gate = Gate()
        assert await cancelled_after(5, sandbox.change_network(NEW))
        gate.open()
        await until(lambda: in_force(core, sandbox) == (NEW, NEW))


async def test_rules_count_towards_what_is_kept_as_long_as_they_are_in_force_and_those_of_the_create_always() -> None:
    async with Core() as core:
        sandbox = await core.create(PROXIED)
        budget = core.sandboxes._resources.commands
        before = budget.used
        await sandbox.change_network(MANY)
        assert budget.used == before + rules_bytes(MANY)
        await sandbox.change_network(NEW)
        assert budget.used == before + rules_bytes(NEW)
        await sandbox.change_network(())
        assert (budget.used, sandbox.spec.policy.network.rules) == (before, OLD)


async def test_rules_for_which_there_is_no_room_are_refused() -> None:
    async with Core(commands_mib=1) as core:
        sandbox = await core.create(PROXIED)
        with sandbox._resources.commands.holding("another", 400 * 1024), pytest.raises(CapacityExceeded):
            await sandbox.change_network(MANY * 4)
        assert in_force(core, sandbox) == (OLD, OLD)
