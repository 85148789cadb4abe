"""Other rules for a sandbox that runs: what its programs see of a change, and what outlives the egress process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.direct import SPARE
from tests.kernel.proxied.conftest import Proxied
from tests.kernel.proxied.test_process import ASK, no_more
from tests.kernel.proxied.world import HOST
from tests.kernel.talk import Running, start
from tests.service import Service

WEB, RAW = "www.example.org:80", {"host": HOST, "ports": [7000], "raw": True}
# A request every moment, and what changes in the answers. One that was under way at the change may be cut.
AGAIN = """
import http.client, time
it, last = http.client.HTTPConnection("www.example.org"), ""
while last != "403 Forbidden":
    try:
        it.request("GET", "/answer")
        answer = it.getresponse()
        answer.read()
    except ConnectionError:
        it.close()
        continue
    if (now := f"{answer.status} {answer.reason}") != last:
        last = now
        print(now, flush=True)
    time.sleep(0.02)
"""
CURL = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://www.example.org/answer"]


def patch(service: Service, sandbox: str, *allow: Any) -> tuple[int, dict[str, Any]]:
    return service.call("PATCH", f"/sandboxes/{sandbox}", {"policy": {"network": {"allow": list(allow)}}})


def changed(service: Service, sandbox: str, *allow: Any) -> dict[str, Any]:
    status, body = patch(service, sandbox, *allow)
    assert status == 200, body
    return body


def conflict(service: Service, sandbox: str, *allow: Any) -> str:
    status, problem = patch(service, sandbox, *allow)
    assert (status, problem["type"]) == (409, "/problems/conflict"), problem
    return str(problem["detail"])


def curl(service: Service, sandbox: str) -> tuple[str, int]:
    done = service.run(sandbox, *CURL)
    return done["stdout"], done["exit"]["code"]


def holding(service: Service, sandbox: str) -> Running:
    """A program with a kept-alive connection. It prints `cut` when that has ended."""
    running = start(service, sandbox, "python3", "-c", ASK, "hold")
    running.saw(b"200 OK\n")
    return running


def test_rule_with_http_needs_one_at_the_create(proxied: Proxied) -> None:
    service, http = proxied.service, {"host": "www.example.org", "ports": [80], "http": [{"paths": ["/other"]}]}
    without = proxied.sandbox(WEB)
    assert "a rule with http cannot be added: neither a rule at the create nor the profile had one" in conflict(
        service, without, http
    )
    assert curl(service, without) == ("200", 0), "the old rules hold"
    sandbox = proxied.sandbox(WEB, {**http, "host": "code.example.org"})
    running = start(service, sandbox, "python3", "-c", AGAIN)
    running.saw(b"200 OK\n")
    changed(service, sandbox, http)
    (told,) = service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["network"]["allow"]
    assert told["http"] == [{"methods": None, "paths": ["/other"]}]
    running.saw(b"403 Forbidden\n")


def test_profile_with_http_lets_a_client_narrow_it_and_set_it_later(proxied: Proxied) -> None:
    """Its sandboxes trust an authority from the create on, also where no rule of the client has `http` yet."""
    service = proxied.service
    sandbox = proxied.sandbox("code.example.org:443", policy={"profile": "api"})

    def status(path: str) -> str:
        url = f"https://www.example.org{path}"
        return str(service.run(sandbox, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url)["stdout"])

    def rule(*paths: str, **more: Any) -> dict[str, Any]:
        return {"host": "www.example.org", "ports": [443], "http": [{"methods": ["GET"], "paths": list(paths)}], **more}

    for wide in (rule("/**"), rule("/answer", http=None), rule("/answer", ports=[80])):
        code, problem = patch(service, sandbox, wide)
        assert (code, problem["type"]) == (422, "/problems/policy_too_broad")
        assert "www.example.org:443 http GET /answer" in problem["ceiling"]
    changed(service, sandbox, rule("/answer"))
    assert (status("/answer"), status("/bytes/1")) == ("200", "403")
    changed(service, sandbox, rule("/answer", "/bytes/*"))
    assert status("/bytes/1") == "200"


LOOPBACK = {"policy": {"profile": "loopback"}}
COULD_NOT_RESOLVE, COULD_NOT_CONNECT = 6, 7  # curl(1)


@pytest.mark.parametrize("profile", ["default", "loopback"])
def test_rules_can_be_emptied_and_come_back(proxied: Proxied, profile: str) -> None:
    service = proxied.service
    sandbox = proxied.sandbox(WEB, policy={"profile": profile})
    running = holding(service, sandbox)
    assert curl(service, sandbox) == ("200", 0), "control"
    body = changed(service, sandbox)
    assert (body["policy"]["network"]["allow"], body["isolation"]["network"]["ports"]) == ([], [])
    running.saw(b"cut\n")
    assert curl(service, sandbox) == ("000", COULD_NOT_RESOLVE)
    assert service.run(sandbox, "curl", "-sS", "http://198.18.0.1/")["exit"]["code"] == COULD_NOT_CONNECT
    body = changed(service, sandbox, WEB)
    assert body["isolation"]["network"]["ports"] == [80]
    assert curl(service, sandbox) == ("200", 0)
    assert service.run(sandbox, "python3", "-c", ASK)["stdout"].startswith("198.18.0.1 "), "the name kept its address"
    told = [(event["verdict"], event["reason"]) for event in proxied.events(sandbox) if event["kind"] == "connection"]
    assert told.count(("refused", "changed")) == 1


def test_port_that_was_not_there_at_the_create_is_a_conflict_that_says_why(proxied: Proxied) -> None:
    sandbox = proxied.sandbox(WEB)
    detail = conflict(proxied.service, sandbox, WEB, "www.example.org:443", RAW)
    assert "the ports 443, 7000 cannot be added" in detail
    assert "the ports that its rules had when it was created (80), and Landlock cannot widen that" in detail
    assert curl(proxied.service, sandbox) == ("200", 0), "the old rules hold"


def test_profile_with_a_loopback_gets_new_ports(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(WEB, **LOOPBACK), proxied.service
    fetch = ["curl", "-sS", "--cacert", "ca.pem", "https://www.example.org/answer"]
    assert service.run(sandbox, *fetch)["exit"]["code"] == COULD_NOT_CONNECT, "control"
    body = changed(service, sandbox, "www.example.org:443")
    assert body["isolation"]["network"]["ports"] == [443]
    assert service.run(sandbox, *fetch)["stdout"] == "answered\n"
    assert curl(service, sandbox) == ("000", COULD_NOT_CONNECT)


SERVE = "import socket, time; it = socket.create_server(('', 7000)); print('serves', flush=True); time.sleep(1000)"


def test_port_that_a_program_holds_is_a_conflict_by_name_until_it_lets_go(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(WEB, **LOOPBACK), proxied.service
    serving = start(service, sandbox, "python3", "-c", SERVE)
    serving.saw(b"serves\n")
    assert conflict(service, sandbox, RAW) == "a program of the sandbox holds port 7000, so it cannot be in a rule"
    assert curl(service, sandbox) == ("200", 0), "the old rules hold"
    serving.delete()
    changed(service, sandbox, RAW)


def test_port_that_is_dropped_can_be_served_by_a_program(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(RAW, **LOOPBACK), proxied.service
    assert service.run(sandbox, "python3", "-c", SERVE)["exit"]["code"] == 1, "control"
    changed(service, sandbox)
    start(service, sandbox, "python3", "-c", SERVE).saw(b"serves\n")


def test_ports_may_change_more_often_than_a_sandbox_may_have_ports(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(WEB, **LOOPBACK), proxied.service
    for turn in range(20):
        port = (5432, 6379)[turn % 2]
        body = changed(service, sandbox, WEB, {"host": "db.example.org", "ports": [port], "raw": True})
        assert body["isolation"]["network"]["ports"] == [80, port]
    assert curl(service, sandbox) == ("200", 0)


def test_sandbox_without_rules_says_so(service: Service) -> None:
    assert "has the network mode 'none'" in conflict(service, service.create(), WEB)


def test_paused_sandbox_is_changed_and_its_connections_are_cut(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(WEB, **LOOPBACK), proxied.service
    running = holding(service, sandbox)
    service.call("POST", f"/sandboxes/{sandbox}/pause")
    assert changed(service, sandbox, "www.example.org:443")["state"] == "paused"
    service.call("POST", f"/sandboxes/{sandbox}/resume")
    running.saw(b"cut\n")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_new_rules_hold_although_the_egress_process_dies(service: Service, proxied: Proxied, when: str) -> None:
    sandboxes = [proxied.sandbox(WEB, "code.example.org:80", **LOOPBACK) for _ in range(2)]
    running = [holding(service, sandbox) for sandbox in sandboxes]
    pid = service.children()["egress"]
    if when == "before":
        os.kill(pid, signal.SIGKILL)
        changed(service, sandboxes[0], "code.example.org:80", RAW)
    else:
        answers: list[tuple[int, dict[str, Any]]] = []
        with stopped(pid):
            patching = threading.Thread(
                target=lambda: answers.append(patch(service, sandboxes[0], "code.example.org:80", RAW))
            )
            patching.start()
            host.until(lambda: "7000" in str(ports_of(service, sandboxes[0])), "the change has begun")
            os.kill(pid, signal.SIGKILL)
            patching.join()
        assert answers[0][0] == 200, answers
    host.until(lambda: service.children().get("egress", pid) != pid, "another one is started")
    for each in running:
        each.saw(b"cut\n")
    host.until(lambda: curl(service, sandboxes[1]) == ("200", 0), "the next one serves the others")
    assert curl(service, sandboxes[0]) == ("000", COULD_NOT_RESOLVE), "the new rules, and never the old ones"


def ports_of(service: Service, sandbox: str) -> Any:
    return service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["network"]["ports"]


def test_two_changes_at_once_leave_one_of_them_whole(proxied: Proxied) -> None:
    sandbox, service = proxied.sandbox(WEB, **LOOPBACK), proxied.service
    lists: tuple[list[Any], ...] = ([WEB], ["www.example.org:443", RAW], [])
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda allow=allow: answers.append(patch(service, sandbox, *allow)[0]))
        for allow in lists * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 12
    body = service.call("GET", f"/sandboxes/{sandbox}")[1]
    ports = sorted({port for rule in body["policy"]["network"]["allow"] for port in rule["ports"]})
    assert body["isolation"]["network"]["allow"] == body["policy"]["network"]["allow"]
    assert body["isolation"]["network"]["ports"] == ports
    assert ports in ([80], [443, 7000], [])
    assert curl(service, sandbox)[0] == ("200" if ports == [80] else "000")


def test_changes_while_the_sandbox_is_deleted_leave_nothing(service: Service, proxied: Proxied) -> None:
    def held() -> tuple[list[str], ...]:
        return tuple(host.descriptors(service.children()[name]) for name in ("gateway", "egress"))

    def of_launcher() -> int:
        return len(host.descriptors(service.children()["launcher"]))

    def race() -> None:
        sandbox = proxied.sandbox(WEB, **LOOPBACK)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(patch(service, sandbox, WEB, *[RAW] * (n % 2))[0]))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 409}

    race()
    before, launcher_before = held(), of_launcher()
    for _ in range(5):
        race()
    host.until(lambda: no_more(held(), before), "no descriptor stays")
    host.until(lambda: of_launcher() <= launcher_before + SPARE, "nor one of the launcher")
