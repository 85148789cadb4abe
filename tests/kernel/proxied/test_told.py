"""What clients are told about the network of a sandbox: by the API, and by the command line at the end of a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.proxied.conftest import Internet, Proxied
from tests.kernel.proxied.world import HOST, OTHER
from tests.service import PATIENCE, Service, clean_environment

WEB = ["*.example.org:80"]
INSIDE = "inside.example.org"
NETWORK = {"policy": {"network": {"mode": "proxy", "allow": WEB}}}


@pytest.fixture
def names(internet: Internet) -> Iterator[None]:
    """One more name, which leads to an address that the operator does not permit."""
    internet.names.names[INSIDE] = [[OTHER]]
    yield
    del internet.names.names[INSIDE]


def curl(*hosts: str) -> list[str]:
    return ["sh", "-c", 'for host; do curl -sS -o /dev/null "http://$host/answer" || true; done', "sh", *hosts]


def told(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["kind"], event["verdict"], event["name"], event["address"], event["port"], event["reason"]


def test_connection_is_told_with_its_rule_and_its_bytes(proxied: Proxied) -> None:
    sandbox = proxied.sandbox(*WEB)
    proxied.service.run(sandbox, *curl("www.example.org"))
    (event,) = proxied.some_events(sandbox)
    assert told(event) == ("connection", "allowed", "www.example.org", HOST, 80, None)
    assert event["rule"] == "*.example.org:80"
    assert event["bytes_sent"] > len("GET /answer HTTP/1.1\r\n\r\n")
    assert event["bytes_received"] > len("HTTP/1.1 200 OK\r\n\r\nanswered\n")


def test_receipt_has_the_rules_and_no_way_out(proxied: Proxied) -> None:
    sandbox = proxied.sandbox(*WEB)
    receipt = proxied.service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["network"]
    assert receipt["mode"] == "proxy"
    assert receipt["allow"] == [{"host": "*.example.org", "ports": [80], "raw": False, "http": None}]
    assert receipt["links"] == [{"name": "lo", "up": True}]
    assert receipt["routes_to_outside"] == 0


@pytest.mark.usefixtures("names")
def test_run_answers_with_what_was_refused_in_it_whole(service: Service) -> None:
    """Its sandbox is gone by then, so all of its events are there."""
    status, answer = service.call("POST", "/run", {"command": curl("nobody.example.net", INSIDE), **NETWORK})
    assert status == 200, answer
    refused = {(host["name"], host["port"], host["reason"]) for host in answer["network"]["refused"]}
    assert refused == {("nobody.example.net", None, "name"), (INSIDE, 80, "own")}


def test_runs_in_one_sandbox_answer_each_with_its_own_refusals(proxied: Proxied) -> None:
    sandbox = proxied.sandbox(*WEB)
    for number in range(20):
        name = f"n{number}.example.net"
        _, answer = proxied.service.call("POST", f"/sandboxes/{sandbox}/run", {"command": ["getent", "hosts", name]})
        assert [host["name"] for host in answer["network"]["refused"]] == [name]


@pytest.mark.usefixtures("names")
def test_command_line_names_what_was_refused_and_the_option_that_permits_it(service: Service) -> None:
    words = ["run", "--network", "proxy", "--allow", WEB[0], "--", *curl("www.example.org", "a.example.net", INSIDE)]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        env={**clean_environment(), "BULKHEAD_CLIENT_URL": service.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("bulkhead")] == [
        "bulkhead: refused: a.example.net: no rule permits the name"
        " (--allow a.example.net:443, or another port: a look-up has no port)",
        f"bulkhead: refused: {INSIDE}:80 at {OTHER}: the address is one of the machine that the service runs on."
        " The operator can permit its network: BULKHEAD_EGRESS__PERMIT_NETS",
    ]


def test_rule_beyond_those_of_the_operator_makes_no_sandbox(service: Service) -> None:
    policy = {"network": {"mode": "proxy", "allow": ["www.example.org:22"]}}
    status, problem = service.call("POST", "/sandboxes", {"policy": policy})
    assert (status, problem["type"], problem["pointer"]) == (
        422,
        "/problems/policy_too_broad",
        "/policy/network/allow/0",
    )
