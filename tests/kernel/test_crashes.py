"""kill -9 of each part under load: nothing is left, and where the service goes on it tells the truth meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.talk import Running, start
from tests.require import require
from tests.service import PATIENCE, Service

ROUNDS = 4
DAEMON = "setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1000; done' </dev/null >/dev/null 2>&1 & exec sleep 1000"


@contextlib.contextmanager
def load(service: Service, chance: random.Random) -> Iterator[threading.Event]:
    """Clients that create, execute and delete until they are told to stop; whatever they are answered. The event is
    set once something was done."""
    stop, busy = threading.Event(), threading.Event()

    def client(seed: int) -> None:
        own = random.Random(seed)
        while not stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                sandbox = service.create()
                for _ in range(own.randrange(4)):
                    start(service, sandbox, "sh", "-c", own.choice((DAEMON, "true", "cat /dev/zero", "exit 3")))
                    busy.set()
                if own.random() < 0.7:
                    service.call("DELETE", f"/sandboxes/{sandbox}")

    threads = [threading.Thread(target=client, args=(chance.random(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert busy.wait(PATIENCE)
        yield busy
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def check_nothing_left(first: int) -> None:
    """Folders of control groups may be: the next start takes them away."""
    host.until(lambda: not host.processes_in(first), f"processes: {[*map(host.describe, host.processes_in(first))]}")
    assert not [line for line in host.left_of(first) if line.startswith("mount")]


@pytest.fixture(scope="module", autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "a service that is started as root")


@pytest.mark.parametrize("victim", ["gateway", "supervisor"])
def test_a_killed_gateway_or_supervisor_leaves_nothing(tmp_path: Path, victim: str) -> None:
    chance = random.Random(victim)
    for turn in range(ROUNDS):
        service = Service(tmp_path / str(turn))
        try:
            service.wait_listening()
            first, parts = host.first_uid(service), service.children()
            with load(service, chance):
                threading.Event().wait(chance.uniform(0, 0.05))
                os.kill(service.process.pid if victim == "supervisor" else parts["gateway"], signal.SIGKILL)
                service.process.wait(PATIENCE)
        finally:
            status = service.stop()
        assert status == (-signal.SIGKILL if victim == "supervisor" else 1), service.log[-5:]
        host.until(lambda parts=parts: not any(map(host.state_of, parts.values())), "both halves end")  # type: ignore[misc]
        with host.kept(first):
            check_nothing_left(first)
            assert victim == "supervisor" or host.group_folders(first) == []
    with Service(tmp_path / "last") as fresh:
        if host.first_uid(fresh) == first:  # the lowest free range; unless somebody else was faster
            assert host.sandbox_groups(fresh.children()["launcher"], first) == []
        assert fresh.run(fresh.create(), "echo", "fine")["stdout"] == "fine\n"


def test_a_service_goes_on_after_its_launcher_was_killed(tmp_path: Path) -> None:
    chance = random.Random(7)
    with Service(tmp_path) as service:
        first = host.first_uid(service)
        for turn in range(ROUNDS):
            sandbox = service.create()
            running = start(service, sandbox, "sh", "-c", "echo before; " + DAEMON)
            running.saw(b"before")
            launcher = service.children()["launcher"]
            old = host.processes_of(host.host_uid(service, sandbox))
            assert len(old) >= 2
            with load(service, chance) if turn else contextlib.nullcontext():
                os.kill(launcher, signal.SIGKILL)
                check_lost(service, running, sandbox)
                host.until(lambda old=old: not any(map(host.state_of, old)), "its processes end")  # type: ignore[misc]
                host.until(lambda: service.call("GET", "/readyz")[0] == 200, "the next launcher serves")
                fresh = service.create()
                assert service.run(fresh, "echo", "fine")["stdout"] == "fine\n"
            assert service.children()["launcher"] != launcher
            for name in (sandbox, fresh):
                assert service.call("DELETE", f"/sandboxes/{name}")[0] == 204
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []


def check_lost(service: Service, running: Running, sandbox: str) -> None:
    ending = running.exit()
    assert (ending["reason"], ending["code"], ending["signal"]) == ("lost", None, None)
    shown = service.call("GET", f"/sandboxes/{sandbox}")[1]
    assert (shown["state"], shown["state_reason"]) == ("failed", "the launcher ended")
    assert running.out() == b"before\n", "what was printed stays readable while the record is kept"


def test_readyz_tells_that_there_is_no_launcher(tmp_path: Path) -> None:
    """The launcher is stopped for good here: its socket is there, and nobody answers."""
    with Service(tmp_path) as service:
        assert service.call("GET", "/readyz")[0] == 200
        supervisor, launcher = service.process.pid, service.children()["launcher"]
        os.kill(supervisor, signal.SIGSTOP)  # so that no other is started
        try:
            os.kill(launcher, signal.SIGKILL)
            host.until(lambda: service.call("GET", "/readyz")[0] == 503, "it says so")
            problem = service.call("GET", "/readyz")[1]
            assert (problem["type"], problem["runtime"]) == ("/problems/backend_unavailable", "process")
            assert problem["runtimes"][0]["ready"] is False
            status, refused = service.call("POST", "/sandboxes", {})
            assert (status, refused["type"]) == (503, "/problems/backend_unavailable")
            assert service.call("GET", "/sandboxes")[1]["items"] == []
            runtime = service.call("GET", "/runtimes")[1]["items"][0]
            assert runtime["available"] is False
            assert "launcher" in runtime["reason"]
            assert service.call("GET", "/healthz")[0] == 200
            assert b'bulkhead_runtime_healthy{runtime="process"} 0.0' in service.call("GET", "/metrics")[1]
        finally:
            os.kill(supervisor, signal.SIGCONT)
        host.until(lambda: service.call("GET", "/readyz")[0] == 200, "another is started")
        service.run(service.create(), "true")


def test_readyz_tells_that_the_launcher_hangs(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        launcher = service.children()["launcher"]
        assert service.call("GET", "/readyz")[0] == 200
        os.kill(launcher, signal.SIGSTOP)
        try:
            answers: list[str] = []

            def told() -> bool:
                status, answer = service.call("GET", "/readyz")
                answers.append(answer.get("detail", ""))
                return status == 503

            host.until(told, "it says so")
            assert "did not answer" in answers[-1]
            assert service.call("GET", "/healthz")[0] == 200
        finally:
            os.kill(launcher, signal.SIGCONT)
        host.until(lambda: service.call("GET", "/readyz")[0] == 200, "it goes on")
        assert service.children()["launcher"] == launcher
        assert service.run(service.create(), "echo", "fine")["stdout"] == "fine\n"


def test_killed_workers_under_load_lose_their_own_sandboxes_only(tmp_path: Path) -> None:
    chance = random.Random(11)
    with Service(tmp_path) as service:
        first, kept = host.first_uid(service), service.create()
        own = start(service, kept, "sleep", "1000")
        with load(service, chance):
            for _ in range(ROUNDS * 2):
                sandbox = service.create()
                running = start(service, sandbox, "sh", "-c", DAEMON)
                uid, worker = host.host_uid(service, sandbox), host.worker_of(service, sandbox)
                os.kill(worker, signal.SIGKILL)
                assert running.exit()["reason"] == "lost"
                assert host.processes_of(uid) == []
                assert service.call("GET", f"/sandboxes/{sandbox}")[1]["state"] == "failed"
                assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        assert own.show()["state"] == "running"
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_ends_everything_in_order_with_status_0(tmp_path: Path, number: int) -> None:
    service = Service(tmp_path)
    try:
        service.wait_listening()
        first = host.first_uid(service)
        for _ in range(5):
            start(service, service.create(), "sh", "-c", DAEMON)
        with load(service, random.Random(number)):
            service.process.send_signal(number)
            assert service.process.wait(PATIENCE) == 0
    finally:
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []
    assert not [line for line in service.log if "Traceback" in line or "fault" in line], service.log
