"""One service whose sandboxes may have a network, and the Internet that they find. Only addresses of these tests are
permitted."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.proxied.world import (
    HOST,
    NET,
    Authority,
    NameServer,
    WebServer,
    make_go_module,
    make_npm_package,
    make_repository,
    make_wheel,
    write,
)
from tests.require import require
from tests.service import Service

NAMES = [
    f"{name}.example.org"
    for name in ("www", "index", "files", "registry", "modules", "code", "db", "cache", "tcp", "mixed", "rebinding")
]
OPERATORS_SECRETS = '[llm]\nvalue = "canary-operators-5d20"\nhosts = ["www.example.org"]\n'
ALLOW = [
    "*:80",
    "*:443",
    "*:8443",
    {"host": "*", "ports": [5432, 6379], "raw": True},
    {"host": HOST, "ports": [7000], "raw": True},
]

PROFILES = """
[[api.network.allow]]
host = "code.example.org"
ports = [443]

[[api.network.allow]]
host = "www.example.org"
ports = [443]
http = [{methods = ["GET"], paths = ["/answer", "/bytes/*"]}]
"""


PACKAGES = Path(sysconfig.get_path("purelib"))  # libraries of the tests, which sandboxes may read


@dataclass
class Internet:
    folder: Path
    names: NameServer
    authority: Authority
    plain: WebServer
    tls: WebServer
    secrets: Path  # of the operator


@pytest.fixture(scope="package")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    require("root", os.geteuid() == 0, "servers at the ports 80 and 443 need root")
    folder = tmp_path_factory.mktemp("internet")
    folder.chmod(0o755)
    root = folder / "root"
    for make in (make_wheel, make_npm_package, make_go_module, make_repository):
        make(root)
    write(root / "www.example.org/answer", "answered\n")
    authority = Authority(folder, NAMES)
    names, plain, tls = NameServer(), WebServer(root, 80), WebServer(root, 443, authority.context)
    names.names = {name: [[HOST]] for name in NAMES}
    secrets = folder / "secrets.toml"
    secrets.touch(mode=0o600)
    secrets.write_text(OPERATORS_SECRETS)
    yield Internet(folder, names, authority, plain, tls, secrets)
    for server in (plain, tls, names):
        server.close()


@pytest.fixture(scope="package")
def service(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    profiles = internet.folder / "profiles.toml"
    write(profiles, PROFILES)
    settings = {
        "BULKHEAD_PROFILES": str(profiles),
        "BULKHEAD_EGRESS__ALLOW": json.dumps(ALLOW),
        "BULKHEAD_EGRESS__PERMIT_NETS": NET,
        "BULKHEAD_EGRESS__RESOLVER": internet.names.address,
        "BULKHEAD_EGRESS__CA_FILE": str(internet.authority.certificate),
        "BULKHEAD_EGRESS__SECRETS_FILE": str(internet.secrets),
        "BULKHEAD_PROCESS__ROOT_PATHS": str(PACKAGES),
    }
    with Service(tmp_path_factory.mktemp("data"), settings) as running:
        yield running


class Proxied:
    """Makes sandboxes that have a network and the certificate of the authority."""

    def __init__(self, service: Service, internet: Internet) -> None:
        self.service, self._certificate = service, internet.authority.certificate.read_text()
        self.made: list[str] = []

    def sandbox(self, *allow: str | dict[str, Any], **body: Any) -> str:
        network = {"mode": "proxy", "allow": list(allow)}
        policy = {"network": network, **body.pop("policy", {})}
        sandbox = self.service.create(policy=policy, **body)
        self.made.append(sandbox)
        self.service.run(sandbox, "sh", "-c", 'printf %s "$1" > ca.pem', "sh", self._certificate)
        return sandbox

    def events(self, sandbox: str) -> list[dict[str, Any]]:
        status, answer = self.service.call("GET", f"/sandboxes/{sandbox}/network?limit=500")
        assert status == 200, answer
        return list(answer["items"])

    def some_events(self, sandbox: str) -> list[dict[str, Any]]:
        """Once there are any. A refusal is told before the program notices it, the end of a connection after."""
        host.until(lambda: self.events(sandbox), "an event is told")
        return self.events(sandbox)


@pytest.fixture
def proxied(service: Service, internet: Internet) -> Iterator[Proxied]:
    made = Proxied(service, internet)
    yield made
    for sandbox in made.made:
        service.call("DELETE", f"/sandboxes/{sandbox}")
