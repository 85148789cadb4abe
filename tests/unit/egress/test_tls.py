"""Connections that begin with TLS: the name in their ClientHello is judged, and the bytes pass as they are."""

from __future__ import annotations

import ssl

import pytest

from tests.unit.egress.support import HOST, NAME, echo, site

UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))  # an alert, fatal: RFC 8446, 6.2
INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))


def client_hello(name: str | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1 if maximum < ssl.TLSVersion.TLSv1_2 else ssl.TLSVersion.TLSv1_2
    context.maximum_version = maximum
    context.set_ciphers("ALL:@SECLEVEL=0")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def in_records_of_one_byte(hello: bytes) -> bytes:
    return b"".join(hello[:3] + b"\0\1" + bytes((byte,)) for byte in hello[5:])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_hello_with_the_right_name_passes_unchanged(version: ssl.TLSVersion) -> None:
    hello = client_hello(NAME.upper(), version)
    async with site(echo) as at:
        assert await at.ask(hello + b"more") == hello + b"more"
        event = await at.gateway.event()
        assert (event["verdict"], event["name"], event["address"]) == ("allowed", NAME, HOST)
        assert event["bytes_sent"] == event["bytes_received"] == len(hello) + 4


async def test_hello_in_records_of_one_byte_passes_unchanged() -> None:
    hello = in_records_of_one_byte(client_hello(NAME))
    async with site(echo) as at:
        assert await at.ask(hello) == hello


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (client_hello("other.example.org"), "tls_name"),
        (in_records_of_one_byte(client_hello("other.example.org")), "tls_name"),
        (client_hello(f"x.{NAME}"), "tls_name"),
        (client_hello(None), "tls_name"),
    ],
    ids=["other", "in pieces", "below", "none"],
)
async def test_other_name_gets_an_alert(hello: bytes, reason: str) -> None:
    async with site(echo) as at:
        assert await at.ask(hello) == UNRECOGNIZED_NAME
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"], event["name"], event["address"]) == ("refused", reason, NAME, None)
        assert at.dns.asked == {}
