"""How long the egress process waits for others, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """`first`: for a client to say which host it means, where no rule is raw. `farewell`: for it to read why it is
    refused. `resolve`: for all DNS servers together. `server`: for one of them. `address`: for one address to accept,
    while there are others. `connect`: for all addresses together, and again for the TLS handshake with the
    host. `answer`: for the head of an answer to a request that is read: in plain HTTP, or in TLS of a rule with `http`.
    """

    first: float = 10.0
    farewell: float = 1.0
    resolve: float = 5.0
    server: float = 2.0
    address: float = 5.0
    connect: float = 10.0
    answer: float = 600.0
