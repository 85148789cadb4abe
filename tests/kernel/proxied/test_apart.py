"""The network of sandboxes where launcher, egress process and gateway are services of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.proxied.conftest import ALLOW, OPERATORS_SECRETS, Internet
from tests.kernel.proxied.test_process import ASK
from tests.kernel.proxied.world import NET
from tests.kernel.talk import start
from tests.kernel.test_standalone import GATEWAY, egress, egress_folder, folder, gateway, launcher
from tests.service import PATIENCE, Service

__all__ = ["folder"]  # a fixture

NETWORK = {"policy": {"network": {"mode": "proxy", "allow": ["www.example.org:80"]}}}


@contextmanager
def apart(folder: Path, **more: str) -> Iterator[tuple[Service, Path]]:
    """The gateway, and the path of the socket of an egress process that is not there yet."""
    socket, path = folder / "launcher.sock", egress_folder(folder)
    settings = {"BULKHEAD_EGRESS__SOCKET": str(path), "BULKHEAD_EGRESS__ALLOW": json.dumps(ALLOW)}
    with launcher(socket), gateway(folder, socket, **settings, **more) as service:
        yield service, path


@pytest.fixture
def settings(internet: Internet) -> dict[str, str]:
    """Those of the egress process, which reads its own environment."""
    return {"BULKHEAD_EGRESS__PERMIT_NETS": NET, "BULKHEAD_EGRESS__RESOLVER": internet.names.address}


def test_restart_of_the_egress_process_costs_its_connections_and_nothing_else(
    folder: Path, settings: dict[str, str]
) -> None:
    with apart(folder) as (service, path), ExitStack() as started:
        first = started.enter_context(egress(path, **settings))
        sandbox = service.create(**NETWORK)
        other = start(service, sandbox, "sleep", "1000")
        open_connection = start(service, sandbox, "python3", "-c", ASK, "hold")
        assert open_connection.saw(b"200 OK\n") == b"198.18.0.1 HTTP/1.1 200 OK\n"
        first.kill()
        open_connection.saw(b"cut\n")
        waiting = start(service, sandbox, "python3", "-c", ASK)  # in the listener, until somebody accepts
        started.enter_context(egress(path, **settings))
        assert waiting.saw(b"200 OK\n") == b"198.18.0.1 HTTP/1.1 200 OK\n", "the same name has the same address"
        assert other.show()["state"] == "running"
        service.create(**NETWORK)


def reason(service: Service) -> str:
    """What the default runtime cannot do, as /readyz tells it. The service is ready nevertheless."""
    status, ready = service.call("GET", "/readyz")
    assert (status, ready["runtimes"][0]["ready"]) == (200, True), ready
    return str(ready["runtimes"][0]["reason"] or "")


def test_missing_egress_process_refuses_sandboxes_with_a_network_and_no_others(
    folder: Path, settings: dict[str, str]
) -> None:
    with apart(folder) as (service, path):
        assert service.run(service.create(), "echo", "fine")["stdout"] == "fine\n"
        status, problem = service.call("POST", "/sandboxes", NETWORK)
        assert (status, problem["type"]) == (503, "/problems/backend_unavailable"), problem
        assert "the egress process does not answer: No such file or directory" in problem["detail"]
        assert "the egress process does not answer: No such file" in reason(service)
        with egress(path, **settings):
            host.until(lambda: reason(service) == "", "it is found")
            sandbox = service.create(**NETWORK)
            assert "200 OK" in service.run(sandbox, "python3", "-c", ASK)["stdout"]


def test_gateway_reads_the_operators_secrets_itself(folder: Path, internet: Internet, settings: dict[str, str]) -> None:
    secrets, certificate = folder / "secrets.toml", folder / "ca.pem"
    secrets.touch(mode=0o600)
    secrets.write_text(OPERATORS_SECRETS)
    os.chown(secrets, GATEWAY, GATEWAY)
    certificate.write_text(internet.authority.certificate.read_text())
    certificate.chmod(0o644)
    with apart(folder, BULKHEAD_EGRESS__SECRETS_FILE=str(secrets)) as (service, path):
        with egress(path, BULKHEAD_EGRESS__CA_FILE=str(certificate), **settings):
            rule = {"host": "www.example.org", "ports": [443], "http": [{}]}
            policy = {"network": {"mode": "proxy", "allow": [rule]}}
            sandbox = service.create(policy=policy, secrets={"KEY": {"from": "llm"}})
            line = 'curl -sS -H "X-Key: $KEY" https://www.example.org/answer'
            done = service.run(sandbox, "sh", "-c", line)
            assert done["stdout"] == "answered\n", done
            assert internet.tls.requests[-1][2]["x-key"] == "canary-operators-5d20"


def epolls(pid: int) -> int:
    """The sockets of a sandbox are in an epoll of their own."""
    return host.descriptors(pid).count("anon_inode")


def test_gateway_that_ends_leaves_an_egress_process_that_serves_the_next(
    folder: Path, settings: dict[str, str]
) -> None:
    socket, path = folder / "launcher.sock", egress_folder(folder)
    own = {"BULKHEAD_EGRESS__SOCKET": str(path), "BULKHEAD_EGRESS__ALLOW": json.dumps(ALLOW)}
    with launcher(socket), egress(path, **settings) as process:
        used: set[int] = set()
        for name in ("one", "two"):
            with gateway(folder / name, socket, **own) as service:
                sandbox = service.create(**NETWORK)
                assert "200 OK" in service.run(sandbox, "python3", "-c", ASK)["stdout"]
                used.add(epolls(process.pid))
                service.process.kill()
                service.process.wait(PATIENCE)
            host.until(lambda: epolls(process.pid) == max(used) - 1, "nothing of its sandbox is left")
        assert len(used) == 1
        assert process.poll() is None
