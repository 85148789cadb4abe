"""What the egress process shows to programs in place of a host: a certificate that the sandbox's own authority has
signed. OpenSSL reads it from a file alone, so it gets one that is in memory and has no name.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict

from app.egress.authority import Authority
from app.egress.protocol import KeyPair
from app.egress.reasons import Reason
from app.egress.tls_stream import is_ragged_end, strictly

HOSTS = 32  # whose contexts are kept for one sandbox. One takes 21 KiB and 1 ms to make
KEPT = 1024  # of all sandboxes
# OpenSSL remembers up to 20,480 sessions of TLS 1.2 in a context, 1 KiB each, and Python cannot forbid it. So a context
# serves for so many connections.
CONNECTIONS = 64


class HostContext(ssl.SSLContext):
    """`host` is the only name that a ClientHello may have."""

    host = ""
    connections = 0


class HostTls(ssl.SSLObject):
    """`is_right`: whether the ClientHello has the name of the context's host. None: it was not read so far."""

    is_right: bool | None = None

    def take_name(self, name: str | None, context: ssl.SSLContext) -> int | None:
        self.is_right = isinstance(context, HostContext) and name is not None and name.lower() == context.host
        return None if self.is_right else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


class HostCertificates:
    """Of all sandboxes. `context` raises OSError when there are no descriptors left."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[SandboxAuthority, str], HostContext] = OrderedDict()

    def context(self, authority: SandboxAuthority, host: str) -> ssl.SSLContext:
        """The context for one more connection."""
        place = (authority, host)
        found = self._contexts.pop(place, None)
        if found is None or found.connections >= CONNECTIONS:
            found = _context(authority.leaf(host), host)
            self._make_room(authority)
        found.connections += 1
        self._contexts[place] = found
        return found

    def __len__(self) -> int:
        return len(self._contexts)

    def forget(self, authority: SandboxAuthority) -> None:
        for place in self._of(authority):
            del self._contexts[place]

    def _make_room(self, authority: SandboxAuthority) -> None:
        mine = self._of(authority)
        if len(mine) >= HOSTS:
            del self._contexts[mine[0]]
        elif len(self._contexts) >= KEPT:
            self._contexts.popitem(last=False)

    def _of(self, authority: SandboxAuthority) -> list[tuple[SandboxAuthority, str]]:
        return [place for place in self._contexts if place[0] is authority]


class SandboxAuthority:
    """Read when it is first used: most sandboxes that have one never need it."""

    def __init__(self, pair: KeyPair) -> None:
        self._pair = pair
        self._authority: Authority | None = None

    def leaf(self, host: str) -> KeyPair:
        """Raises ValueError for an authority that is none."""
        self._authority = self._authority or Authority(self._pair)
        return self._authority.leaf(host)


def _context(leaf: KeyPair, host: str) -> HostContext:
    context = HostContext(ssl.PROTOCOL_TLS_SERVER)
    context.host = host
    strictly(context)
    context.num_tickets = 0  # a program that resumes would save 1 ms, and be served by a name of long ago
    context.sslobject_class = HostTls
    context.sni_callback = _take_name
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(file, f"{leaf.certificate}{leaf.key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def refusal_of(tls: ssl.SSLObject, error: ssl.SSLError) -> Reason:
    """Why a handshake with a program has failed."""
    is_right = tls.is_right if isinstance(tls, HostTls) else None
    if is_right is None:
        return Reason.SILENT if is_ragged_end(error) else Reason.TLS
    if not is_right:
        return Reason.TLS_NAME
    is_alert = "ALERT" in (error.reason or "")  # SSLV3_ALERT_BAD_CERTIFICATE, TLSV1_ALERT_UNKNOWN_CA
    return Reason.TLS_TRUST if is_alert or is_ragged_end(error) else Reason.TLS


def _take_name(tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
    return tls.take_name(name, context) if isinstance(tls, HostTls) else ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
