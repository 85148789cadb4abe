"""Why something was refused: the words in events and metrics, each with a sentence for people.

Beside these there are the reasons of `core.addresses` for an address that must not be dialled.
"""

from __future__ import annotations

from enum import StrEnum

from app.core.addresses import REASONS


class Reason(StrEnum):
    # names
    NAME = "name"
    NAMES = "names"
    # what was asked for
    PROXY = "proxy"
    CREDENTIAL = "credential"
    RULE = "rule"
    CHANGED = "changed"
    SERVICE = "service"
    TLS = "tls"
    TLS_NAME = "tls_name"
    TLS_TRUST = "tls_trust"
    AUTHORITY = "authority"
    PROTOCOL = "protocol"
    SILENT = "silent"
    HTTP = "http"
    HTTP_HOST = "http_host"
    HTTP_METHOD = "http_method"
    HTTP_PATH = "http_path"
    # secrets
    SECRET_HOST = "secret_host"  # noqa: S105 - a word
    SECRET_PLAIN = "secret_plain"  # noqa: S105 - a word
    SECRET_SIZE = "secret_size"  # noqa: S105 - a word
    # the way there
    NOT_FOUND = "not_found"
    RESOLVER = "resolver"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UPSTREAM = "upstream"
    UPSTREAM_TLS = "upstream_tls"
    CERTIFICATE = "certificate"
    # bounds
    CONNECTIONS = "connections"
    CONNECTIONS_PER_CLIENT = "connections_per_client"
    CONNECTIONS_PER_SANDBOX = "connections_per_sandbox"
    CONNECTIONS_PER_SECOND = "connections_per_second"
    BYTES = "bytes"
    DESCRIPTORS = "descriptors"


# A rule permits it, and the host or its name server is the reason.
FAILURES = frozenset(
    (
        Reason.NOT_FOUND,
        Reason.RESOLVER,
        Reason.UNREACHABLE,
        Reason.TIMEOUT,
        Reason.UPSTREAM,
        Reason.UPSTREAM_TLS,
    )
)
_SENTENCES = {
    Reason.NAME: "no rule permits the name",
    Reason.NAMES: "the sandbox has as many names as it may have",
    Reason.PROXY: "the proxy takes CONNECT and requests with a whole `http://` URL; this is neither",
    Reason.CREDENTIAL: "the request does not have the credential of a sandbox",
    Reason.RULE: "no rule permits this host at this port",
    Reason.CHANGED: "the rules were changed while it was open, and no longer permit it",
    Reason.SERVICE: "the address and port are those of the service itself",
    Reason.TLS: "the client did not begin with a TLS 1.2 or 1.3 handshake that can be read",
    Reason.TLS_NAME: "the TLS handshake names another host than the one whose address was connected to, or none",
    Reason.TLS_TRUST: "the client ended the TLS handshake: it does not trust the certificate authority of the sandbox",
    Reason.AUTHORITY: "the rule needs a certificate authority, and the sandbox has none",
    Reason.PROTOCOL: "the connection is neither TLS nor HTTP, and the rule is not raw",
    Reason.SILENT: "the client ended, or said nothing for 10 seconds. One that waits for the server (SSH, SMTP) needs a"
    " raw rule",
    Reason.HTTP: "the request is not HTTP/1.1 that can be passed on safely",
    Reason.HTTP_HOST: "the request names another host than the one whose address was connected to, or none",
    Reason.SECRET_HOST: "the request carries the placeholder of a secret that is for another host",
    Reason.SECRET_PLAIN: "the request carries the placeholder of a secret in a header, and secrets go over TLS only,"
    " and never to port 80",
    Reason.SECRET_SIZE: "the head of the request would be longer than 64 KiB with its secrets",
    Reason.HTTP_METHOD: "no rule permits the method, or it is one that is never passed on",
    Reason.HTTP_PATH: "no rule permits the path, or servers may read it in more than one way",
    Reason.NOT_FOUND: "the name has no address",
    Reason.RESOLVER: "the DNS server did not answer",
    Reason.UNREACHABLE: "no address of the host accepted the connection",
    Reason.TIMEOUT: "the host did not answer in time",
    Reason.UPSTREAM: "the host closed the connection, or its answer was not HTTP",
    Reason.UPSTREAM_TLS: "the host did not complete a TLS 1.2 or 1.3 handshake",
    Reason.CERTIFICATE: "the certificate of the host cannot be trusted",
    Reason.CONNECTIONS: "all connections of the service are in use",
    Reason.CONNECTIONS_PER_CLIENT: "the sandbox has its share of the connections that all sandboxes of the client may"
    " have together",
    Reason.CONNECTIONS_PER_SANDBOX: "the sandbox has as many connections open as it may have",
    Reason.CONNECTIONS_PER_SECOND: "the sandbox opened more connections in a second than it may",
    Reason.BYTES: "the sandbox has moved as many bytes as it may",
    Reason.DESCRIPTORS: "the egress process has no descriptors left",
}


# Of an address: the reasons of `core.addresses`.
_KINDS = {
    "metadata": "the address is that of a cloud's metadata service",
    "unspecified": "the address is none: 0.0.0.0/8 or ::",
    "loopback": "the address is one of the loopback's, on the machine of the service",
    "private": "the address is a private one",
    "link_local": "the address is for one link only (link-local)",
    "shared": "the address is one that providers share among customers (100.64.0.0/10)",
    "benchmarking": "the address is for benchmarks only (198.18.0.0/15, 2001:2::/48)",
    "multicast": "the address is one for many hosts (multicast)",
    "broadcast": "the address is one for all hosts (broadcast)",
    "reserved": "the address is reserved, and nobody has it",
    "own": "the address is one of the machine that the service runs on",
}


def sentence(reason: str) -> str:
    if reason in REASONS:
        return f"{_KINDS[reason]}. The operator can permit its network: BULKHEAD_EGRESS__PERMIT_NETS"
    return _SENTENCES[Reason(reason)]
