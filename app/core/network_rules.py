"""Rules of the network mode `proxy`: which hosts can be reached at which ports. Rules only add: what one permits is
permitted.

A connection is TLS or HTTP that names the host, or, with `raw`, anything. With `http` TLS ends at the egress process,
which judges each request. Addresses and networks name no host, so their rules are always raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from app.core import hosts, http_rules
from app.core.http_rules import HttpRule, parse_http_rules

PORTS = 16  # of one rule, and different ones in all rules of a sandbox: each is a listening socket of its own
RULES = 64
PATHS, METHODS = 128, 256  # in all rules of a sandbox
DNS_PORT = 53
_FIELDS = frozenset({"host", "ports", "raw", "http"})
_AS_OBJECT = 'an object, such as {"host": "203.0.113.0/24", "ports": [5432], "raw": true}'


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """`host` is a pattern in its normal form (see `core.hosts`). `ports` are sorted and distinct. Without `http` the
    bytes of a connection pass unread. With it a request must be permitted by one of `http`. `raw` excludes `http`."""

    host: str
    ports: tuple[int, ...]
    raw: bool = False
    http: tuple[HttpRule, ...] = ()

    @property
    def is_net(self) -> bool:
        return hosts.net_of(self.host) is not None

    def matches(self, name: str) -> bool:
        """Whether a name, or an address in text, is one of this rule's. Case and a dot at the end do not matter."""
        text = name.lower().removesuffix(".")
        return (hosts.is_name(text) or hosts.net_of(text) is not None) and hosts.covers(self.host, text)

    def as_dict(self) -> dict[str, object]:
        http = [rule.as_dict() for rule in self.http] or None
        return {"host": self.host, "ports": list(self.ports), "raw": self.raw, "http": http}

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        http = f" http {' or '.join(map(str, self.http))}" if self.http else ""
        return f"{host}:{','.join(map(str, self.ports))}{' raw' if self.raw else ''}{http}"


def parse_rule(value: object) -> NetworkRule:
    """`HOST:PORT`, or an object with `host`, `ports`, `raw` and `http`. Raises ValueError with a sentence."""
    if isinstance(value, str):
        rule = _parse_text(value)
    elif isinstance(value, Mapping):
        rule = _parse_object(value)
    else:
        raise ValueError(f"{str(value)[:80]} is neither HOST:PORT nor an object with host and ports")
    if rule.host == "localhost" or rule.host.endswith(".localhost"):
        raise ValueError("localhost is the sandbox itself, which needs no rule")
    return rule


def _parse_text(text: str) -> NetworkRule:
    host, colon, port = text.strip().rpartition(":")
    if ":" in host or _is_net(host) or _is_net(text.strip()):
        raise ValueError(f"{text[:80]} is not HOST:PORT; an address or network is written as {_AS_OBJECT}")
    if not colon:
        raise ValueError(f"{text[:80]} has no port; write HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(f"{text[:80]} is not HOST:PORT: what follows the colon is not a port")
    return NetworkRule(hosts.normal_host(host), _ports([int(port)]))


def _parse_object(value: Mapping[str, object]) -> NetworkRule:
    unknown = next((str(name) for name in value if name not in _FIELDS), None)
    if unknown is not None:
        raise ValueError(f"{unknown[:80]} is not a field of a rule, which has host, ports, raw and http")
    host, raw = value.get("host"), value.get("raw", False)
    if not isinstance(host, str):
        raise ValueError("host is missing, or is not a text")
    if not isinstance(raw, bool):
        raise ValueError("raw must be true or false")
    http = parse_http_rules(value.get("http"))
    rule = NetworkRule(hosts.normal_host(host), _ports(value.get("ports")), raw, http)
    if rule.is_net and (http or not raw):
        raise ValueError(f'{rule.host} is not a name, so its rule must have "raw": true and no http')
    if raw and http:
        raise ValueError("raw and http exclude each other: what is raw is not read")
    return rule


def _ports(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= PORTS:
        raise ValueError(f"ports must be a list of 1 to {PORTS} ports")
    ports = set()
    for port in value:
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            raise ValueError(f"{str(port)[:80]} is not a port from 1 to 65535")
        if port == DNS_PORT:
            raise ValueError("port 53 cannot be reached: names are answered inside the sandbox")
        ports.add(port)
    return tuple(sorted(ports))


def _is_net(text: str) -> bool:
    try:
        ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return False
    return True


def rules_for(rules: Iterable[NetworkRule], name_or_address: str, port: int) -> tuple[NetworkRule, ...]:
    """The rules that permit it. Rules only add: a raw one makes all others idle, and one without `http` those with it.
    So all of what is returned are raw, or have no `http`, or have it. Empty: nothing permits it."""
    fitting = [rule for rule in rules if port in rule.ports and rule.matches(name_or_address)]
    widest = [rule for rule in fitting if rule.raw] or [rule for rule in fitting if not rule.http]
    return tuple(widest or fitting)


def rule_for(rules: Iterable[NetworkRule], name_or_address: str, port: int) -> NetworkRule | None:
    """The first of `rules_for`, if there is one."""
    return next(iter(rules_for(rules, name_or_address, port)), None)


def covers(wide: Iterable[NetworkRule], narrow: NetworkRule) -> bool:
    """Whether rules, taken together, permit all that another one permits."""
    hosting = [rule for rule in wide if (rule.raw or not narrow.raw) and hosts.covers(rule.host, narrow.host)]
    return all(_covers_port([rule for rule in hosting if port in rule.ports], narrow) for port in narrow.ports)


def _covers_port(wide: Sequence[NetworkRule], narrow: NetworkRule) -> bool:
    if any(not rule.http for rule in wide):
        return True
    return bool(narrow.http) and http_rules.covers([own for rule in wide for own in rule.http], narrow.http)


def ports_of(rules: Iterable[NetworkRule]) -> tuple[int, ...]:
    """All ports of the rules, sorted and distinct."""
    return tuple(sorted({port for rule in rules for port in rule.ports}))


def methods_of(rules: Iterable[NetworkRule]) -> int:
    """How many methods the rules name."""
    return sum(len(http.methods) for rule in rules for http in rule.http)


def paths_of(rules: Iterable[NetworkRule]) -> int:
    """How many path patterns the rules have."""
    return sum(len(http.paths) for rule in rules for http in rule.http)
