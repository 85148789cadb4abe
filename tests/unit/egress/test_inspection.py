"""TLS with an `http` rule: it ends at the egress process, requests are judged, and the host is verified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from app.core.network_rules import parse_rule
from app.core.secrets import PLACEHOLDER_PREFIX
from app.egress import connection, host_certificates
from app.egress.authority import SUBJECT, Authority, new_authority
from app.egress.client_hello import MOST
from app.egress.connection import RULE_SHOWN
from app.egress.host_certificates import HostCertificates, SandboxAuthority
from app.egress.protocol import KeyPair, NetworkEventTold, NetworkSecret, decode_report, encode
from app.egress.times import Times
from app.egress.tls_stream import RECORD
from tests.unit.egress.support import HOST, NAME, Serve, Site, host_tls, operators_authority, site
from tests.unit.egress.test_plain_http import CHUNKED, Host, parsed, refused, script
from tests.unit.egress.test_plain_http import request as written
from tests.unit.egress.test_tls import UNRECOGNIZED_NAME, client_hello, in_records_of_one_byte

AUTHORITY = new_authority()
EVERY: Sequence[Any] = [{}]


@asynccontextmanager
async def inspected(serve: Serve, http: Sequence[Any] = EVERY, **more: Any) -> AsyncIterator[Site]:
    settings = {
        "rules": [{"host": NAME, "http": http}], "tls": host_tls(), "authority": AUTHORITY, **more,
    }  # fmt: skip
    async with site(serve, **settings) as at:
        yield at


def trusting_program(trusted: KeyPair = AUTHORITY) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=trusted.certificate)


async def tls(at: Site, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await at.connect(**{"ssl": trusting_program(), "server_hostname": NAME, **more})


async def ask(at: Site, data: bytes, **more: Any) -> bytes:
    """Sends requests, of which the last one ends the connection, and returns all that comes back."""
    reader, writer = await tls(at, **more)
    writer.write(data)
    return await asyncio.wait_for(reader.read(), 60)


def request(at: Site, head: str = "GET / HTTP/1.1", more: str = "", body: bytes = b"", *, last: bool = False) -> bytes:
    return written(at, head, more=more + ("Connection: close\r\n" if last else ""), body=body)


# --- what passes


async def test_request_is_written_anew_for_the_verified_host() -> None:
    host = Host()
    async with inspected(host.serve) as at:
        answer = await ask(at, request(at, "GET /a?b=%2f HTTP/1.1", "X-Thing: 1\r\n", last=True))
        assert parsed(answer)[0][::2] == (200, b"ok")
        lines = [b"GET /a?b=%2f HTTP/1.1", f"Host: {NAME}:{at.port}".encode(), b"X-Thing: 1", b"", b""]
        assert host.read[0].split(b"\r\n") == lines
        event = await at.gateway.event()
        assert (event["kind"], event["verdict"], event["address"]) == ("connection", "allowed", HOST)
        assert event["rule"] == f"{NAME}:{at.port} http *"
        assert 200 < event["bytes_sent"] < 2000 < 5000 > event["bytes_received"] > 500


async def test_event_has_the_beginning_of_a_long_rule() -> None:
    """The gateway hangs up on an event with longer texts."""
    paths = [f"/{number:02}{'x' * 200}" for number in range(32)]
    async with inspected(Host().serve, [{"paths": paths}]) as at:
        refused(parsed(await ask(at, request(at, last=True)))[0], 403, "http_path")
        event = await at.gateway.event()
        assert len(event["rule"]) == RULE_SHOWN
        report = decode_report(encode(NetworkEventTold("a", event)))
        assert isinstance(report, NetworkEventTold)


async def test_program_sees_a_certificate_of_its_own_authority_and_http_1() -> None:
    async with inspected(Host().serve) as at:
        context = trusting_program()
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await tls(at, ssl=context, server_hostname=NAME.upper())
        found = writer.get_extra_info("ssl_object")
        assert found.getpeercert()["issuer"] == ((("commonName", SUBJECT),),)
        assert found.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_follow_each_other_on_one_connection(version: ssl.TLSVersion) -> None:
    """Tickets of the host that come in between are no data of it."""
    host, context = Host(), trusting_program()
    context.maximum_version = version
    async with inspected(host.serve) as at:
        reader, writer = await tls(at, ssl=context)
        for number in range(3):
            writer.write(request(at, f"GET /{number} HTTP/1.1"))
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert [each.target for each in host.requests] == [b"/0", b"/1", b"/2"]
        assert len(host.read) == 1


async def test_large_bodies_arrive_whole() -> None:
    body = os.urandom(3_000_000)
    host = Host(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    async with inspected(host.serve) as at:
        more = f"Content-Length: {len(body)}\r\n"
        answer = await ask(at, request(at, "PUT / HTTP/1.1", more, body, last=True))
        assert parsed(answer)[0][2] == body
        assert host.bodies == [body]


async def test_bodies_in_records_of_one_byte_arrive_whole() -> None:
    """Both sides may cut data as they like. The event loop is held up by none of it, which every test here checks."""
    body = os.urandom(5000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got = await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for byte in got:
            writer.write(bytes((byte,)))
        writer.close()

    async with inspected(serve) as at:
        reader, writer = await tls(at)
        writer.write(request(at, "PUT / HTTP/1.1", f"Content-Length: {len(body)}\r\n"))
        for byte in body:
            writer.write(bytes((byte,)))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(body)) == body


async def test_websocket_passes_in_both_directions() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Upgrade: websocket\r\n" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x01a")
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async with inspected(serve, [{"methods": ["GET"], "paths": ["/chat"]}]) as at:
        reader, writer = await tls(at)
        writer.write(request(at, "GET /chat HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n") + b"early")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(8) == b"\x81\x01aearly"
        frames = os.urandom(1_000_000)
        writer.write(frames)
        assert await reader.readexactly(len(frames)) == frames
        writer.close()
        assert (await at.gateway.event())["verdict"] == "allowed"


@pytest.mark.parametrize(
    ("http", "goes_on"), [(EVERY, True), ([{"paths": ["/other"]}], False), ([{"methods": ["GET"]}], True)]
)
async def test_websocket_goes_on_while_its_request_is_permitted(http: Sequence[Any], goes_on: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async with inspected(serve) as at:
        reader, writer = await tls(at)
        writer.write(request(at, "GET /chat HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        await reader.readuntil(b"\r\n\r\n")
        wanted = [{"host": NAME, "ports": [at.port], "http": http}, {"host": "other.example.org", "ports": [at.port]}]
        await at.network.change(list(map(parse_rule, wanted)), [])
        if goes_on:
            writer.write(b"frame")
            assert await reader.readexactly(5) == b"frame"
        else:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await at.gateway.event())["reason"] == "changed"


async def test_rule_without_http_leaves_tls_unread() -> None:
    rules = [{"host": NAME, "http": [{"methods": ["PUT"]}]}, {"host": "*.example.org"}]
    async with inspected(Host().serve, rules=rules) as at:
        reader, writer = await tls(at, ssl=trusting_program(operators_authority()))
        writer.write(request(at))
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


# --- judging


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_methods_are_judged_and_the_connection_goes_on(scheme: str) -> None:
    host = Host()
    async with inspected(
        host.serve, [{"methods": ["GET", "PATCH"]}], tls=host_tls() if scheme == "https" else None
    ) as at:
        methods = ["GET", "POST", "HEAD", "PATCH", "get", "OPTIONS", "DELETE"]
        requests = [
            request(at, f"{method} / HTTP/1.1", *(("Content-Length: 3\r\n", b"abc") if method == "POST" else ()))
            for method in methods
        ]
        data = b"".join([*requests, request(at, "GET /last HTTP/1.1", last=True)])
        answers = parsed(await (ask if scheme == "https" else Site.ask)(at, data), *methods, "GET")
        assert [status for status, _, _ in answers] == [200, 403, 200, 200, 403, 403, 403, 200]
        refused(answers[1], 403, "http_method")
        assert [each.method for each in host.requests] == [b"GET", b"HEAD", b"PATCH", b"GET"]
        events = [await at.gateway.event(number) for number in range(4)]
        assert {(e["kind"], e["verdict"], e["reason"], e["name"]) for e in events} == {
            ("request", "refused", "http_method", NAME)
        }


PATHS = ["/v1/**", "/@scope/*", "/caf\u00e9"]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/", "/v1/a", "/v1/a/b?c=../..//%5c", "/v1/a%20b", "/v1/%61", "/%761/a", "/@scope%2fname", "/%40scope/name",
        "/v1/..a%20/", "/v1/a%20/b", "/v1/a%252fb",
        "/caf%C3%A9", "/v1/...", "/v1/a;b=c", "/v1/a%3fb", f"https://{NAME}:PORT/v1/a", "/v1/%25",
    ],
)  # fmt: skip
async def test_path_that_a_rule_permits_passes_as_it_is_written(target: str) -> None:
    host = Host()
    async with inspected(host.serve, [{"paths": PATHS}]) as at:
        answer = await ask(at, request(at, f"GET {target} HTTP/1.1", last=True))
        assert parsed(answer)[0][0] == 200
        wanted = target.removeprefix(f"https://{NAME}:PORT").encode()
        assert [each.target for each in host.requests] == [wanted]


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v1", "/v11/a", "/v2", "*", "/@scope/a/b", "/@scope%2fa%2fb", "/caf%C3%A9/",
        "/v1/../v2", "/v1/./a", "/v1/..", "/v1/%2e%2e/v2", "/v1/.%2E/v2", "/v1/..%2fv2", "/v1%2f..%2fv2", "/v1/a//b",
        "//v1/a", "/v1/%2fa", "/v1/a%2f", "/v1/a%2f/b", "/v1\\a", "/v1/..\\v2", "/v1/a%5c..%5cv2", "/v1/..;/v2",
        "/v1/..;a=b/v2", "/v1/%252e%252e/v2", "/v1/..%252fv2", "/v1/%255c", "/v1/%c0%ae%c0%ae/v2", "/v1/%e9", "/v1/%00",
        "/v1/a%0d%0ab", "/v1/%7f", "/v1/%", "/v1/%2", "/v1/%zz", "/v1/a#/../b", "/v1/" + "a/" * 130,
        "/v1/" + "a" * 9000, "/v1/a%252f%252fb", "/v1/a%252f/b", "/v1/a%2500b", "/v1/a%250d%250ab", "/v1/%257f",
        "/v1/..%2500/b", "/v1/.%2500./x", "/v1/..%20/x", "/v1/..%20", "/v1/.%2520/x", "/v1/..%2520;a/x",
        "/v1/..%c2%a0/x",
    ],
)  # fmt: skip
async def test_other_path_is_refused_and_the_connection_goes_on(target: str) -> None:
    host = Host()
    async with inspected(host.serve, [{"paths": PATHS}]) as at:
        data = request(at, f"GET {target} HTTP/1.1") + request(at, "GET /v1/a HTTP/1.1", last=True)
        first, second = parsed(await ask(at, data), "GET", "GET")
        if target == "/v1/a%2f":  # the same as /v1/a/, which is permitted
            assert first[0] == 200
            return
        refused(first, 403, "http_path")
        assert second[0] == 200
        assert [each.target for each in host.requests] == [b"/v1/a"]
        assert (await at.gateway.event())["reason"] == "http_path"


async def test_rules_add_up_and_a_method_belongs_to_its_paths() -> None:
    rules = [
        {"host": NAME, "http": [{"methods": ["GET"], "paths": ["/a"]}, {"methods": ["PUT"], "paths": ["/b"]}]},
        {"host": "*.example.org", "http": [{"methods": ["GET"], "paths": ["/c"]}]},
    ]
    asked = [("GET", "/a"), ("PUT", "/a"), ("PUT", "/b"), ("GET", "/b"), ("GET", "/c"), ("PUT", "/c")]
    async with inspected(Host().serve, rules=rules) as at:
        data = b"".join(request(at, f"{method} {path} HTTP/1.1") for method, path in asked)
        data += request(at, "POST /a HTTP/1.1", last=True)
        answers = parsed(await ask(at, data), *(method for method, _ in asked), "POST")
        assert [status for status, _, _ in answers] == [200, 403, 200, 403, 200, 403, 403]
        told = [await at.gateway.event(number) for number in range(4)]
        assert [event["reason"] for event in told] == ["http_path", "http_path", "http_path", "http_method"]
        asked = [*(each for each in asked if each in {("PUT", "/a"), ("GET", "/b"), ("PUT", "/c")}), ("POST", "/a")]
        assert [(event["method"], event["path"]) for event in told] == asked


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ("GET /b%20c/%2e?key=canary HTTP/1.1", ("GET", "/b%20c/%2e")),
        (f"GET https://{NAME}:PORT/b?key=canary HTTP/1.1", ("GET", "/b")),
        (f"GET /{'b' * 300} HTTP/1.1", ("GET", f"/{'b' * 255}")),
        (f"{'M' * 40} /b HTTP/1.1", ("M" * 32, "/b")),
        ("nonsense", (None, None)),
    ],
)
async def test_event_of_a_refused_request_has_its_method_and_path(
    first: str, shown: tuple[str | None, str | None]
) -> None:
    async with inspected(Host().serve, [{"methods": ["GET"], "paths": ["/a"]}]) as at:
        await ask(at, request(at, first.replace("PORT", str(at.port)), last=True))
        told = await at.gateway.event()
    assert (told["kind"], told["method"], told["path"]) == ("request", *shown)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("X-HTTP-Method-Override: DELETE", "http_method"),
        ("x-http-method: delete", "http_method"),
        ("X-Method-Override: PUT", "http_method"),
        ("X_HTTP_Method_Override: DELETE", "http_method"),
        ("X-HTTP-Method-Override: GET", None),
        ("X-Original-URL: /admin", "http_path"),
        ("X_Original_URL: /admin", "http_path"),
        ("X-Rewrite-Url: /v1/../admin", "http_path"),
        ("X-Original-URL: /v1/b", None),
        ("x_http-method: delete", "http_method"),
        ("X.Method.Override: PUT", "http_method"),
        ("X-Forwarded-Method: DELETE", "http_method"),
        ("X_Original_Method: DELETE", "http_method"),
        ("X_Rewrite-Url: /admin", "http_path"),
        ("X-Original-URI: /admin", "http_path"),
        ("X-Forwarded-Uri: /admin", "http_path"),
        ("X_Forwarded_Uri: /v1/b", None),
        ("Destination: /admin", None),
        ("\r\n".join(f"X-Original-URL: /v1/{n}" for n in range(9)), "http"),
    ],
)
async def test_header_that_servers_obey_in_place_of_the_request_is_judged(header: str, reason: str | None) -> None:
    host = Host()
    async with inspected(host.serve, [{"methods": ["GET", "POST"], "paths": ["/v1/**"]}]) as at:
        [answer] = parsed(await ask(at, request(at, "POST /v1/a HTTP/1.1", f"{header}\r\n", last=True)), "POST")
        if reason is None:
            assert answer[0] == 200
        else:
            refused(answer, 400 if reason == "http" else 403, reason)
            assert host.requests == []
    async with inspected(host.serve) as at:  # where all is permitted, so is this
        [answer] = parsed(await ask(at, request(at, "POST /v1/a HTTP/1.1", f"{header}\r\n", last=True)), "POST")
        assert answer[0] == 200


@pytest.mark.parametrize(
    ("head", "header", "reason"),
    [
        ("MOVE /v1/a HTTP/1.1", "Destination: /v1/b", None),
        ("MOVE /v1/a HTTP/1.1", f"Destination: https://{NAME}:PORT/v1/b", None),
        ("MOVE /v1/a HTTP/1.1", "Destination: /admin", "http_path"),
        ("copy /v1/a HTTP/1.1", "Destination: /v1/../admin", "http_path"),
        ("COPY /v1/a HTTP/1.1", f"Destination: https://{NAME}:PORT/admin", "http_path"),
        ("MOVE /v1/a HTTP/1.1", f"Destination: http://{NAME}:PORT/v1/b", "http_host"),
        ("MOVE /v1/a HTTP/1.1", "Destination: https://other.example.org/v1/b", "http_host"),
        ("POST /v1/a HTTP/1.1", "X-HTTP-Method: move\r\nDestination: /admin", "http_path"),
    ],
)
async def test_place_where_a_request_moves_or_copies_to_is_judged(head: str, header: str, reason: str | None) -> None:
    host = Host()
    async with inspected(host.serve, [{"paths": ["/v1/**"]}]) as at:
        line = header.replace("PORT", str(at.port))
        [answer] = parsed(await ask(at, request(at, head, f"{line}\r\n", last=True)), head.split(maxsplit=1)[0])
        if reason is None:
            assert answer[0] == 200
        else:
            refused(answer, 403, reason)
            assert host.requests == []


async def test_header_that_servers_take_for_one_of_framing_or_of_the_connection_is_left_out() -> None:
    """Where `_` and `-` are the same, it would stand beside the header that the host gets from the egress process."""
    host = Host()
    odd = [
        "Content_Length: 9", "content.length: 9", "Transfer_Encoding: chunked", "Transfer-encoding_: x",
        "Te_: trailers", "Keep_Alive: 5", "Proxy_Authorization: x", "X_Named: 1", "X-Named: 1", "X_Kept: 1",
    ]  # fmt: skip
    more = "\r\n".join([*odd, "Connection: x_named, content_length", "Content-Length: 3", ""])
    async with inspected(host.serve, [{"methods": ["PUT"]}]) as at:
        [answer] = parsed(await ask(at, request(at, "PUT / HTTP/1.1", more, b"abc", last=True)), "PUT")
        assert answer[0] == 200
        names = [name for name, _ in host.requests[0].headers.raw_items()]
        assert names == [b"Host", b"Transfer-encoding_", b"Te_", b"X_Kept", b"Content-Length"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"Host: {NAME}", "http_host"),
        ("Host: other.example.org", "http_host"),
        ("Host: 127.0.0.1", "http_host"),
        (f"Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked", "http"),
        ("Transfer-Encoding: xchunked", "http"),
        ("Transfer-Encoding:\x0bchunked", "http"),
        ("Content-Length: 3\r\nContent-Length: 4", "http"),
    ],
)
async def test_request_in_doubt_is_refused_inside_tls_too(line: str, reason: str) -> None:
    host = Host()
    async with inspected(host.serve) as at:
        host_line = "" if line.startswith("Host") and line != f"Host: {NAME}" else f"Host: {NAME}\r\n"
        data = f"POST / HTTP/1.1\r\n{host_line}{line}\r\nConnection: close\r\n\r\n".encode()
        if line == f"Host: {NAME}":
            reason = "http"  # two of them
        [answer] = parsed(await ask(at, data + CHUNKED * (reason == "http")), "POST")
        refused(answer, 400 if reason == "http" else 403, reason)
        assert host.requests == []


@pytest.mark.parametrize("first", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f" * 9, b"*1\r\n"])
async def test_what_is_not_http_1_inside_of_tls_is_refused(first: bytes) -> None:
    host = Host()
    async with inspected(host.serve) as at:
        reader, writer = await tls(at)
        writer.write(first)
        writer.write(b"\r\n\r\n")
        refused(parsed(await reader.read())[0], 400, "http")
        assert host.read == []


async def test_rules_of_now_hold_for_each_request() -> None:
    host = Host()
    async with inspected(host.serve) as at:
        reader, writer = await tls(at)
        writer.write(request(at))
        await reader.readuntil(b"ok")
        at.network.rules = (parse_rule({"host": NAME, "ports": [at.port], "http": [{"paths": ["/v2"]}]}),)
        writer.write(request(at) + request(at, "GET /v2 HTTP/1.1"))
        assert b"http_path" in await reader.readuntil(b"ok")
        at.network.rules = ()
        writer.write(request(at, "GET /v2 HTTP/1.1", last=True))
        assert b'"reason": "rule"' in await reader.read()
        assert len(host.requests) == 2


async def test_host_that_may_not_be_dialled_is_told_in_http() -> None:
    async with inspected(Host().serve) as at:
        at.dns.addresses[NAME] = ["10.0.0.1"]
        [answer] = parsed(await ask(at, request(at, last=True)))
        refused(answer, 403, "private")


# --- the program's TLS


@pytest.mark.parametrize(
    ("hello", "alert", "reason"),
    [
        (client_hello("other.example.org"), UNRECOGNIZED_NAME, "tls_name"),
        (client_hello(f"x.{NAME}"), UNRECOGNIZED_NAME, "tls_name"),
        (client_hello(None), UNRECOGNIZED_NAME, "tls_name"),
        (in_records_of_one_byte(client_hello("other.example.org")), UNRECOGNIZED_NAME, "tls_name"),
        (b"\x16\x03\x01\x00\x05hello", None, "tls"),
        (client_hello(NAME)[:-1], None, "silent"),
    ],
    ids=["other", "below", "none", "in pieces", "nonsense", "an early end"],
)
async def test_hello_of_another_host_gets_an_alert(hello: bytes, alert: bytes | None, reason: str) -> None:
    async with inspected(Host().serve) as at:
        answer = await at.ask(hello)
        assert answer == alert if alert is not None else answer[:1] in (b"", b"\x15")
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"], event["address"]) == ("refused", reason, None)
        assert at.dns.asked == {}


async def test_hello_in_records_of_one_byte_is_answered() -> None:
    async with inspected(Host().serve) as at:
        reader, writer = await at.connect()
        writer.write(in_records_of_one_byte(client_hello(NAME)))
        assert (await reader.readexactly(6))[::5] == b"\x16\x02"  # a handshake record, with a ServerHello


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_program_that_does_not_trust_the_authority_is_told_so(version: ssl.TLSVersion) -> None:
    """As one that pins certificates, or has its own list of authorities."""
    async with inspected(Host().serve) as at:
        context = trusting_program(operators_authority())
        context.maximum_version = version
        with pytest.raises(ssl.SSLCertVerificationError):
            await tls(at, ssl=context)
        event = await at.gateway.event()
        assert (event["kind"], event["reason"]) == ("connection", "tls_trust")
        assert at.dns.asked == {}


async def test_hello_without_an_end_is_cut() -> None:
    endless = in_records_of_one_byte(b"\x16\x03\x01\x00\x00\x01\x01\xff\xff\x03\x03" + bytes(MOST // 6))
    async with inspected(Host().serve) as at:
        reader, writer = await at.connect()
        writer.write(endless)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("refused", "tls")
        assert event["bytes_sent"] <= MOST + RECORD


async def test_program_that_stays_in_the_handshake_is_cut() -> None:
    async with inspected(Host().serve, times=Times(first=0.05)) as at:
        reader, writer = await at.connect()
        writer.write(client_hello(NAME))
        with pytest.raises(ConnectionResetError):
            while await reader.read(65536):
                pass
        assert (await at.gateway.event())["reason"] == "silent"


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nX-Thing: "], ids=["nothing", "half a request"])
async def test_program_that_is_silent_after_the_handshake_is_cut(said: bytes) -> None:
    """The handshake has the same time, and takes some of it."""
    async with inspected(Host().serve, times=Times(first=2.0)) as at:
        reader, writer = await tls(at)
        writer.write(said)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
        event = await at.gateway.event()
        assert (event["kind"], event["reason"]) == ("connection", "silent")
        assert at.dns.asked == {}


async def test_program_may_be_silent_after_its_first_request() -> None:
    async with inspected(Host().serve, times=Times(first=1.0)) as at:
        reader, writer = await tls(at)
        writer.write(request(at))
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        later, _ = await at.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(later.read(), 60)
        writer.write(request(at))
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("authority", [None, KeyPair("no certificate", AUTHORITY.key)], ids=["none", "a wrong one"])
async def test_sandbox_without_an_authority_has_no_such_connection(authority: KeyPair | None) -> None:
    async with inspected(Host().serve, authority=authority) as at:
        with pytest.raises(ConnectionResetError):
            await at.ask(client_hello(NAME))
        assert (await at.gateway.event())["reason"] == "authority"


async def test_renegotiation_is_refused() -> None:
    """Each one would cost a handshake. Only OpenSSL's own client asks for one."""
    async with inspected(Host().serve) as at:
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", f"127.77.0.1:{at.port}", "-servername", NAME, "-tls1_2",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        shown = await client.stdout.readuntil(b"Verify return code")
        client.stdin.write(b"R\n")
        shown += await asyncio.wait_for(client.stdout.read(), 60)
        await client.wait()
        assert b"RENEGOTIATING" in shown
        assert b"no renegotiation" in shown


