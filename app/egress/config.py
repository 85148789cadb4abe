"""The configuration of the egress process. The supervisor writes it to a pipe, and the process reads it from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

# Bytes of memory, of the most that was measured for each: 470 KiB for a connection that is read and whose sides do not
# read, 1.8 MiB for the names of a sandbox.
_MEMORY, _MEMORY_PER_CONNECTION, _MEMORY_PER_SANDBOX = 256 * 2**20, 512 * 2**10, 2 * 2**20


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

    The bounds are sandboxes at once (for the memory alone: see `memory_bytes`), open connections in all and of one
    sandbox, new ones of a sandbox in a second, and bytes of a sandbox in both directions together; 0 bytes is no bound.
    """

    gateway_uid: int
    permit_nets: tuple[str, ...] = ()
    resolver: str = ""
    service: tuple[str, ...] = ()
    proxy: int = -1
    sandboxes: int = 1000
    connections: int = 4096
    connections_per_sandbox: int = 256
    connections_per_second: int = 100
    bytes_per_sandbox: int = 0
    check_uid: int = -1
    own_nets: tuple[str, ...] = ()
    ca_file: str = ""

    @property
    def memory_bytes(self) -> int:
        """What the process may have (RLIMIT_DATA). Only a fault in it takes more than its other bounds let it take."""
        return _MEMORY + self.connections * _MEMORY_PER_CONNECTION + self.sandboxes * _MEMORY_PER_SANDBOX

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
