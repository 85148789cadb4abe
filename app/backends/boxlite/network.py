"""The hosts that a box may reach by the mode `direct`, where the operator permits any. The client's list must lie
within the operator's. With `proxy` a box may reach the proxy alone.

A box that has rules reaches nothing of its server's machine but what a rule names (seen: neither its loopback, nor its
API, nor its network). A box without rules reaches all of it. So a list is never empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.backends.boxlite import RUNTIME
from app.core.direct_rules import check_rule
from app.core.errors import InvalidRequest, PolicyNotSupported, PolicyTooBroad
from app.core.hosts import covers
from app.core.network_rules import NetworkRule
from app.core.policy import Network

NOBODY_PERMITTED = "the operator permits no host; BULKHEAD_BOXLITE__DIRECT_ALLOW lists those that boxes may reach"
NO_HTTP = (
    "rules with `http` are not possible over boxlite: programs in a box do not trust Bulkhead's certificate authority"
)
RULES_BYTES = 2048  # the server repeats them whenever it lists its boxes, which the health check asks for at every beat


def narrowed(asked: Sequence[str], permitted: Sequence[str]) -> tuple[str, ...]:
    """Raises PolicyNotSupported, InvalidRequest, PolicyTooBroad."""
    if not permitted:
        raise PolicyNotSupported("/policy/network/mode", RUNTIME, NOBODY_PERMITTED)
    if not asked:
        raise InvalidRequest.at("/policy/network/allow", "must name the hosts that may be reached")
    rules = []
    for place, raw in enumerate(asked):
        try:
            rule = check_rule(raw)
        except ValueError as error:
            raise InvalidRequest.at(f"/policy/network/allow/{place}", str(error)[:200]) from None
        if not any(covers(wide, rule) for wide in permitted):
            ceiling = ", ".join(permitted)
            raise PolicyTooBroad(
                "/policy/network/allow", ceiling, f"{rule} is not among the hosts that may be reached: {ceiling}"
            )
        rules.append(rule)
    if sum(map(len, rules)) > RULES_BYTES:
        raise InvalidRequest.at("/policy/network/allow", f"the rules take more than {RULES_BYTES} bytes")
    return tuple(dict.fromkeys(rules))


def check_rules(rules: Sequence[NetworkRule]) -> None:
    """Raises PolicyNotSupported."""
    for place, rule in enumerate(rules):
        if rule.http:
            raise PolicyNotSupported(f"/policy/network/allow/{place}/http", RUNTIME, NO_HTTP)


def server_network(network: Network, proxy: str | None) -> dict[str, object]:
    """What the server is asked for. `proxy`: the address that a box of the mode `proxy` may reach."""
    allow = [proxy] if proxy is not None else list(network.allow)
    return {"mode": "enabled", "allow_net": allow} if allow else {"mode": "disabled"}
