"""Boxes with a network of the mode `proxy`, over the double. Their boxes have this host's network, and the proxy of a
real egress server listens on its loopback: what is tested is what the backend asks for, proves, and says."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.boxlite.box import box_of
from app.backends.boxlite.egress import BoxEgress
from app.backends.boxlite.inside import BoxCommands
from app.backends.boxlite.network import NO_HTTP
from app.backends.boxlite.scripts import script
from app.backends.egress_link import EgressLink
from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable, Conflict, IsolationUnavailable, PolicyNotSupported
from app.core.models import SandboxSpec
from app.core.network_log import NetworkEvent
from app.core.network_rules import parse_rule
from app.core.policy import Network
from app.egress.config import EgressConfig
from app.egress.server import EgressServer
from tests.boxlite.client import box_double
from tests.boxlite.double import Route, Settings
from tests.boxlite.rig import INSTANCE, QUICK, SPEC, Rig, descriptors, left_nothing, settings_for, start
from tests.unit.egress.support import HOST, NAME, FakeDns, trusted_hosts
from tests.unit.egress.test_plain_http import Host

NAMES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def spec(*rules: str | dict[str, Any]) -> SandboxSpec:
    network = Network("proxy", rules=tuple(map(parse_rule, rules)))
    return replace(SPEC, policy=replace(SPEC.policy, network=network))


@dataclass
class ProxyRig(Rig):
    host: Host
    port: int  # of the host
    dns: FakeDns
    link: EgressLink
    proxy: str
    reported: list[tuple[str, NetworkEvent]]

    async def boxed(self, *argv: str, sandbox_id: str = "sbx_1", **options: Any) -> tuple[int, bytes]:
        """Exit code and output of a command in a box that may reach NAME."""
        sandbox = await self.sandbox(sandbox_id, spec(f"{NAME}:{self.port}"))
        run = await start(sandbox, *argv, **options)
        ended = await run.end()
        return ended.code or 0, run.out


@dataclass
class World:
    """A real egress server, the gateway's link to it, and one real host, which is NAME."""

    host: Host
    port: int  # of the host
    dns: FakeDns
    link: EgressLink
    reported: list[tuple[str, NetworkEvent]]


@asynccontextmanager
async def world(folder: Path, proxy: socket.socket) -> AsyncIterator[World]:
    """`proxy`: the socket on which the proxy is to listen. It is taken over."""
    host = Host()
    real = await asyncio.start_server(host.serve, HOST, 0)
    transport, dns = await asyncio.get_running_loop().create_datagram_endpoint(FakeDns, local_addr=(HOST, 0))
    asked = "{}:{}".format(*transport.get_extra_info("sockname"))
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders.bind(str(folder / "egress.sock"))
    orders.listen()
    config = EgressConfig(os.getuid(), ("127.0.0.0/8",), asked, proxy=proxy.detach())
    server = EgressServer(orders, config, trusted_hosts())
    reported: list[tuple[str, NetworkEvent]] = []
    link = EgressLink(folder / "egress.sock", lambda *told: reported.append(told), shared=True)
    try:
        yield World(host, real.sockets[0].getsockname()[1], dns, link, reported)
    finally:
        link.aclose()
        await server.aclose()
        transport.close()
        real.close()
        await real.wait_closed()


@asynccontextmanager
async def proxied(folder: Path, *, address: str = "") -> AsyncIterator[ProxyRig]:
    """`address`: where boxes are told that the proxy is, if it is not there."""
    async with box_double(Settings(shares_network=True)) as double:
        before, tasks = descriptors(), asyncio.all_tasks()
        proxy = socket.create_server((HOST, 0))
        place = "{}:{}".format(*proxy.getsockname())
        async with world(folder, proxy) as made:
            egress = BoxEgress(made.link, address or place)
            backend = BoxliteBackend(settings_for(double), INSTANCE, QUICK, egress=egress, no_proxy="")
            backend.open()
            try:
                yield ProxyRig(double, backend, made.host, made.port, made.dns, made.link, place, made.reported)
            finally:
                await backend.aclose()
        await left_nothing(double, tasks, before)


