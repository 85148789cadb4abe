"""Host patterns of network rules: names, `*.name`, `*` for every name, addresses and networks.

A pattern in its normal form is in lower case, without a dot at its end, and a name outside ASCII stands as its A-labels
(`xn--…`), which is what programs ask for. A network of one address is written as that address.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY_NAME = "*"
# The last label begins with a letter, so that no spelling of an address (127.1, 0x7f000001) is a name.
_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def normal_host(host: str) -> str:
    """Returns the pattern in its normal form. Raises ValueError with a sentence."""
    if len(host) > 260:
        raise ValueError(f"{host[:60]}… is longer than a host name can be")
    text = host.strip().lower().removesuffix(".")
    net = net_of(text)
    if net is not None:
        if "/" in text and (inside := ipaddress.ip_interface(text)).ip != inside.network.network_address:
            raise ValueError(f"{host[:80]} is an address inside a network: write {net}, or {inside.ip} alone")
        return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)
    if text == ANY_NAME or is_name(text.removeprefix("*.")):
        return text
    hint = "" if text.isascii() else "; a name outside ASCII is written in its xn-- form"
    raise ValueError(f"{host[:80]} is not a host name, *.name, address or network{hint}")


def is_name(text: str) -> bool:
    """Whether it is a host name in its normal form."""
    return len(text) <= 253 and _NAME.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def net_of(host: str) -> IPNetwork | None:
    """The network of an address or network, None for a name. What is IPv4 mapped into IPv6 is IPv4."""
    if "%" in host:  # a zone names an interface of one machine
        return None
    try:
        net = ipaddress.ip_network(host, strict=False)
    except ValueError:
        return None
    if isinstance(net, ipaddress.IPv6Network) and net.subnet_of(_MAPPED):
        inner = ipaddress.IPv4Address(int(net.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((inner, net.prefixlen - 96))
    return net


def is_within(narrow: IPNetwork, wide: IPNetwork) -> bool:
    """Whether all addresses of one network are in another one. IPv4 and IPv6 have none in common."""
    return narrow.version == wide.version and narrow.network_address in wide and wide.prefixlen <= narrow.prefixlen


def covers(wide: str, narrow: str) -> bool:
    """Whether one pattern covers another. Both must be in their normal form. `*.x` covers every depth, and not `x`."""
    wide_net, narrow_net = net_of(wide), net_of(narrow)
    if wide_net is not None or narrow_net is not None:
        return wide_net is not None and narrow_net is not None and is_within(narrow_net, wide_net)
    if wide in (narrow, ANY_NAME):
        return True
    return wide.startswith("*.") and narrow.removeprefix("*.").endswith(wide[1:])
