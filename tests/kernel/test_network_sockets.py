"""The process backend with a network: what the sandbox shares with the outside is the backend's to hand on, and ends
with the sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backends.process.backend import ProcessBackend
from app.backends.process.sandbox import ProcessSandbox
from app.core.backend import Logs
from app.core.errors import InvalidRequest
from app.core.limits import Limits
from app.core.models import Command, SandboxSpec
from app.core.network_rules import parse_rule
from app.core.output import OutputLog
from app.core.policy import Filesystem, Network, Policy
from tests.kernel import host
from tests.kernel.direct import Launched
from tests.kernel.egress_double import EgressDouble

NETWORK = Network("proxy", rules=(parse_rule("index.example.org:443"), parse_rule("db.example.org:5432")))
CONNECT = "import socket; print(socket.create_connection(('198.18.0.1', 5432)).recv(10).decode())"


@asynccontextmanager
async def backend(launched: Launched) -> AsyncIterator[ProcessBackend]:
    """At its end no descriptor of it is open."""
    before = host.own_descriptors()
    made = ProcessBackend(Path(launched[0].socket), egress=EgressDouble())
    try:
        yield made
    finally:
        await made.aclose()
    assert host.own_descriptors() == before


async def create(made: ProcessBackend, **policy: object) -> ProcessSandbox:
    limits = Limits(cpus=0.5, memory_mib=64, processes=32, disk_mib=16)
    return await made.create("sbx-1", SandboxSpec("process", limits, Policy(**policy)))  # type: ignore[arg-type]


async def output(sandbox: ProcessSandbox, *argv: str) -> str:
    logs = Logs(OutputLog(1 << 16), OutputLog(1 << 16))
    execution = await sandbox.execute("exe-1", Command(argv), logs)
    await execution.wait()
    return logs.stdout.read(0, 1 << 16).decode() + logs.stderr.read(0, 1 << 16).decode()


async def tell_address(listener: int) -> None:
    """Accepts one connection, and says which address it is for."""
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=os.dup(listener)) as held:
        held.setblocking(False)
        accepted, _ = await loop.sock_accept(held)
    with accepted:
        await loop.sock_sendall(accepted, accepted.getsockname()[0].removeprefix("::ffff:").encode())


async def test_sandbox_hands_out_its_sockets_and_closes_them_at_its_end(launched: Launched) -> None:
    async with backend(launched) as made:
        sandbox = await create(made, network=NETWORK)
        network = sandbox.network
        assert network is not None
        assert list(network.listeners) == [443, 5432]
        answering = asyncio.create_task(tell_address(network.listeners[5432]))
        said = await output(sandbox, "python3", "-c", CONNECT)
        await answering
        assert said == "198.18.0.1\n"
        await sandbox.destroy()
        assert sandbox.network is None
        assert not network.descriptors


@pytest.mark.parametrize("profile", ["default", "loopback"])
async def test_receipt_tells_the_ports_and_how_they_are_enforced(launched: Launched, profile: str) -> None:
    async with backend(launched) as made:
        sandbox = await create(made, profile=profile, loopback_tcp=profile == "loopback", network=NETWORK)
        receipt = sandbox.receipt
        network = receipt["network"]
        assert (network["mode"], network["ports"]) == ("proxy", [443, 5432])
        assert network["any_address_routes"] == ["0.0.0.0/0", "::/0"]
        assert (network["routes_to_outside"], [link["name"] for link in network["links"]]) == (0, ["lo"])
        landlock = receipt["landlock"]
        expected = {"default": (["bind_tcp", "connect_tcp"], [443, 5432]), "loopback": ([], [])}
        assert (landlock["tcp"], landlock["connect_ports"]) == expected[profile]


async def test_sandbox_without_a_network_has_no_sockets_ports_or_routes(launched: Launched) -> None:
    async with backend(launched) as made:
        sandbox = await create(made)
        assert sandbox.network is None
        network = sandbox.receipt["network"]
        assert (network["mode"], network["ports"], network["any_address_routes"]) == ("none", [], [])
        assert sandbox.receipt["landlock"]["connect_ports"] == []


async def test_create_that_fails_after_its_sockets_were_made_keeps_none(launched: Launched) -> None:
    async with backend(launched) as made:
        with pytest.raises(InvalidRequest):
            await create(made, network=NETWORK, filesystem=Filesystem(("/nowhere",), ()))
