"""Many rounds of everything, whole and cut off at any moment: at the end nothing is held that was not held before."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.kernel import host, raw
from tests.kernel.talk import start
from tests.service import Service

LOCATION = re.compile(rb"location: (\S+)")
SPARE = 4  # descriptors of the clone that the launcher makes ahead: it is there or not


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of our own, since its descriptors are counted."""
    with Service(tmp_path_factory.mktemp("leaks")) as service:
        sandbox = service.create()  # whatever is opened once
        service.run(sandbox, "head", "-c", "3000000", "/dev/zero")
        service.call("DELETE", f"/sandboxes/{sandbox}")
        yield service


@contextlib.contextmanager
def nothing_stays(service: Service) -> Iterator[None]:
    parts, first = service.children(), host.first_uid(service)
    before = {name: host.descriptors(pid) for name, pid in parts.items()}
    mounts = host.mounts_of(parts["launcher"])
    yield

    def left() -> list[str]:
        found = host.sandbox_groups(parts["launcher"], first)
        found += [
            f"process {pid}" for pid in host.sandbox_processes(first) if pid not in host.children_of(parts["launcher"])
        ]
        found += [sandbox["id"] for sandbox in service.call("GET", "/sandboxes?state=running")[1]["items"]]
        for name, pid in parts.items():
            now = host.descriptors(pid)
            if len(now) > len(before[name]) + SPARE:
                found.append(f"{name}: {len(before[name])} descriptors before, {len(now)} now: {now}")
        return found

    host.until(lambda: not left(), str(left()))
    assert host.mounts_of(parts["launcher"]) == mounts
    assert service.children() == parts, "the same launcher and gateway served all of it"


def test_fifty_whole_lives_leave_nothing(own: Service) -> None:
    with nothing_stays(own):
        for turn in range(50):
            sandbox = own.create()
            own.run(sandbox, "head", "-c", str(400_000), "/dev/zero")  # more than memory holds: a spill file
            own.run(sandbox, "no-such-program")
            running = start(own, sandbox, "sh", "-c", "setsid sleep 1000 & cat", stdin="open")
            with running.stream("?stdin=true") as viewer:
                viewer.send(b"hello")
                viewer.until(b"hello")
                if turn % 2:
                    running.delete()
                    viewer.until_exit()
            assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_a_lost_sandbox_leaves_nothing_even_if_nobody_deletes_it(own: Service) -> None:
    with nothing_stays(own):
        for _ in range(20):
            sandbox = own.create()
            running = start(own, sandbox, "sh", "-c", "head -c 400000 /dev/zero; sleep 1000", stdin="open")
            os.kill(host.worker_of(own, sandbox), signal.SIGKILL)
            assert running.exit()["reason"] == "lost"
            assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_spill_files_have_no_name_and_go_with_the_sandbox(own: Service) -> None:
    gateway = own.children()["gateway"]

    def spills() -> int:
        return sum("/spill/" in name and "(deleted)" in name for name in host.descriptors(gateway))

    before, sandbox = spills(), own.create()
    own.run(sandbox, "head", "-c", "400000", "/dev/zero")
    assert spills() == before + 1
    assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
    assert spills() == before


def hang_up_during(service: Service, chance: random.Random, request: bytes, most_seconds: float) -> bytes:
    """Sends a request, or a part of it, and leaves without waiting for long. What came back until then."""
    connection = raw.open_socket(service)
    data = b""
    try:
        connection.sendall(request if chance.random() < 0.8 else request[: chance.randrange(len(request))])
        if chance.random() < 0.7:
            connection.settimeout(chance.uniform(0.0001, most_seconds))
            with contextlib.suppress(TimeoutError):
                data = connection.recv(65_536)
    finally:
        if chance.random() < 0.5:
            raw.reset(connection)
        else:
            connection.close()
    return data


def created(service: Service) -> int:
    """How many creates the service has answered with a new sandbox, as far as it knows."""
    lines = [json.loads(line) for line in tuple(service.log) if '"path": "/sandboxes"' in line]
    return sum(line["method"] == "POST" and line["status"] == 201 for line in lines)


def test_creates_whose_client_disconnects_leave_nothing(own: Service) -> None:
    """Those with an id are kept; of the others those are left whose answer was on its way already."""
    chance, answered_before, read = random.Random(21), created(own), 0
    with nothing_stays(own):
        for turn in range(150):
            body: dict[str, object] = {} if turn % 3 else {"id": f"named-{turn}"}
            answer = hang_up_during(own, chance, raw.post(own, "/sandboxes", json.dumps(body).encode()), 0.012)
            if b" 201 " in answer:
                read += 1
                assert own.call("DELETE", LOCATION.findall(answer)[0].decode())[0] == 204
        host.until(lambda: own.call("GET", "/sandboxes?state=creating")[1]["items"] == [], "all are made or undone")
        for sandbox in own.call("GET", "/sandboxes?state=running&limit=1000")[1]["items"]:
            if not sandbox["id"].startswith("named-"):
                read += 1
            assert own.call("DELETE", f"/sandboxes/{sandbox['id']}")[0] == 204
    assert read <= created(own) - answered_before


def test_executions_whose_client_disconnects_run_and_are_listed(own: Service) -> None:
    chance = random.Random(22)
    with nothing_stays(own):
        sandbox = own.create()
        path = f"/sandboxes/{sandbox}/executions"
        for turn in range(100):
            body = json.dumps({"command": ["sleep", "0.05"], "id": f"run-{turn}"}).encode()
            hang_up_during(own, chance, raw.post(own, path, body), 0.004)
        items = own.call("GET", f"{path}?limit=1000")[1]["items"]
        assert 10 < len(items) <= 100, "of some only a part was sent, or the reset came before they were read"
        for item in items:
            shown = own.ended(f"{path}/{item['id']}")
            assert (shown["exit"]["reason"], shown["exit"]["code"]) == ("exited", 0)
        assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_deletes_whose_client_disconnects_are_carried_out(own: Service) -> None:
    chance = random.Random(23)
    with nothing_stays(own):
        for _ in range(40):
            sandbox = own.create()
            start(own, sandbox, "sleep", "1000")
            hang_up_during(own, chance, raw.head(own, "DELETE", f"/sandboxes/{sandbox}"), 0.005)
            assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_streams_that_are_cut_at_any_moment_leave_nothing(own: Service) -> None:
    chance = random.Random(24)
    with nothing_stays(own):
        sandbox = own.create()
        running = start(own, sandbox, "sh", "-c", "while :; do echo line; done", stdin="open")
        for turn in range(80):
            query = ("", "?stdin=take", "?stdout_offset=100", "?stdin=true", "?stdout_offset=99999999999")[turn % 5]
            hang_up_during(own, chance, raw.upgrade(own, f"{running.path}/stream{query}"), 0.02)
        assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204


def test_waiting_clients_that_leave_are_forgotten(own: Service) -> None:
    with nothing_stays(own):
        sandbox = own.create()
        running = start(own, sandbox, "sleep", "1000")
        waiting: list[socket.socket] = []
        for path in [f"{running.path}?wait_seconds=60", f"{running.path}/output?wait_seconds=60"] * 50:
            connection = raw.open_socket(own)
            connection.sendall(raw.head(own, "GET", path))
            waiting.append(connection)
        for connection in waiting:
            raw.reset(connection)
        assert own.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
