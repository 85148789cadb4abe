"""How much one client can cost the others, and what happens at the same moment (section E of the list)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.kernel import host, raw
from tests.service import PATIENCE, Service


@contextlib.contextmanager
def watched(service: Service, most_seconds: float = 2.0) -> Iterator[list[float]]:
    """Meanwhile /healthz answers, each time and soon: before the gateway has worked for long on something else. That is
    processor time of its loop's thread."""
    stop, seconds, gateway = threading.Event(), [0.0], service.children()["gateway"]

    def ask() -> None:
        while not stop.is_set():
            before = host.cpu_ns(gateway)
            assert service.call("GET", "/healthz")[0] == 200
            seconds.append((host.cpu_ns(gateway) - before) / 1e9)
            stop.wait(0.01)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield seconds
        finally:
            stop.set()
            asking.result(PATIENCE)
    assert max(seconds) < most_seconds, sorted(seconds)[-5:]
    assert sorted(seconds)[len(seconds) // 2] < 0.2


# --- 56: one client that costs much


def test_a_thousand_half_open_connections_leave_the_service_answering(service: Service) -> None:
    before = len(host.descriptors(service.children()["gateway"]))
    connections: list[socket.socket] = []
    with watched(service):
        for n in range(1000):
            connection = raw.open_socket(service)
            if n % 3 == 1:
                connection.sendall(b"GET /sandboxes/x/executions/y/stream HTTP/1.1\r\nUpgrade: websocket\r\nSec-Web")
            elif n % 3 == 2:
                connection.sendall(
                    raw.head(service, "POST", "/sandboxes", "Content-Length: 100", "Content-Type: application/json")
                )
            connections.append(connection)
        sandbox = service.create()
        assert service.run(sandbox, "echo", "fine")["stdout"] == "fine\n"
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    for connection in connections:
        connection.close()
    gateway = service.children()["gateway"]
    host.until(lambda: len(host.descriptors(gateway)) <= before + 8, "their descriptors are closed")


def test_a_huge_body_is_refused_without_being_read(service: Service) -> None:
    gateway = service.children()["gateway"]
    before = host.resident_mib(gateway)
    with watched(service):
        for how in ("Content-Length: 104857600", "Transfer-Encoding: chunked"):
            connection = raw.open_socket(service)
            connection.sendall(raw.head(service, "POST", "/sandboxes", "Content-Type: application/json", how))
            block = b" " * 65_536 if "Length" in how else b"10000\r\n" + b" " * 65_536 + b"\r\n"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(1600):
                    connection.sendall(block)
            with contextlib.suppress(ConnectionResetError):
                assert b" 413 " in connection.recv(4096)
            connection.close()
    assert host.resident_mib(gateway) - before <= 32


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 422),
        (b"[" * 1_000_000, 422),
        (b'{"env": {' + b",".join(b'"V%d": "x"' % n for n in range(100_000)) + b"}}", 422),
        (b'{"ttl_seconds": ' + b"9" * 1_000_000 + b"}", 422),
        (b'{"ttl_seconds": 1e999}', 422),
        (b'{"labels": {' + b",".join(b'"%d": "x"' % n for n in range(65)) + b"}}", 422),
        (b'{"id": "' + b"a" * 3_000_000 + b'"}', 422),
        (b"\xff\xfe", 422),
        (b'{"env": {"A": "\\ud800"}}', 422),
        (b'{"env": {"A": "\\u0000"}}', 422),
        (b'{"env": {"": "x"}}', 422),
        (b"", 422),
        (b"null", 422),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else str(value),
)
def test_a_hostile_body_is_a_problem_and_creates_nothing(service: Service, body: bytes, status: int) -> None:
    before = len(service.call("GET", "/sandboxes?state=running&limit=1000")[1]["items"])
    with watched(service):
        connection = raw.open_socket(service)
        connection.sendall(raw.post(service, "/sandboxes", body, "Connection: close"))
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        connection.close()
    head, _, said = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"application/problem+json" in head.lower()
    assert len(said) < 20_000
    assert len(service.call("GET", "/sandboxes?state=running&limit=1000")[1]["items"]) == before


# --- 60: at the same moment


def test_fifty_creates_of_one_id_make_one_sandbox(service: Service) -> None:
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = [
            f.result() for f in [pool.submit(service.call, "POST", "/sandboxes", {"id": "same"}) for _ in range(50)]
        ]
    assert sorted({status for status, _ in answers}) == [200, 201]
    assert [status for status, _ in answers].count(201) == 1
    assert len({body["isolation"]["host_uid"] for _, body in answers}) == 1
    assert service.call("DELETE", "/sandboxes/same")[0] == 204


def test_delete_against_execute_gives_typed_answers_and_leaves_nothing(service: Service) -> None:
    chance = random.Random(60)
    for _ in range(40):
        sandbox = service.create()
        uid = host.host_uid(service, sandbox)
        calls: list[tuple[str, str, object]] = [
            ("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sleep", "1000"]})
        ] * 4
        calls += [("DELETE", f"/sandboxes/{sandbox}", None)] * 2
        chance.shuffle(calls)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = [future.result() for future in [pool.submit(service.call, *each) for each in calls]]
        for (method, _, _), (status, body) in zip(calls, answers, strict=True):
            assert status in ({204} if method == "DELETE" else {201, 409}), body
            assert status != 409 or body["type"] == "/problems/wrong_state"
        assert host.processes_of(uid) == []
        for execution in service.call("GET", f"/sandboxes/{sandbox}/executions")[1]["items"]:
            assert execution["exit"]["reason"] == "killed"


def test_a_renewal_at_the_moment_of_expiry_is_all_or_nothing(service: Service) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        states = list(pool.map(renew_at_expiry, [service] * 60, range(60)))
    assert set(states) <= {"running", "destroyed"}


def renew_at_expiry(service: Service, seed: int) -> str:
    sandbox = service.create(ttl_seconds=1)
    threading.Event().wait(1 + random.Random(seed).uniform(-0.06, 0.01))
    status, answer = service.call("PATCH", f"/sandboxes/{sandbox}", {"ttl_seconds": 300})
    shown = service.call("GET", f"/sandboxes/{sandbox}")[1]
    if status == 200:
        assert (answer["state"], shown["state"]) == ("running", "running")
        assert service.run(sandbox, "true")["exit"]["code"] == 0
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        return "running"
    assert (status, answer["type"]) == (409, "/problems/wrong_state")
    host.until(lambda: service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "destroyed", "it ends")
    return "destroyed"