# --- the host's TLS


def signed(*, own: bool) -> KeyPair:
    """A certificate that its own key has signed, or one of the operator's authority that ended yesterday."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    issuer = subject if own else x509.load_pem_x509_certificate(operators_authority().certificate.encode()).subject
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    signing = key if own else load_pem_private_key(operators_authority().key.encode(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    until = now + timedelta(1 if own else -1)
    found = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), 1, now - timedelta(2), until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(signing, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return KeyPair(found.public_bytes(Encoding.PEM).decode(), pem.decode())


def wrong(what: str) -> ssl.SSLContext:
    if what == "another name":
        return host_tls(Authority(operators_authority()).leaf("other.example.org"))
    if what == "a wildcard that does not cover it":
        return host_tls(Authority(operators_authority()).leaf("*.index.example.org"))
    if what == "expired":
        return host_tls(signed(own=False))
    if what == "self-signed":
        return host_tls(signed(own=True))
    if what == "the sandbox's own authority":
        return host_tls(Authority(AUTHORITY).leaf(NAME))
    context = host_tls()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("what", "reason", "detail"),
    [
        ("another name", "certificate", "Hostname mismatch"),
        ("a wildcard that does not cover it", "certificate", "Hostname mismatch"),
        ("expired", "certificate", "expired"),
        ("self-signed", "certificate", "self-signed"),
        ("the sandbox's own authority", "certificate", "unable to get local issuer"),
        ("TLS 1.1", "upstream_tls", "TLS 1.2"),
    ],
)
async def test_host_that_does_not_prove_itself_is_sent_nothing(what: str, reason: str, detail: str) -> None:
    host = Host()
    async with inspected(host.serve, tls=wrong(what)) as at:
        [answer] = parsed(await ask(at, request(at, "GET /secret HTTP/1.1", last=True)))
        refused(answer, 502, reason)
        assert detail.encode() in answer[2]
        assert host.read in ([], [b""])
        event = await at.gateway.event()
        assert (event["kind"], event["reason"]) == ("request", reason)


async def test_control_host_that_does_not_prove_itself_answers_who_does_not_ask_for_it() -> None:
    host, context = Host(), ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with inspected(host.serve, tls=wrong("self-signed")) as at:
        reader, writer = await asyncio.open_connection(HOST, at.port, ssl=context)
        writer.write(request(at, "GET /secret HTTP/1.1"))
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\x16\x03\x03\x00\x02\x02\x00", b"\x15\x03\x03\x00\x02\x02\x28"]
)
async def test_host_without_tls_is_a_bad_gateway(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(said)
        writer.close()

    async with inspected(serve, tls=None) as at:
        [answer] = parsed(await ask(at, request(at, last=True)))
        refused(answer, 502, "upstream_tls")


async def test_host_that_is_silent_in_its_handshake_is_a_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with inspected(serve, tls=None, times=Times(connect=0.1)) as at:
        [answer] = parsed(await ask(at, request(at, last=True)))
        refused(answer, 504, "timeout")


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers without a length, and ends TCP without the end of TLS, as somebody on the way could."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = host_tls().wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            side.read(1000)
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
    side.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
    writer.write(outgoing.read())
    writer.close()


async def test_answer_that_somebody_cuts_off_is_reset_and_not_ended() -> None:
    async with inspected(cut_off, tls=None) as at:
        reader, writer = await tls(at)
        writer.write(request(at))
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await reader.read()


async def test_answer_that_the_host_ends_is_whole() -> None:
    async with inspected(script(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as at:
        assert parsed(await ask(at, request(at, last=True)))[0][2] == b"all of it"


# --- bounds


async def test_host_that_answers_for_ever_is_read_no_faster_than_the_program_reads() -> None:
    sent, stopped = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 512 * 1024 * 1024:
                writer.write(b"x" * 65536)
                async with asyncio.timeout(2):
                    await writer.drain()
                sent += 65536
        stopped.set()
        writer.transport.abort()

    async with inspected(serve) as at:
        reader, writer = await tls(at, limit=1024)
        writer.write(request(at))
        await reader.readexactly(1000)
        await asyncio.wait_for(stopped.wait(), 60)
        assert 0 < sent < 32 * 1024 * 1024
        assert 16 * 1024 <= at.network.kept.count <= 512 * 1024
    assert at.network.kept.count == 0


def test_contexts_are_kept_for_some_hosts_of_a_sandbox_and_some_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_certificates, "KEPT", host_certificates.HOSTS + 3)
    certificates, one, other = HostCertificates(), SandboxAuthority(AUTHORITY), SandboxAuthority(AUTHORITY)
    kept = certificates.context(one, NAME)
    for number in range(host_certificates.HOSTS - 1):
        certificates.context(one, f"{number}.example.org")
        assert certificates.context(one, NAME) is kept
    certificates.context(one, "more.example.org")
    assert certificates.context(one, NAME) is kept, "the one that was not used for the longest time goes"
    assert len(certificates) == host_certificates.HOSTS
    for number in range(host_certificates.HOSTS):
        certificates.context(other, f"{number}.example.org")
    assert len(certificates) == host_certificates.HOSTS + 3
    certificates.forget(one)
    certificates.forget(other)
    assert len(certificates) == 0


def test_context_serves_for_so_many_connections() -> None:
    """OpenSSL remembers a session of each, 1 KiB, where a client of TLS 1.2 wants no ticket."""
    certificates, mine = HostCertificates(), SandboxAuthority(AUTHORITY)
    contexts = {certificates.context(mine, NAME) for _ in range(host_certificates.CONNECTIONS)}
    assert len(contexts) == 1
    assert certificates.context(mine, NAME) not in contexts
    assert len(certificates) == 1


def test_nothing_is_imported_late() -> None:
    """When it has become unprivileged, only root may be able to read the interpreter's files."""
    script = """
import ssl, sys
import app.egress.__main__
from app.egress.authority import new_authority
from app.egress.host_certificates import HostCertificates, SandboxAuthority
from app.egress.upstream_tls import trusting
before = set(sys.modules)
there = HostCertificates().context(SandboxAuthority(new_authority()), "a.example")
one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
sides = [
    trusting("").wrap_bio(one, other, server_hostname="a.example"), there.wrap_bio(other, one, server_side=True)
]
for side in sides * 2:
    try:
        side.do_handshake()
    except ssl.SSLError:
        pass
print(*set(sys.modules) - before)
"""
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


