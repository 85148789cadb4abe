"""HTTP that no library would send, on a raw socket: an answer below 500 or an end of the connection, nothing is begun
that was not asked for, and the service goes on."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
from collections.abc import Iterator

import pytest

from tests.kernel import host, raw
from tests.properties.runs import alive
from tests.service import Service

QUIET_SECONDS = 0.3  # a connection that is kept open: there is no event for nothing more to come
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
BODY = b'{"id":"honest"}'
HIDDEN = b'{"id":"smuggled"}'
JSON = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


def create(body: bytes) -> bytes:
    return b"POST /sandboxes HTTP/1.1\r\n" + JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body


SMUGGLED = create(HIDDEN)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(headers: bytes, body: bytes) -> bytes:
    return b"POST /sandboxes HTTP/1.1\r\n" + JSON + headers + b"\r\n\r\n" + body


def get(target: bytes, headers: bytes = b"") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + b"\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), module="tests.properties.null_service") as service:
        yield service


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    before = len(running.log)
    yield running
    assert running.call("GET", "/healthz")[0] == 200
    host.until(lambda: not held(running), f"nothing is left: {held(running)}")
    assert not [line for line in running.log[before:] if '"level": "error"' in line or "Traceback" in line]


def held(service: Service) -> list[str]:
    """What lives on although the client that began it is gone and named nothing."""
    return [name for name in alive(service) if name.partition("/")[0] not in {"honest", "smuggled"}]


def tell(service: Service, *pieces: bytes, hang_up: bool = False, answers: int = 0) -> list[int]:
    """The statuses of all answers, until the service closes or says nothing more for a while. So many must come,
    however long they take."""
    with raw.open_socket(service) as connection:
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            if hang_up:
                raw.reset(connection)
                return []
            while True:
                connection.settimeout(QUIET_SECONDS if len(STATUS.findall(received)) >= answers else 60)
                if not (piece := connection.recv(65536)):
                    break
                received += piece
    return [int(status) for status in STATUS.findall(received)]


def exists(service: Service, sandbox: str) -> bool:
    status, answer = service.call("GET", f"/sandboxes/{sandbox}")
    return status == 200 and answer["state"] != "destroyed"


# Two readings of where a request ends: the one behind it must never be taken for a request of its own.
SHAPES = {
    "length and chunks": post(b"Content-Length: 4\r\nTransfer-Encoding: chunked", CHUNKED + SMUGGLED),
    "chunks and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 4", CHUNKED + SMUGGLED),
    "two lengths": post(b"Content-Length: %d\r\nContent-Length: 0" % len(SMUGGLED), SMUGGLED),
    "two lengths, the other way": post(b"Content-Length: 0\r\nContent-Length: %d" % len(SMUGGLED), SMUGGLED),
    "a list of lengths": post(b"Content-Length: 0, %d" % len(SMUGGLED), SMUGGLED),
    "a negative length": post(b"Content-Length: -1", SMUGGLED),
    "a length with a sign": post(b"Content-Length: +0", SMUGGLED),
    "a length in hex": post(b"Content-Length: 0x0", SMUGGLED),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551616", SMUGGLED),
    "a length with a space inside": post(b"Content-Length: 0 0", SMUGGLED),
    "an encoding with a space before its colon": post(b"Transfer-Encoding : chunked", CHUNKED + SMUGGLED),
    "an encoding that is not the last": post(b"Transfer-Encoding: chunked, identity", CHUNKED + SMUGGLED),
    "an encoding that is none": post(b"Transfer-Encoding: xchunked", CHUNKED + SMUGGLED),
    "an encoding behind a control character": post(b"Transfer-Encoding: \x0bchunked", CHUNKED + SMUGGLED),
    "a chunk size with a sign": post(b"Transfer-Encoding: chunked", b"-1\r\n" + SMUGGLED),
    "a chunk size in hex notation": post(b"Transfer-Encoding: chunked", b"0x0\r\n\r\n" + SMUGGLED),
    "a chunk size beyond 64 bits": post(b"Transfer-Encoding: chunked", b"10000000000000000\r\n" + SMUGGLED),
    "a chunk that is longer than its size": post(b"Transfer-Encoding: chunked", b"1\r\n" + SMUGGLED),
    "a header with a NUL": post(b"X: a\0b\r\nContent-Length: 0", SMUGGLED),
    "a header without a name": post(b": a\r\nContent-Length: 0", SMUGGLED),
    "a carriage return alone": post(b"X: a\rContent-Length: 0\r\nContent-Length: %d" % len(SMUGGLED), SMUGGLED),
    "a request inside a target": b"GET /sandboxes HTTP/1.1\r\nX: " + SMUGGLED,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_with_two_ends_is_one_request_at_most(service: Service, shape: str) -> None:
    statuses = tell(service, SHAPES[shape])
    assert all(status < 500 for status in statuses), statuses
    assert len(statuses) <= 1, "the connection ends where it is not clear what comes next"
    assert not exists(service, "smuggled")


@pytest.mark.parametrize("cut", range(1, len(SHAPES["chunks and length"]), 37))
def test_a_request_in_two_pieces_is_read_as_one(service: Service, cut: int) -> None:
    whole = SHAPES["chunks and length"]
    assert all(status < 500 for status in tell(service, whole[:cut], whole[cut:]))
    assert not exists(service, "smuggled")


STREAM = b"/sandboxes/a/executions/b/stream"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
ODD = {
    "nothing": b"\r\n\r\n\r\n",
    "the beginning of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "the beginning of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade to HTTP/2": get(
        b"/healthz", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
    ),
    "HTTP/0.9": b"GET /healthz\r\n",
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/3.7": b"GET /healthz HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n",
    "no host": b"GET /sandboxes HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/sandboxes", b"Host: example.org\r\n"),
    "an empty host": b"GET /sandboxes HTTP/1.1\r\nHost:\r\n\r\n",
    "a whole URL": get(b"http://example.org/sandboxes"),
    "a whole URL with a port that is none": get(b"http://127.0.0.1:99999999/sandboxes"),
    "an address only": b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a method of ours": b"MAKE /sandboxes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a method in small letters": b"get /sandboxes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a method without end": b"A" * 70_000 + b" / HTTP/1.1\r\n\r\n",
    "bytes that are no UTF-8": get(b"/sandboxes/%ff%fe?label=%ff:%fe&cursor=%80"),
    "bytes that are not even encoded": get(b"/sandboxes/\xff\xfe?label=\xff:\xfe"),
    "half of an escape": get(b"/sandboxes/%?label=%z:%"),
    "a NUL": get(b"/sandboxes/%00?label=%00:%00"),
    "a way up": get(b"/sandboxes/..%2f..%2fetc%2fpasswd"),
    "slashes": get(b"//sandboxes//"),
    "a slash behind": get(b"/sandboxes/"),
    "a path without end": get(b"/sandboxes/" + b"a" * 60_000),
    "a fragment": get(b"/sandboxes#x"),
    "a query given twice": get(b"/sandboxes?limit=1&limit=x&state=running&state=failed"),
    "a thousand labels": get(b"/sandboxes?" + b"&".join([b"label=a:b"] * 1000)),
    "numbers that are none": get(b"/sandboxes/x?wait_seconds=nan"),
    "numbers that are too large": get(b"/sandboxes?limit=" + b"9" * 5000),
    "a head that is too large": get(b"/sandboxes", b"X: " + b"a" * 100_000 + b"\r\n"),
    "too many headers": get(b"/sandboxes", b"X: y\r\n" * 500),
    "a header that goes on": get(b"/sandboxes", b"X: a\r\n b\r\n"),
    "a header that is no ASCII": get(b"/sandboxes", b"X-Request-Id: \xff\xfe\r\nAuthorization: Bearer \xff\r\n"),
    "an expectation": post(b"Expect: 200-maybe\r\nContent-Length: 2", b"[]"),
    "a stream by POST": b"POST /sandboxes/a/executions/b/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "a stream without a key": get(
        b"/sandboxes/a/executions/b/stream", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    ),
    "a stream of another version": get(
        b"/sandboxes/a/executions/b/stream",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: x\r\n",
    ),
    "a body where none belongs": get(b"/sandboxes", b"Content-Length: 5\r\n") + b"hello",
    "lines that end with LF": b"GET /healthz HTTP/1.1\nHost: 127.0.0.1\n\n",
    "long chunk extensions": post(b"Transfer-Encoding: chunked", b"2;" + b"x" * 200_000 + b"\r\n[]\r\n0\r\n\r\n"),
    "trailers": post(b"Transfer-Encoding: chunked", b"2\r\n[]\r\n0\r\nHost: example.org\r\n\r\n"),
    "endless trailers": post(b"Transfer-Encoding: chunked", b"2\r\n[]\r\n0\r\n" + b"X: y\r\n" * 50_000),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_requests_are_answered_below_500_or_cut(service: Service, name: str) -> None:
    statuses = tell(service, ODD[name])
    assert all(status < 500 for status in statuses), statuses


BODIES = {
    "no JSON": b"{",
    "nothing": b"",
    "half of a surrogate pair": b'{"env":{"A":"\\ud800"}}',
    "bytes that are no UTF-8": b'{"env":{"A":"\xff"}}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "NaN": b'{"ttl_seconds":NaN}',
    "infinity": b'{"limits":{"cpus":1e999}}',
    "a number without end": b'{"ttl_seconds":' + b"9" * 100_000 + b"}",
    "an exponent without end": b'{"limits":{"memory_mib":1e' + b"9" * 1000 + b"}}",
    "depth": b'{"labels":' * 100_000,
    "depth of lists": b"[" * 1_000_000,
    "the same name twice": b'{"runtime":"process","runtime":"nothing"}',
    "a NUL in a path": b'{"workdir":"/a\\u0000b"}',
    "a NUL in an id": b'{"id":"a\\u0000"}',
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("name", BODIES)
def test_odd_bodies_are_refused_as_problems(service: Service, name: str) -> None:
    with raw.open_socket(service) as connection:
        connection.sendall(raw.post(service, "/sandboxes", BODIES[name], "Connection: close"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert STATUS.findall(head)[:1] in ([b"422"], [b"413"]), head
    assert b"application/problem+json" in head
    assert json.loads(body)["type"].startswith("/problems/")


@pytest.mark.parametrize(
    "kind", [b"text/plain", b"multipart/form-data; boundary=x", b"application/json2", b"", b"\xff"]
)
def test_a_body_of_another_type_is_415(service: Service, kind: bytes) -> None:
    asked = b"POST /sandboxes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: " + kind + b"\r\nContent-Length: 2\r\n\r\n{}"
    assert tell(service, asked, answers=1) == [415]


@pytest.mark.parametrize(
    ("method", "path", "taken"),
    [
        ("OPTIONS", "/runtimes", "GET"),
        ("TRACE", "/runtimes", "GET"),
        ("PUT", "/runtimes", "GET"),
        ("HEAD", "/run", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_405_and_says_which_it_takes(
    service: Service, method: str, path: str, taken: str
) -> None:
    with raw.open_socket(service) as connection:
        connection.sendall(raw.head(service, method, path, "Connection: close"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert STATUS.findall(received)[:1] == [b"405"], received
    assert f"\r\nallow: {taken}".encode() in received
    assert (received.endswith(b"\r\n\r\n")) is (method == "HEAD"), "a HEAD has no body"


# --- hanging up


ENDLESS = b'{"command":["sleep"]}'
RUN = b"POST /run HTTP/1.1\r\n" + JSON + b"Content-Length: %d\r\n\r\n" % len(ENDLESS) + ENDLESS


@pytest.mark.parametrize("behind", [b"", RUN, RUN * 5, RUN * 100, create(HIDDEN), b"POST /run HTT", b"{"])
def test_a_disconnect_ends_a_run_whatever_waits_behind_it_on_the_connection(service: Service, behind: bytes) -> None:
    tell(service, RUN + behind, hang_up=True)  # at once
    with raw.open_socket(service) as connection:
        connection.sendall(RUN)
        host.until(lambda: held(service), "it runs")
        connection.sendall(behind)
        assert service.call("GET", "/healthz")[0] == 200  # by now the service has read what waits
    host.until(lambda: not held(service), "the run is gone")
    assert not exists(service, "smuggled"), "nothing behind it was begun"


def test_bodies_that_end_early_begin_nothing(service: Service) -> None:
    for cut in (b"", b"1", b"2\r\n", b"2\r\n{", b"2\r\n{}", b"2\r\n{}\r\n", b"2\r\n{}\r\n0\r\n"):
        tell(service, post(b"Transfer-Encoding: chunked", cut), hang_up=True)
        with raw.open_socket(service) as connection:
            connection.sendall(post(b"Transfer-Encoding: chunked", cut))
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert not STATUS.findall(answer), "a create was answered whose body is not whole"
        tell(service, create(b"{}")[:-1], hang_up=True)
    assert not [s for s in service.call("GET", "/sandboxes?state=running")[1]["items"] if s["id"] != "honest"]


def test_a_slow_head_is_cut_and_nobody_else_waits_for_it(service: Service) -> None:
    with raw.open_socket(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        for _ in range(5):
            connection.sendall(b"a")
            assert service.call("GET", "/healthz")[0] == 200
        assert not select.select([connection], [], [], 0)[0], "others were answered while it was open"
        connection.settimeout(60)  # the bound is 10 s
        assert STATUS.findall(connection.recv(65536)) == [b"408"]
