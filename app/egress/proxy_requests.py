"""What a client asks a proxy for: a tunnel (CONNECT), or a request with a whole URL.

RFC 9110, 9.3.6 and 11.7; RFC 9112, 3.2.2 and 3.2.3; RFC 7617.
"""

from __future__ import annotations

import base64
import binascii
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

import h11

from app.core.addresses import unmapped
from app.core.hosts import is_name
from app.egress.connection import Destination

HTTP_PORT = 80


class NoProxyRequest(Exception):
    """It is no request for a proxy."""


def credential_of(request: h11.Request) -> tuple[str, bytes] | None:
    """User and password of Basic credentials. None: there are none, or more than one."""
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    scheme, _, encoded = (given[0] if len(given) == 1 else b"").strip().partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode("ascii"), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def destination_of(request: h11.Request) -> Destination:
    """Raises NoProxyRequest."""
    try:
        target = request.target.decode("ascii")
        if request.method == b"CONNECT":
            if _has_body(request):  # it would be read as the tunnel's first bytes by one side, and not by the other
                raise NoProxyRequest
            return _destination(urlsplit(f"//{target}"), None)
        url = urlsplit(target)
        if url.scheme != "http" or not target.lower().startswith("http://"):
            raise NoProxyRequest
        return _destination(url, HTTP_PORT)
    except ValueError:
        raise NoProxyRequest from None


def _has_body(request: h11.Request) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in request.headers)


def _destination(url: SplitResult, usual_port: int | None) -> Destination:
    """Raises NoProxyRequest, ValueError."""
    port = url.port if url.port is not None else usual_port
    host = (url.hostname or "").removesuffix(".")
    if port is None or port == 0 or "@" in url.netloc:
        raise NoProxyRequest
    if usual_port is None and (url.path or url.query or url.fragment):
        raise NoProxyRequest
    try:
        return Destination(None, unmapped(ip_address(host)), port)
    except ValueError:
        if not is_name(host):
            raise NoProxyRequest from None
        return Destination(host, None, port)
