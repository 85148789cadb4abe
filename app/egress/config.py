"""The configuration of the egress process. The supervisor writes it to a pipe, and the process reads it from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


class InvalidConfig(Exception):
    """`str(error)` is a sentence for people."""


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """`gateway_uid`: who is served. `check_uid`: who is greeted and no more, for a health check; -1: nobody.

    `permit_nets`: networks that may be dialled although they are private or local. `own_nets`: those that count as
    this machine's own. `resolver`: `ADDRESS:PORT` of the DNS server that is asked for real names, "" for those of the
    system. `service`: `ADDRESS:PORT` of what the service itself listens on, which no sandbox may dial even in a
    permitted network. `ca_file`: the certificates, as PEM, of the authorities that may vouch for hosts; "" for those of
    the system. `proxy`: the descriptor of the socket on which the proxy for boxes listens; -1 for no proxy.

    The bounds are open connections in all and of one sandbox, new ones of a sandbox in a second, and bytes of a sandbox
    in both directions together; 0 bytes is no bound.
    """

    gateway_uid: int
    permit_nets: tuple[str, ...] = ()
    resolver: str = ""
    service: tuple[str, ...] = ()
    proxy: int = -1
    connections: int = 4096
    connections_per_sandbox: int = 256
    connections_per_second: int = 100
    bytes_per_sandbox: int = 0
    check_uid: int = -1
    own_nets: tuple[str, ...] = ()
    ca_file: str = ""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> EgressConfig:
        """Raises InvalidConfig."""
        try:
            found = json.loads(text)
            lists = {name: tuple(found.get(name, ())) for name in ("permit_nets", "own_nets", "service")}
            return cls(**{**found, **lists})
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidConfig(f"the configuration of the egress process cannot be read: {error}") from None