async def test_box_may_reach_the_proxys_address_and_no_other(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec(f"{NAME}:443"))
        (create,) = r.double.sent(Route.CREATE)
        assert create.json["network"] == {"mode": "enabled", "allow_net": [HOST]}
        network = sandbox.receipt["network"]
        assert (network["mode"], network["allow"]) == ("proxy", [parse_rule(f"{NAME}:443").as_dict()])
        assert any("look up" in note for note in sandbox.receipt["notes"])


async def test_program_reaches_the_hosts_of_its_rules_by_its_environment_alone(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        url = f"http://{NAME}:{r.port}/x"
        assert await r.boxed("curl", "-sS", url) == (0, b"ok")
        assert (r.host.requests[0].target, r.host.field(b"proxy-authorization")) == (b"/x", None)
        ((runtime, event),) = r.reported
        assert (runtime, event.verdict, event.name, event.port) == ("boxlite", "allowed", NAME, r.port)


async def test_what_no_rule_permits_is_refused_and_in_the_log(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec(f"{NAME}:{r.port}"))
        run = await start(sandbox, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_connect}", "https://a.example.org/")
        await run.end()
        assert run.out == b"403"
        assert sandbox.network_log is not None
        (refused,) = sandbox.network_log.refused()
        assert (refused.name, refused.port, refused.reason, refused.count) == ("a.example.org", 443, "rule", 1)
        assert r.dns.asked.total() == 0


async def test_environment_names_the_proxy_where_the_command_does_not(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec(f"{NAME}:443"))
        terminal: dict[str, Any] = {"tty": (24, 80)}
        for options in ({}, terminal):
            run = await start(sandbox, "env", **options)
            await run.end()
            found = dict(line.partition("=")[::2] for line in run.out.decode().split() if "proxy" in line.lower())
            assert {found[name] for name in NAMES} == {found["http_proxy"]}
            assert found["http_proxy"].startswith("http://sbx_1:")
            assert found["http_proxy"].endswith(f"@{r.proxy}")
            assert found["no_proxy"] == found["NO_PROXY"] == "localhost,127.0.0.1,::1"
        run = await start(sandbox, "env", env={"PATH": "/usr/bin", "https_proxy": "", "NO_PROXY": "x"})
        await run.end()
        found = dict(line.partition("=")[::2] for line in run.out.decode().split() if "proxy" in line.lower())
        assert (found["https_proxy"], found["NO_PROXY"]) == ("", "x")
        assert found.keys() == {"https_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"}


async def test_each_sandbox_has_a_credential_that_is_worth_its_own_rules(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        one = await r.sandbox("sbx_1", spec(f"{NAME}:{r.port}"))
        two = await r.sandbox("sbx_2", spec("other.example.org:443"))
        seen = []
        for sandbox in (one, two):
            run = await start(sandbox, "sh", "-c", f"echo $http_proxy; curl -sS -m 5 http://{NAME}:{r.port}/")
            await run.end()
            seen.append(run.out.partition(b"\n"))
        assert seen[0][2] == b"ok"
        assert b'"reason": "rule"' in seen[1][2]
        assert seen[0][0] != seen[1][0]


async def test_egress_process_is_told_which_boxes_have_one_client(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        for number, client in enumerate("aab"):
            await r.sandbox(f"sbx_{number}", replace(spec(f"{NAME}:443"), client=client))
        first, second, other = [network.client for network in r.link._networks.values()]
        assert first == second != other


@pytest.mark.parametrize("tool", ["curl", "wget", "python3", "bash", "none"])
async def test_every_program_that_can_asks_for_the_proxy(tool: str, tmp_path: Path) -> None:
    """In a box whose PATH has this one beside the shell."""
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec(f"{NAME}:443"))
        url = sandbox._proxy["http_proxy"]
        credential = url.removeprefix("http://").partition("@")[0]
        told = (url, *r.proxy.split(":"), base64.b64encode(credential.encode()).decode())
        only = (
            "mkdir /tmp/only; ln -s $(command -v sh) $(command -v $0 || echo /opt/busybox/$0) /tmp/only; PATH=/tmp/only"
        )
        run = await start(sandbox, "sh", "-c", f'{only}; exec sh -c "$@"', tool, script("ask_proxy"), "sh", *told)
        ended = await run.end()
        assert (run.out.strip(), ended.code) == ((b"", 5) if tool == "none" else (b"sbx_1", 0)), run.err


@pytest.mark.parametrize("where", ["nobody", "another"])
async def test_box_that_does_not_find_the_proxy_is_not_made(where: str, tmp_path: Path) -> None:
    """Nobody listens at the address, or somebody else does."""
    other = await asyncio.start_server(Host().serve, HOST, 0)
    port = other.sockets[0].getsockname()[1]
    if where == "nobody":
        other.close()
    async with proxied(tmp_path, address=f"{HOST}:{port}") as r:
        with pytest.raises(IsolationUnavailable, match="does not find this service's proxy") as refused:
            await r.sandbox("sbx_1", spec(f"{NAME}:443"))
        assert refused.value.layer == "network_proxy"
        assert r.double.boxes == []
    other.close()


@pytest.mark.parametrize(
    "outbound", [None, {"mode": "enabled", "allow_net": []}, {"mode": "enabled", "allow_net": [HOST, "10.0.0.0/8"]}]
)
async def test_box_with_another_network_than_was_asked_for_is_not_proved(outbound: Any, tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        egress = BoxEgress(r.link, r.proxy)
        box = box_of({"box_id": "b", "network": {"outbound": outbound}})
        with pytest.raises(IsolationUnavailable, match="the server has another network"):
            await egress.prove(box, BoxCommands(r.backend._server, "b"), egress.credential("sbx_1"))


async def test_without_a_proxy_the_mode_is_no_capability(tmp_path: Path) -> None:
    async with box_double(Settings()) as double:
        backend = BoxliteBackend(settings_for(double), INSTANCE, QUICK, no_proxy="the operator has not set it")
        assert Capability.NETWORK_PROXY not in backend.info.capabilities
        assert backend.info.no_proxy == "has no network of the mode proxy: the operator has not set it"
        backend.open()
        with pytest.raises(BackendUnavailable, match="the operator has not set it"):
            await backend.create("sbx_1", spec(f"{NAME}:443"))
        assert double.sent(Route.CREATE) == []
        await backend.aclose()


async def test_rule_that_needs_tls_to_be_read_is_refused_by_name(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        rule = {"host": NAME, "ports": [443], "http": [{"methods": ["GET"]}]}
        with pytest.raises(PolicyNotSupported) as refused:
            r.backend.fit(spec(f"{NAME}:443", rule))
        assert refused.value.pointer == "/policy/network/allow/1/http"
        assert str(refused.value) == NO_HTTP


async def test_create_without_an_egress_process_leaves_no_box(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        (tmp_path / "egress.sock").unlink()
        with pytest.raises(BackendUnavailable, match="the egress process does not answer"):
            await r.sandbox("sbx_1", spec(f"{NAME}:443"))
        assert r.double.boxes == []


async def test_rules_of_a_box_can_be_replaced_while_it_runs(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec("other.example.org:443"))
        codes = []
        for rules in ((f"{NAME}:{r.port}",), ()):
            await sandbox.change_network(spec(*rules).policy.network.rules)
            run = await start(
                sandbox, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{NAME}:{r.port}/"
            )
            await run.end()
            codes.append(run.out)
        assert codes == [b"200", b"403"]
        assert sandbox.receipt["network"]["allow"] == []
        rule = {"host": NAME, "ports": [443], "http": [{"methods": ["GET"]}]}
        with pytest.raises(Conflict, match=NO_HTTP):
            await sandbox.change_network(spec(rule).policy.network.rules)


async def test_end_of_a_sandbox_ends_its_credential(tmp_path: Path) -> None:
    async with proxied(tmp_path) as r:
        sandbox = await r.sandbox("sbx_1", spec(f"{NAME}:{r.port}"))
        url = sandbox._proxy["http_proxy"]
        assert await _answers(url) == 200
        await sandbox.destroy()
        assert await _answers(url) == 407


async def _answers(proxy: str) -> int:
    """The status of the proxy's answer to who has this URL."""
    credential, _, place = proxy.removeprefix("http://").partition("@")
    host, port = place.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    basic = base64.b64encode(credential.encode()).decode()
    head = (
        f"GET http://bulkhead.invalid/ HTTP/1.1\r\nHost: bulkhead.invalid\r\nProxy-Authorization: Basic {basic}\r\n\r\n"
    )
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return int(answer.split()[1])
