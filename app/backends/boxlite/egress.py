"""The network of the mode `proxy`: a box reaches the egress process's proxy and nothing else.

The server lets a box reach one address, which is the proxy's alone. Programs find the proxy by their environment, and
every sandbox has a credential of its own. It can be read inside the box, and permits what the sandbox's rules permit.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.box import Box
from app.backends.boxlite.inside import BoxCommands
from app.backends.egress_link import EgressLink
from app.core.errors import IsolationUnavailable
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule

_LAYER = "network_proxy"
_DIRECT = "localhost,127.0.0.1,::1"
_NO_PROGRAM = 5  # how the script ends when the image has none that could ask


@dataclass(frozen=True, slots=True)
class ProxyCredential:
    """`address` is the proxy's `ADDRESS:PORT`."""

    sandbox: str
    address: str
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def url(self) -> str:
        return f"http://{self.sandbox}:{self.password}@{self.address}"

    @property
    def basic(self) -> str:
        return base64.b64encode(f"{self.sandbox}:{self.password}".encode()).decode()

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    @property
    def environment(self) -> Mapping[str, str]:
        """Programs differ in which case they read. curl reads `http_proxy` in lower case alone."""
        names = ("http_proxy", "https_proxy", "all_proxy")
        found = dict.fromkeys(names, self.url) | {"no_proxy": _DIRECT}
        return found | {name.upper(): value for name, value in found.items()}


class BoxEgress:
    """`address`: the proxy's `ADDRESS:PORT`."""

    def __init__(self, link: EgressLink, address: str) -> None:
        self._link, self._address = link, address

    def credential(self, sandbox_id: str) -> ProxyCredential:
        return ProxyCredential(sandbox_id, self._address)

    async def open(
        self, credential: ProxyCredential, rules: Sequence[NetworkRule], log: NetworkLog, client: str
    ) -> None:
        """Has the proxy serve who has the credential. `client`: whose sandbox it is. Raises BackendUnavailable."""
        password = credential.password
        await self._link.open(RUNTIME, credential.sandbox, rules, None, log, credential=password, client=client)

    async def prove(self, box: Box, commands: BoxCommands, credential: ProxyCredential) -> None:
        """Raises IsolationUnavailable unless the server lets the box reach the proxy's address alone, and this address
        leads the box to this service's proxy. Raises a BackendFailure."""
        outbound = box.said.get("network", {}).get("outbound")
        if outbound != {"mode": "enabled", "allow_net": [credential.host]}:
            raise IsolationUnavailable(_LAYER, f"the server has another network for the box: {str(outbound)[:200]}")
        said = await commands.ask_proxy(credential.url, credential.host, credential.port, credential.basic)
        if said.code == _NO_PROGRAM:
            raise IsolationUnavailable(
                _LAYER, "the image has none of curl, wget, python3 and bash, so nothing can ask for the proxy"
            )
        if said.out.decode(errors="replace").strip() != credential.sandbox:
            raise IsolationUnavailable(
                _LAYER,
                f"the box does not find this service's proxy at {credential.address}. The BoxLite server must run on "
                "the machine of this service, where BULKHEAD_EGRESS__BOXLITE_NETWORK is",
            )

    async def change(self, sandbox_id: str, rules: Sequence[NetworkRule]) -> None:
        """Raises BackendTimeout."""
        await self._link.change(sandbox_id, rules)

    async def close(self, sandbox_id: str) -> None:
        """Returns when all connections are cut, and told. Idempotent."""
        self._link.close(sandbox_id)
        await self._link.closed(sandbox_id)
