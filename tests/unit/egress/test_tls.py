"""Connections that begin with TLS: the name in their ClientHello is judged, and the bytes pass as they are."""

from __future__ import annotations

import contextlib
import ssl

import hypothesis
import hypothesis.strategies
import pytest

from app.egress import client_hello as client_hello_module
from app.egress.times import Times
from tests.unit.egress.support import HOST, NAME, echo, site

UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))  # an alert, fatal: RFC 8446, 6.2
PROTOCOL_VERSION = bytes((21, 3, 1, 0, 2, 2, 70))
INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))


def client_hello(name: str | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, group: str | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1 if maximum < ssl.TLSVersion.TLSv1_2 else ssl.TLSVersion.TLSv1_2
    context.maximum_version = maximum
    context.set_ciphers("ALL:@SECLEVEL=0")
    if group is not None:
        context.set_ecdh_curve(group)
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


async def test_key_of_the_client_is_left_to_the_host() -> None:
    """Half of the time for a ClientHello was that key. Here it is no point of its curve, so it cannot be read."""
    hello = client_hello(NAME, group="prime256v1")
    begin = hello.index(b"\x00\x17\x00\x41\x04") + 5  # secp256r1, 65 bytes, not compressed: RFC 8446, 4.2.8
    hello = hello[:begin] + b"\xff" * 64 + hello[begin + 64 :]
    async with site(echo) as at:
        assert await at.ask(hello) == hello
        assert (await at.gateway.event())["verdict"] == "allowed"


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


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated:DeprecationWarning")
async def test_old_version_gets_an_alert_about_it() -> None:
    hello = client_hello(NAME, ssl.TLSVersion.TLSv1)
    async with site(echo) as at:
        assert await at.ask(hello) == PROTOCOL_VERSION
        assert (await at.gateway.event())["reason"] == "tls"


def longer(hello: bytes, at: int, extra: bytes, *lengths: tuple[int, int]) -> bytes:
    """Puts bytes into a ClientHello, and corrects the lengths around them: (place, size) beside those of the record, of
    the message and of all extensions."""
    extensions = 5 + 4 + 2 + 32
    extensions += 1 + hello[extensions]
    extensions += 2 + int.from_bytes(hello[extensions : extensions + 2], "big")
    extensions += 1 + hello[extensions]
    grown = bytearray(hello[:at] + extra + hello[at:])
    for place, size in ((3, 2), (6, 3), (extensions, 2), *lengths):
        length = int.from_bytes(hello[place : place + size], "big") + len(extra)
        grown[place : place + size] = length.to_bytes(size, "big")
    return bytes(grown)


def with_two_names(hello: bytes, name: bytes) -> bytes:
    """A second host name in the extension server_name, RFC 6066, 3."""
    first = hello.index(NAME.encode())
    extension = first - 9  # its number and length, its list's length, the first name's kind and length
    extra = b"\0" + len(name).to_bytes(2, "big") + name
    return longer(hello, first + len(NAME), extra, (extension + 2, 2), (extension + 4, 2))


def with_hidden_hello(hello: bytes) -> bytes:
    """An encrypted ClientHello of random bytes: RFC 9849, 5."""
    inner = (
        b"\0" + b"\0\1\0\1" + b"\7" + (32).to_bytes(2, "big") + bytes(range(32)) + (96).to_bytes(2, "big") + bytes(96)
    )
    return longer(hello, len(hello), b"\xfe\x0d" + len(inner).to_bytes(2, "big") + inner)


async def test_name_outside_of_a_hidden_hello_is_judged() -> None:
    """What is hidden cannot be told from the bytes that browsers send in its place."""
    async with site(echo) as at:
        right = with_hidden_hello(client_hello(NAME))
        assert await at.ask(right) == right
        assert await at.ask(with_hidden_hello(client_hello("other.example.org"))) == UNRECOGNIZED_NAME


@pytest.mark.parametrize(
    "hello",
    [
        with_two_names(client_hello(NAME), b"other.example.org"),
        with_two_names(client_hello(NAME), NAME.encode()),
        client_hello(NAME).replace(NAME.encode(), NAME.encode()[:-1] + b"\xff"),
        client_hello(NAME).replace(NAME.encode(), NAME.encode()[:-1] + b"\0"),
        b"\x16\x03\x01\x00\x05hello",
        b"\x16" * 100,
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x01\x00",
    ],
    ids=[
        "two names",
        "one name twice",
        "no ASCII",
        "a zero byte",
        "no handshake",
        "nonsense",
        "too long a record",
        "an early end",
    ],
)
# OpenSSL's caller in Python tells of a name outside ASCII in no other way. The process says nothing then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_hello_that_is_none_is_refused(hello: bytes) -> None:
    async with site(echo) as at:
        with contextlib.suppress(ConnectionResetError):
            assert (await at.ask(hello))[:1] in (b"", b"\x15")  # nothing, or an alert: never what the host says
        event = await at.gateway.event()
        assert event["reason"] in ("tls", "tls_name", "silent")
        assert at.dns.asked == {}


async def test_hello_without_end_is_cut_at_its_bound() -> None:
    size = (100_000).to_bytes(3, "big")  # below the bound of OpenSSL, 131,396
    record = b"\x16\x03\x01\x00\x01\x01" + b"".join(b"\x16\x03\x01\x00\x01" + size[n : n + 1] for n in range(3))
    async with site(echo) as at:
        reader, writer = await at.connect()
        writer.write(record + b"\x16\x03\x01\x00\x01a" * 100_000)
        with contextlib.suppress(ConnectionError):
            assert (await reader.read())[:1] in (b"", b"\x15")
        event = await at.gateway.event()
        assert event["reason"] == "tls"
        assert event["bytes_sent"] <= client_hello_module.MOST + 16 * 1024


@pytest.mark.parametrize("begin", [b"", b"\x16", client_hello(NAME)[:-1], b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_client_that_says_no_more_is_cut(begin: bytes) -> None:
    async with site(echo, times=Times(first=0.05)) as at:
        reader, writer = await at.connect()
        writer.write(begin)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("refused", "silent")


@pytest.mark.parametrize("begin", [b"\0\0\0\x08\x04\xd2\x16\x2f", b"\x80\x2e\x01", b"\r\n", b"*1\r\n"])
async def test_what_is_neither_tls_nor_http_is_cut(begin: bytes) -> None:
    """PostgreSQL's, SSL 2's, an empty line, Redis's: such connections need a rule that is raw."""
    async with site(echo) as at:
        with pytest.raises(ConnectionResetError):
            await at.ask(begin)
        assert (await at.gateway.event())["reason"] == "protocol"
    async with site(echo, rules=[{"host": NAME, "raw": True}]) as at:
        assert await at.ask(begin) == begin


async def test_host_that_cannot_be_reached_is_told_by_an_alert() -> None:
    async with site(echo) as at:
        at.dns.addresses[NAME] = ["10.0.0.1"]
        assert await at.ask(client_hello(NAME)) == INTERNAL_ERROR
        event = await at.gateway.event()
        assert (event["reason"], event["address"]) == ("private", "10.0.0.1")


async def test_name_that_is_permitted_at_another_port_only_is_told_by_an_alert() -> None:
    async with site(echo, rules=[{"host": NAME, "ports": [1]}]) as at:
        assert await at.ask(client_hello(NAME)) == INTERNAL_ERROR
        assert (await at.gateway.event())["reason"] == "rule"


@hypothesis.given(data=hypothesis.strategies.binary(max_size=400))
def test_no_bytes_make_a_hello_with_the_right_name(data: bytes) -> None:
    hello = client_hello_module.ClientHello(NAME)
    hello.feed(b"\x16" + data)
    assert not hello.is_read or hello.refusal is not None
