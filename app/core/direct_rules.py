"""Rules of the network mode `direct`: hosts without ports, and without IPv6.

No rule may name an address of the machine itself, or an address at which clouds give out secrets. The owner of a name
decides where it leads. So the operator permits names one by one.
"""

from __future__ import annotations

import ipaddress

from app.core.hosts import ANY_NAME, net_of, normal_host

# What `direct` never reaches. 192.168.127.0/24 is a BoxLite box's own network: .254 there is the server machine's
# loopback, .1 its resolver.
FORBIDDEN = tuple(
    ipaddress.IPv4Network(net)
    for net in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.127.0/24", "224.0.0.0/4", "240.0.0.0/4")
)
_LOCAL = ("localhost", ".localhost", ".local", ".internal")


def check_rule(rule: str) -> str:
    """Returns the rule in its normal form. Raises ValueError with a sentence."""
    text = normal_host(rule)
    net = net_of(text)
    if isinstance(net, ipaddress.IPv6Network) or text == ANY_NAME:
        raise ValueError(f"{rule} is not a host name, *.name, IPv4 address or network")
    if net is not None:
        for forbidden in FORBIDDEN:
            if net.overlaps(forbidden):
                raise ValueError(f"{rule} includes addresses of {forbidden}, which no sandbox may reach")
    elif text.endswith(_LOCAL):
        raise ValueError(f"{rule} is a name of the machine or its network, which no sandbox may reach")
    elif "." not in text.removeprefix("*."):
        raise ValueError(f"{rule} is not a host name with a dot")
    return text