# --- secrets

SECRET = NetworkSecret("TOKEN", f"{PLACEHOLDER_PREFIX}{'x' * 32}", "the-real-value", (NAME,))
BEARER = f"Authorization: Bearer {SECRET.placeholder}\r\n"


async def test_secret_goes_to_its_verified_host() -> None:
    host = Host()
    async with inspected(host.serve, secrets=[SECRET]) as at:
        assert parsed(await ask(at, request(at, more=BEARER, last=True)))[0][0] == 200
        assert host.field(b"authorization") == b"Bearer the-real-value"


async def test_secret_does_not_go_to_the_port_of_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even over TLS."""
    host = Host()
    async with inspected(host.serve, secrets=[SECRET]) as at:
        monkeypatch.setattr(connection, "PLAIN_PORT", at.port)
        [answer] = parsed(await ask(at, request(at, more=BEARER, last=True)))
        refused(answer, 403, "secret_plain")
        assert host.read == []


@pytest.mark.parametrize("what", ["plain HTTP", "a host that is not verified", "a path that is not permitted"])
async def test_secret_goes_nowhere_else(what: str) -> None:
    host = Host()
    served = {"plain HTTP": None, "a host that is not verified": wrong("self-signed")}.get(what, host_tls())
    async with inspected(host.serve, [{"paths": ["/v1"]}], secrets=[SECRET], tls=served) as at:
        path = "/" if "path" in what else "/v1"
        data = request(at, f"GET {path} HTTP/1.1", BEARER, last=True)
        [answer] = parsed(await (at.ask(data) if served is None else ask(at, data)))
        reason = "secret_plain" if served is None else "http_path" if "path" in what else "certificate"
        refused(answer, 502 if reason == "certificate" else 403, reason)
        assert b"the-real-value" not in b"".join(host.read) + answer[2]
