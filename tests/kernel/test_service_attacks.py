"""Attacks on the service itself (section E of the list): who may come in, how much one client can cost the others."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.kernel import host, raw
from tests.kernel.talk import Running, start
from tests.service import Service

KEY = "canary-key-7f3a9c51e2d84b06"
SECRET = "canary-value-5b1d0e77aa"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("keyed"), {"BULKHEAD_API_KEYS": json.dumps([KEY])}) as service:
        yield service


def call(service: Service, method: str, path: str, body: object = None) -> tuple[int, Any]:
    return service.call(method, path, body, {"authorization": f"Bearer {KEY}"})


def refused(running: Running, query: str = "", **headers: str) -> int:
    with pytest.raises(InvalidStatus) as error, running.stream(query, additional_headers=headers):
        pass
    return int(error.value.response.status_code)


@contextlib.contextmanager
def watched(service: Service, most_seconds: float = 2.0) -> Iterator[list[float]]:
    """Meanwhile /healthz answers, each time and soon: the margin is for a machine that is shared."""
    stop, seconds = threading.Event(), [0.0]

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            assert service.call("GET", "/healthz")[0] == 200
            seconds.append(time.monotonic() - began)
            stop.wait(0.01)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield seconds
        finally:
            stop.set()
            asking.result(60)
    assert max(seconds) < most_seconds, sorted(seconds)[-5:]
    assert sorted(seconds)[len(seconds) // 2] < 0.2


# --- 54: who may open a stream


def test_a_stream_needs_the_key_in_its_header(keyed: Service) -> None:
    sandbox = call(keyed, "POST", "/sandboxes", {})[1]["id"]
    path = f"/sandboxes/{sandbox}/executions"
    running = Running(keyed, f"{path}/{call(keyed, 'POST', path, {'command': ['sleep', '1000']})[1]['id']}")
    good = {"Authorization": f"Bearer {KEY}"}
    assert refused(running) == 401
    assert refused(running, f"?token={KEY}") == 401
    assert refused(running, f"?ticket={KEY}&access_token={KEY}") == 401
    assert refused(running, Authorization="Bearer wrong") == 401
    assert refused(running, Authorization=f"Basic {KEY}") == 401
    assert refused(running, Origin="http://evil.example", **good) == 403
    assert refused(running, Origin="null", **good) == 403
    with running.stream(additional_headers=good) as viewer:
        assert viewer.step()
    call(keyed, "DELETE", f"/sandboxes/{sandbox}")
    assert not [line for line in keyed.log if KEY in line or "token" in line], "a query string is not logged"


def test_a_web_page_cannot_drive_a_keyless_service(service: Service) -> None:
    for header in ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        assert service.call("POST", "/sandboxes", {}, header)[0] == 403
        assert service.call("GET", "/sandboxes", None, header)[0] == 403


# --- 59: secrets and their neighbours


def test_no_secret_shows_up_anywhere(keyed: Service) -> None:
    sandbox = call(keyed, "POST", "/sandboxes", {"env": {"TOKEN": SECRET}})[1]["id"]
    other = call(keyed, "POST", "/sandboxes", {})[1]["id"]
    shown = [json.dumps(call(keyed, "GET", path)[1], default=str) for path in (
        f"/sandboxes/{sandbox}", "/sandboxes", "/runtimes", "/readyz", "/openapi.json", "/metrics", "/nowhere"
    )]  # fmt: skip
    wrong: list[dict[str, object]] = [
        {"command": []},
        {"command": ["true"], "env": {"A=B": SECRET}},
        {"command": ["true"], "env": {"X": 1}},
    ]
    shown += [json.dumps(call(keyed, "POST", f"/sandboxes/{sandbox}/executions", body)[1]) for body in wrong]
    look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | tr '\\0' '\\n'; true"
    for where in (sandbox, other):
        path = f"/sandboxes/{where}/executions"
        answer = call(keyed, "POST", path, {"command": ["sh", "-c", look]})[1]
        execution = f"{path}/{answer['id']}"
        assert call(keyed, "GET", f"{execution}?wait_seconds=30")[1]["exit"]["code"] == 0
        text = str(call(keyed, "GET", f"{execution}/output")[1])
        assert ("TOKEN=" + SECRET in text) is (where == sandbox), "its own environment, and nobody else's"
        shown += [json.dumps(answer), text.replace("TOKEN=" + SECRET, "")]
    everything = "\n".join([*shown, *keyed.log])
    assert KEY not in everything
    assert SECRET not in everything
    assert str(keyed.process.pid) not in "".join(shown[-1:]), "no process of the host is listed"
    for name in (sandbox, other):
        call(keyed, "DELETE", f"/sandboxes/{name}")


# --- 57, 58: names that mean something to somebody else


def test_programs_of_the_sandbox_are_never_used_by_the_service(service: Service, sandbox: str) -> None:
    plant = "for n in ip mount tar sh python3 env; do printf '#!/bin/sh\\necho planted' > $n; chmod 755 $n; done"
    assert service.run(sandbox, "/bin/sh", "-c", plant)["exit"]["code"] == 0
    env = {
        "PATH": "/workspace",
        "LD_PRELOAD": "/workspace/x.so",
        "PYTHONPATH": "/workspace",
        "BASH_ENV": "/workspace/sh",
    }
    assert service.run(sandbox, "tar", env=env)["stdout"] == "planted\n", "that is for the client's own PATH to say"
    other = service.create(env=env)
    assert service.run(other, "/usr/bin/true", workdir="/tmp")["exit"]["code"] == 0
    assert service.call("DELETE", f"/sandboxes/{other}")[0] == 204
    assert host.state_of(service.children()["launcher"]) != "Z"


CONTROL = 'x\r\nSet-Cookie: a=b\r\n\r\n<script>\x1b[2J\x07\u202e\u2028{"level":"error"}'


def test_control_characters_in_names_are_escaped(service: Service, sandbox: str) -> None:
    lines = len(service.log)
    running = start(service, sandbox, "echo", CONTROL, env={"V": CONTROL}, workdir="/workspace")
    assert running.exit()["code"] == 0
    assert running.out() == CONTROL.encode() + b"\n", "the program gets exactly what was said"
    missing = start(service, sandbox, CONTROL).exit()
    assert missing["reason"] == "start_failed"
    assert not any(ord(c) < 32 or c in "\x7f\u202e\u2028" for c in missing["detail"])
    named = service.create()
    for path in (
        "/sandboxes/%0d%0aSet-Cookie:%20a=b",
        "/%1b%5b2J%0a%7b%22level%22%3a1%7d",
        f"/sandboxes/{named}/%E2%80%AE",
    ):
        connection = raw.open_socket(service)
        connection.sendall(raw.head(service, "GET", path, "Connection: close"))
        answer = b"".join(iter(lambda c=connection: c.recv(65_536), b""))  # type: ignore[misc]
        connection.close()
        head = answer.partition(b"\r\n\r\n")[0]
        assert b" 404 " in head.splitlines()[0]
        assert b"set-cookie" not in head.lower()
    assert service.call("DELETE", f"/sandboxes/{named}")[0] == 204
    host.until(lambda: any("202" in line for line in service.log[lines:]), "the last one is logged")
    for line in service.log[lines:]:
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["event"] == "request"


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
