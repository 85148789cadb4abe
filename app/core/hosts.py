"""Rules about hosts that may be reached directly: host names, `*.name`, IPv4 addresses and networks, without ports.

No rule may name an address of the machine itself, or an address at which clouds give out secrets. The owner of a name
decides where it leads. So the operator permits names one by one.
"""

from __future__ import annotations

import ipaddress
import re

_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# 192.168.127.0/24 is a BoxLite box's own network: .254 there is the server machine's loopback, .1 its resolver.
FORBIDDEN = tuple(
    ipaddress.IPv4Network(net)
    for net in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.127.0/24", "224.0.0.0/4", "240.0.0.0/4")
)
_LOCAL = ("localhost", ".localhost", ".local", ".internal")


def check_rule(rule: str) -> str:
    """Returns the rule in its normal form. Raises ValueError with a sentence."""
    text = rule.strip().lower().rstrip(".")
    net = _net(text)
    if net is not None:
        for forbidden in FORBIDDEN:
            if net.overlaps(forbidden):
                raise ValueError(f"{rule} includes addresses of {forbidden}, which no sandbox may reach")
        return str(net.network_address) if net.prefixlen == 32 else str(net)
    if not _NAME.fullmatch(text) or len(text) > 253:
        raise ValueError(f"{rule} is not a host name, *.name, IPv4 address or network")
    if text.endswith(_LOCAL):
        raise ValueError(f"{rule} is a name of the machine or its network, which no sandbox may reach")
    return text


def _net(text: str) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return None


def covers(wide: str, narrow: str) -> bool:
    """Whether one rule covers another. Both must be in their normal form."""
    if wide == narrow:
        return True
    wide_net, narrow_net = _net(wide), _net(narrow)
    if wide_net is not None:
        return narrow_net is not None and narrow_net.subnet_of(wide_net)
    return wide.startswith("*.") and narrow_net is None and narrow.removeprefix("*.").endswith(wide[1:])
