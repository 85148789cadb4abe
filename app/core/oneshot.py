"""A one-shot run: create, run and destroy as one use case. Its sandbox never outlives it."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.models import SandboxSpec
from app.core.running import Job, Outcome, Reserve, carry_out, check_job, with_refused
from app.core.sandboxes import Sandboxes


@dataclass(frozen=True, slots=True)
class OneShot:
    spec: SandboxSpec
    job: Job


async def run_once(sandboxes: Sandboxes, shot: OneShot, client: str = "", reserve: Reserve | None = None) -> Outcome:
    """When this returns or raises, no process of the sandbox exists, and no record of it is kept. When it is cancelled,
    it ends at once, and the sandbox with it. Raises what a create, its files and a start raise. Raises InvalidRequest,
    CapabilityMissing and UnsupportedByRuntime before anything is begun."""
    placement = await check_job(shot.job, shot.spec, sandboxes.registry.get(shot.spec.runtime).info)
    sandbox, _ = sandboxes.create(shot.spec, client=client, ephemeral=True)
    try:
        await sandboxes.wait_created(sandbox, shot.spec.ttl_seconds)
        sandbox.check_running()  # perhaps somebody deleted it, and with it its record
        outcome = await carry_out(sandboxes, sandbox, shot.job, placement, reserve)
    finally:
        await sandbox.destroy("the run is over")
    return with_refused(outcome, sandbox)  # all of its network events are there now
