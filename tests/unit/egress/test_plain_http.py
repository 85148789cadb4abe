"""Plain HTTP: requests are judged one by one, and written anew, so that the host reads what was judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

import h11
import pytest

from app.egress.times import Times
from tests.unit.egress.support import GIVEN, HOST, NAME, Serve, Site, reset, site

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Host:
    """A real host. It keeps the bytes that it reads, and answers each request with `answer`, or as `script` does."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.read: list[bytes] = []  # of each connection
        self.requests: list[h11.Request] = []
        self.bodies: list[bytes] = []
        self.has_two = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        at = len(self.read)
        self.read.append(b"")
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                self.read[at] += data
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                self.requests.append(event)
                self.bodies.append(b"")
                if len(self.requests) == 2:
                    self.has_two.set()
            elif isinstance(event, h11.Data):
                self.bodies[-1] += event.data
            elif isinstance(event, h11.EndOfMessage):
                writer.write(self.answer)
                if b"close" in self.answer:
                    break
                http = _answered(http)
            else:
                break
        writer.close()

    def field(self, name: bytes, number: int = 0) -> bytes | None:
        return dict(self.requests[number].headers).get(name)


def _answered(http: h11.Connection) -> h11.Connection:
    """The next request's, with what was read of it."""
    rest = h11.Connection(h11.SERVER)
    if read := http.trailing_data[0]:
        rest.receive_data(read)
    return rest


