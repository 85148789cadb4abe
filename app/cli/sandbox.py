"""The sandbox of `run` and `create`: creates it, waits while it boots, destroys it. A sandbox that never ran is not
left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

from app.cli.interrupts import GRACE_SECONDS, Interrupts, Stopped
from app.cli.show import say
from app.client import Client, ClientError, ServiceProblem

# The create is answered after this, whatever the boot does: then the id is known, and a Ctrl-C can name what is to go.
CREATE_SECONDS = 2
LOOK_SECONDS = 60
DESTROY_SECONDS = 30.0


async def create(client: Client, interrupts: Interrupts, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a sandbox that runs. Raises Stopped and ClientError, and then there is no sandbox."""
    slow = asyncio.get_running_loop().call_later(CREATE_SECONDS, _tell_that_it_boots)
    try:
        request = asyncio.create_task(client.create_sandbox(dict(body), CREATE_SECONDS))
        sandbox = await interrupts.wait_for(request, GRACE_SECONDS)
        try:
            interrupts.check()
            return await _booted(client, interrupts, sandbox)
        except (Stopped, ClientError):
            await destroy(client, interrupts, sandbox["id"])
            raise
    finally:
        slow.cancel()


async def _booted(client: Client, interrupts: Interrupts, sandbox: dict[str, Any]) -> dict[str, Any]:
    while sandbox["state"] == "creating":
        look = asyncio.create_task(client.sandbox(sandbox["id"], LOOK_SECONDS))
        sandbox = await interrupts.wait_for(look, 0)
    if sandbox["state"] in {"failed", "destroyed"}:
        reason = sandbox.get("state_reason")
        ended = "failed" if sandbox["state"] == "failed" else "was destroyed"
        raise ClientError(f"the sandbox {sandbox['id']} {ended}" + (f": {reason}" if reason else ""))
    return sandbox


def _tell_that_it_boots() -> None:
    if os.isatty(2):
        say("booting …")


async def destroy(client: Client, interrupts: Interrupts, sandbox_id: str, *, service_ends: bool = False) -> None:
    """Destroys a sandbox. A failure is printed and does not change the exit status, as the program's own is known, or a
    worse failure follows. A service that ends destroys its sandboxes itself, and then need not answer."""
    request = asyncio.create_task(client.destroy_sandbox(sandbox_id))

    def give_up(_: signal.Signals) -> None:
        request.cancel()

    interrupts.react(give_up)
    try:
        async with asyncio.timeout(DESTROY_SECONDS):
            await request
    except (ClientError, TimeoutError, asyncio.CancelledError) as error:
        gone = isinstance(error, ServiceProblem) and error.slug == "not_found"
        if not gone and not (service_ends and isinstance(error, ClientError)):
            say(f"the sandbox {sandbox_id} may still exist: {str(error) or 'interrupted'}")
    finally:
        interrupts.react(None)