def script(answers: bytes) -> Serve:
    """A host that says something whatever it is asked, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers)
        writer.close()

    return serve


def parsed(data: bytes, *methods: str) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """The answers in what a program read: status, headers, body."""
    http = h11.Connection(h11.CLIENT)
    found: list[tuple[int, dict[bytes, bytes], bytes]] = []
    http.receive_data(data)
    http.receive_data(b"")
    for method in methods or ("GET",):
        http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                found.append((event.status_code, dict(event.headers), b""))
            elif isinstance(event, h11.Data):
                status, headers, body = found[-1]
                found[-1] = status, headers, body + bytes(event.data)
            else:
                assert isinstance(event, h11.InformationalResponse), event
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
    return found


def request(
    at: Site, head: str = "GET / HTTP/1.1", host: str | None = NAME, more: str = "", body: bytes = b""
) -> bytes:
    named = "" if host is None else f"Host: {host}\r\n"
    return f"{head}\r\n{named}{more}\r\n".replace("PORT", str(at.port)).encode() + body


def refused(answer: tuple[int, dict[bytes, bytes], bytes], status: int, reason: str) -> None:
    assert answer[0] == status
    assert answer[1][b"content-type"] == b"application/problem+json"
    problem = json.loads(answer[2])
    assert (problem["status"], problem["reason"]) == (status, reason)
    assert problem["detail"]


# --- what passes


async def test_request_is_written_anew_with_the_host_of_the_rule() -> None:
    host = Host()
    async with site(host.serve) as at:
        data = await at.ask(request(at, "GET /a?b=%2f HTTP/1.1", NAME.upper(), "X-Thing: 1\r\nCookie: c\r\n"))
        assert parsed(data) == [(200, {b"content-length": b"2"}, b"ok")]
        lines = host.read[0].split(b"\r\n")
        assert lines[0] == b"GET /a?b=%2f HTTP/1.1"
        assert lines[1:] == [f"Host: {NAME}:{at.port}".encode(), b"X-Thing: 1", b"Cookie: c", b"", b""]
        event = await at.gateway.event()
        assert (event["kind"], event["verdict"], event["address"]) == ("connection", "allowed", HOST)
        assert event["bytes_sent"] > 0 < event["bytes_received"]


async def test_requests_follow_each_other_on_one_connection() -> None:
    host = Host()
    async with site(host.serve) as at:
        data = await at.ask(request(at, "GET /1 HTTP/1.1") + request(at, "GET /2 HTTP/1.1"))
        assert [status for status, _, _ in parsed(data, "GET", "GET")] == [200, 200]
        assert [each.target for each in host.requests] == [b"/1", b"/2"]
        assert len(host.read) == 1


async def test_host_that_closes_after_each_answer_is_dialled_anew() -> None:
    host = Host(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    async with site(host.serve) as at:
        data = await at.ask(request(at) + request(at))
        assert [body for _, _, body in parsed(data, "GET", "GET")] == [b"ok", b"ok"]
        assert len(host.read) == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_arrives_whole(chunked: bool) -> None:
    host, body = Host(), os.urandom(300_000)
    more = "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {len(body)}\r\n"
    sent = (
        b"".join(b"%x\r\n%s\r\n" % (len(p := body[n : n + 7777]), p) for n in range(0, len(body), 7777)) + b"0\r\n\r\n"
    )
    async with site(host.serve) as at:
        data = await at.ask(request(at, "POST / HTTP/1.1", more=more, body=sent if chunked else body))
        assert parsed(data)[0][0] == 200
        assert host.bodies == [body]


@pytest.mark.parametrize(
    "head",
    ["HTTP/1.1 200 OK\r\nContent-Length: 300000", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"],
)
async def test_answer_arrives_whole_however_it_is_framed(head: str) -> None:
    body = os.urandom(300_000)
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if "chunked" in head else body
    async with site(script(f"{head}\r\n\r\n".encode() + framed)) as at:
        assert parsed(await at.ask(request(at)))[0][2] == body
        assert (await at.ask(request(at, "GET / HTTP/1.0"))).partition(b"\r\n\r\n")[2] == body


async def test_answer_to_head_has_no_body() -> None:
    async with site(script(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as at:
        assert parsed(await at.ask(request(at, "HEAD / HTTP/1.1")), "HEAD")[0][1][b"content-length"] == b"5"


async def test_program_that_waits_for_100_gets_it() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(4) == b"body"
        writer.write(OK)
        writer.close()

    async with site(serve) as at:
        reader, writer = await at.connect()
        writer.write(request(at, "PUT / HTTP/1.1", more="Content-Length: 4\r\nExpect: 100-continue\r\n"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_websocket_passes_and_its_bytes_are_unread() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Upgrade: websocket\r\n" in head
        assert b"Connection: Upgrade\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n")
        writer.write(b"Sec-WebSocket-Accept: x\r\n\r\n\x81\x01a")
        writer.write(await reader.readexactly(5))
        writer.close()

    async with site(serve) as at:
        more = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n"
        data = await at.ask(request(at, more=more) + b"\0\1\2\3\4")
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert b"sec-websocket-accept: x" in head.lower()
        assert rest == b"\x81\x01a\0\1\2\3\4"


# --- what does not


@pytest.mark.parametrize(
    "host",
    [
        "other.example.org",
        f"x.{NAME}",
        f"{NAME}:1",
        f"{NAME}:",
        "127.0.0.1",
        f"user@{NAME}",
        f"{NAME}\r\n folded",
        "",
        None,
    ],
)
async def test_other_host_is_refused_and_the_connection_goes_on(host: str | None) -> None:
    upstream = Host()
    async with site(upstream.serve) as at:
        wrong = request(at, "POST / HTTP/1.1", host, more="Content-Length: 3\r\n", body=b"abc")
        if host is None:  # not even HTTP/1.1
            [first] = parsed(await at.ask(wrong))
            refused(first, 400, "http")
            return
        first, second = parsed(await at.ask(wrong + request(at)), "POST", "GET")
        refused(first, 403, "http_host")
        assert second[0] == 200
        assert len(upstream.requests) == 1
        event = await at.gateway.event()
        assert (event["kind"], event["verdict"], event["reason"]) == ("request", "refused", "http_host")


async def test_refused_request_is_one_event_with_its_bytes() -> None:
    """No connection is told beside it: none of it reached the host. With one that did, both are told, and no byte
    twice."""
    async with site(Host().serve) as at:
        wrong, right = request(at, host="other.example"), request(at)
        await at.ask(wrong)
        await at.ask(wrong + right)
        told = [await at.gateway.event(number) for number in range(3)]
        assert len(at.gateway.events) == 3
        assert [(event["kind"], event["verdict"]) for event in told] == [
            ("request", "refused"),
            ("request", "refused"),
            ("connection", "allowed"),
        ]
        assert told[0]["bytes_sent"] == len(wrong)
        assert told[1]["bytes_sent"] + told[2]["bytes_sent"] == len(wrong + right)


@pytest.mark.parametrize(
    ("target", "passes"),
    [
        (f"http://{NAME}:PORT/a?b", b"/a?b"),
        (f"HTTP://{NAME}?b", b"/?b"),
        (f"http://{NAME}", b"/"),
        ("http://other.example.org/", None),
        (f"http://{NAME}@other.example.org/", None),
        (f"http://other.example.org#{NAME}", None),
        (f"https://{NAME}/", None),
        (f"//{NAME}/", b"//" + NAME.encode() + b"/"),
        ("other.example.org/", None),
    ],
)
async def test_absolute_target_must_name_the_host(target: str, passes: bytes | None) -> None:
    host = Host()
    async with site(host.serve) as at:
        [answer] = parsed(await at.ask(request(at, f"GET {target} HTTP/1.1")))
        if passes is None:
            refused(answer, 403, "http_host")
        assert [each.target for each in host.requests] == ([] if passes is None else [passes])


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "trace", "connect"])
async def test_method_that_leads_elsewhere_is_refused(method: str) -> None:
    host = Host()
    async with site(host.serve) as at:
        data = await at.ask(request(at, f"{method} {NAME}:443 HTTP/1.1"))
        refused(parsed(data)[0], 403, "http_method")
        assert host.read == []


CHUNKED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "more",
    [
        f"Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: -1\r\n",
        f"Host: {NAME}\r\n",
        "Host: other.example.org\r\n",
        "A\x00: b\r\n",
        "A: b\rc\r\n",
        "Content-Length: 3\r\n 4\r\n",
    ],
)
async def test_request_with_an_unclear_end_is_refused_and_the_connection_ends(more: str) -> None:
    host = Host()
    async with site(host.serve) as at:
        data = await at.ask(request(at, "POST / HTTP/1.1", more=more, body=CHUNKED))
        [answer] = parsed(data)
        refused(answer, 400, "http")
        assert answer[1][b"connection"] == b"close"
        assert host.read == []


async def test_control_unclear_request_reaches_a_host_that_is_asked_directly() -> None:
    """The smuggled request is a second one for a reader that goes by the chunks."""
    host = Host()
    async with site(host.serve) as at:
        _, writer = await asyncio.open_connection(HOST, at.port)
        more = f"Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked\r\n"
        writer.write(request(at, "POST / HTTP/1.1", more=more, body=CHUNKED))
        writer.write_eof()
        await asyncio.wait_for(host.has_two.wait(), 60)
        assert host.requests[1].target == b"/smuggled"
        writer.close()


async def test_folded_line_reaches_the_host_as_one_line() -> None:
    host = Host()
    async with site(host.serve) as at:
        await at.ask(request(at, more="X-Fold: a\r\n b\r\n"))
        assert b"X-Fold: a b\r\n" in host.read[0]


async def test_trailers_and_headers_for_one_side_stay_on_it() -> None:
    host = Host(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Down\r\nX-Down: 1\r\nProxy-Authenticate: b\r\n\r\nok"
    )
    more = "Connection: X-Up, Content-Length, Host\r\nX-Up: 1\r\nTE: trailers\r\nTrailer: Host\r\nKeep-Alive: p\r\n"
    async with site(host.serve) as at:
        body = b"1\r\na\r\n0\r\nHost: other.example.org\r\n\r\n"
        data = await at.ask(request(at, "POST / HTTP/1.1", more=more + "Transfer-Encoding: chunked\r\n", body=body))
        assert parsed(data)[0][1] == {b"content-length": b"2"}
        assert {name for name, _ in host.requests[0].headers} == {b"host", b"transfer-encoding"}
        assert host.bodies == [b"a"]
        assert b"other" not in host.read[0]


async def test_length_of_a_body_stays_whatever_the_program_says_of_it() -> None:
    host = Host()
    async with site(host.serve) as at:
        more = "Connection: Content-Length\r\nContent-Length: 3\r\n"
        assert parsed(await at.ask(request(at, "POST / HTTP/1.1", more=more, body=b"abc")))[0][0] == 200
        assert host.bodies == [b"abc"]


@pytest.mark.parametrize("upgrade", ["h2c", "websocket, h2c", "TLS/1.0"])
async def test_other_upgrade_is_removed(upgrade: str) -> None:
    host = Host()
    async with site(host.serve) as at:
        more = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMA\r\n"
        assert parsed(await at.ask(request(at, more=more)))[0][0] == 200
        assert {name for name, _ in host.requests[0].headers} == {b"host"}


async def test_switch_that_nobody_asked_for_is_an_error_of_the_host() -> None:
    async with site(
        script(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    ) as at:
        refused(parsed(await at.ask(request(at)))[0], 502, "upstream")


@pytest.mark.parametrize(
    "head", ["GET / HTTP/2.0", "PRI * HTTP/2.0", "GET /", "GET / HTTP/1.1 x", "GET /\x01 HTTP/1.1"]
)
async def test_what_is_not_http_1_is_refused(head: str) -> None:
    host = Host()
    async with site(host.serve) as at:
        refused(parsed(await at.ask(request(at, head)))[0], 400, "http")
        assert host.read == []


async def test_head_without_end_is_cut_at_its_bound() -> None:
    async with site(Host().serve) as at:
        reader, writer = await at.connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        sent = 0
        while sent < 100 * 1024 * 1024 and not reader.at_eof() and not writer.is_closing():
            writer.write(b"X: " + b"y" * 1000 + b"\r\n")
            sent += 1005
            try:
                await writer.drain()
            except ConnectionError:
                break
        assert sent < 16 * 1024 * 1024  # what fits into the buffers of two sockets
        event = await at.gateway.event()
        assert (event["kind"], event["reason"]) == ("request", "http")


# --- hostile hosts


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
async def test_host_that_does_not_answer_in_http_is_a_bad_gateway(answer: bytes) -> None:
    async with site(script(answer)) as at:
        refused(parsed(await at.ask(request(at)))[0], 502, "upstream")


async def test_answer_that_breaks_off_is_reset_and_not_ended() -> None:
    async with site(script(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")) as at:
        reader, writer = await at.connect()
        writer.write(request(at))
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_answer_with_two_lengths_of_different_kinds_has_one_for_the_program() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    async with site(script(answer)) as at:
        [(status, headers, body)] = parsed(await at.ask(request(at)))
        assert (status, body) == (200, b"ok")
        assert b"content-length" not in headers


async def test_second_answer_of_a_host_is_nobodys() -> None:
    """A host that answers twice would have its second answer taken for that to the next request."""
    poison = Host(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    async with site(poison.serve) as at:
        data = await at.ask(request(at) + request(at))
        assert [body for _, _, body in parsed(data, "GET", "GET")] == [b"ok", b"ok"]
        assert len(poison.read) == 2


async def test_host_that_never_answers_is_a_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with site(serve, times=Times(answer=0.05)) as at:
        refused(parsed(await at.ask(request(at)))[0], 504, "timeout")


async def test_host_that_answers_before_it_has_the_body_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    async with site(serve) as at:
        reader, writer = await at.connect()
        writer.write(request(at, "POST / HTTP/1.1", more="Content-Length: 1000\r\n"))
        assert (await reader.read()).startswith(b"HTTP/1.1 413")


async def test_host_that_cannot_be_reached_is_told_in_http() -> None:
    async with site(Host().serve) as at:
        at.dns.addresses.clear()
        refused(parsed(await at.ask(request(at)))[0], 502, "not_found")
        event = await at.gateway.event()
        assert (event["kind"], event["reason"]) == ("request", "not_found")


async def test_many_small_messages_take_no_more_than_slices_of_time() -> None:
    """10,000 messages in one piece: the test itself would fail if one callback took 20 ms."""
    answer = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000 + OK
    async with site(script(answer)) as at:
        assert parsed(await at.ask(request(at)))[0][2] == b"ok"


async def test_program_that_is_reset_ends_the_hosts_connection() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    async with site(serve) as at:
        _, writer = await at.connect()
        writer.write(request(at, "POST / HTTP/1.1", more="Content-Length: 1000\r\n", body=b"x"))
        await asyncio.wait_for(begun.wait(), 60)
        reset(writer)
        await asyncio.wait_for(ended.wait(), 60)


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
        writer.close()

    async with site(serve) as at:
        with at.unconnected() as program:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(program, (GIVEN, at.port))
            await loop.sock_sendall(program, request(at))
            await asyncio.wait_for(stopped.wait(), 60)
            assert 0 < sent < 32 * 1024 * 1024
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("allowed", None)


async def test_host_that_answers_for_ever_is_cut_at_the_bound_of_bytes() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()

    async with site(serve, bounds={"bytes_per_sandbox": 1_000_000}) as at:
        reader, writer = await at.connect()
        writer.write(request(at))
        with pytest.raises(ConnectionResetError):
            while await reader.read(65536):
                pass
        event = await at.gateway.event()
        assert (event["verdict"], event["reason"]) == ("refused", "bytes")
        assert event["bytes_received"] < 1_200_000
