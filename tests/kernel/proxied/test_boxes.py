"""Sandboxes of `boxlite` with a network, in a service that has only this runtime. The server is a double whose boxes
have this host's network, so its allow list is not what is tested here (tests/boxlite/test_proxied_real.py does)."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import host
from tests.kernel.proxied.conftest import ALLOW, Internet, Proxied
from tests.kernel.proxied.test_programs import ANSWER, SCRIPTS, TRUST
from tests.kernel.proxied.world import HOST, NET
from tests.kernel.test_box_network import NETWORK, free_networks, links
from tests.require import PROGRAMS, require_program
from tests.service import PATIENCE, PROJECT, Service

ENVIRONMENT = {"HOME": "/tmp", "PIP_ROOT_USER_ACTION": "ignore"}
OTHER_NETWORK = next(itertools.islice(free_networks(), 4096, None))
GO_BY_THE_ENVIRONMENT = ("curl", "python3", "pip", "git", "npm", "go")


@pytest.fixture(scope="module")
def boxes(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    double = subprocess.Popen(
        [sys.executable, "-m", "tests.boxlite.double", "--shares-network"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert double.stdout is not None
        settings = {
            "BULKHEAD_RUNTIME": "boxlite",
            "BULKHEAD_PROCESS__ENABLED": "false",
            "BULKHEAD_BOXLITE__URL": double.stdout.readline().split()[1],
            "BULKHEAD_BOXLITE__API_KEY": "test-key",
            "BULKHEAD_BOXLITE__IMAGES": json.dumps({"host": {"rootfs_path": "/images/busybox"}}),
            "BULKHEAD_BOXLITE__DEFAULT_IMAGE": "host",
            "BULKHEAD_EGRESS__BOXLITE_NETWORK": str(NETWORK),
            "BULKHEAD_EGRESS__ALLOW": json.dumps(ALLOW),
            "BULKHEAD_EGRESS__PERMIT_NETS": NET,
            "BULKHEAD_EGRESS__RESOLVER": internet.names.address,
        }
        with Service(tmp_path_factory.mktemp("data"), settings) as running:
            yield running
    finally:
        double.send_signal(signal.SIGINT)
        double.communicate(timeout=PATIENCE)


@pytest.fixture
def boxed(boxes: Service, internet: Internet) -> Iterator[Proxied]:
    made = Proxied(boxes, internet)
    yield made
    for sandbox in made.made:
        boxes.call("DELETE", f"/sandboxes/{sandbox}")


@pytest.mark.parametrize("name", GO_BY_THE_ENVIRONMENT)
def test_program_that_goes_by_its_environment_works(name: str, boxed: Proxied) -> None:
    if name in PROGRAMS:
        require_program(name)
    allow, script = SCRIPTS[name]
    sandbox = boxed.sandbox(*allow)
    script = "set -e -o pipefail; cd $(mktemp -d)\n" + textwrap.dedent(script)
    done = boxed.service.run(sandbox, "bash", "-c", script, env={**ENVIRONMENT, **TRUST}, timeout_seconds=200)
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, ANSWER, ""), (done, boxed.events(sandbox))
    told = boxed.some_events(sandbox)
    assert {(event["kind"], event["verdict"], event["reason"]) for event in told} <= {("connection", "allowed", None)}
    assert {event["address"] for event in told} == {HOST}


def test_runtime_says_what_it_can(boxes: Service) -> None:
    _, answer = boxes.call("GET", "/runtimes")
    (runtime,) = [item for item in answer["items"] if item["name"] == "boxlite"]
    assert "network_proxy" in runtime["capabilities"]


def test_answer_of_a_run_has_what_was_refused_with_its_port(boxes: Service) -> None:
    network = {"mode": "proxy", "allow": ["www.example.org:443"]}
    body = {
        "command": ["curl", "-sS", "https://index.example.org/", "http://www.example.org/"],
        "policy": {"network": network},
    }
    status, answer = boxes.call("POST", "/run", body)
    assert status == 200, answer
    refused = {(item["name"], item["port"], item["reason"]) for item in answer["network"]["refused"]}
    assert refused == {("index.example.org", 443, "rule"), ("www.example.org", 80, "rule")}


def test_next_egress_process_knows_the_credential(boxes: Service, boxed: Proxied) -> None:
    sandbox = boxed.sandbox("www.example.org:80")
    asks = ("curl", "-sS", "--retry", "9", "--retry-connrefused", "http://www.example.org/answer")
    assert boxes.run(sandbox, *asks)["stdout"] == ANSWER
    before = boxes.children()
    os.kill(before["egress"], signal.SIGKILL)
    host.until(lambda: boxes.children().get("egress", before["egress"]) != before["egress"], "another one is started")
    # A connection that is made while nobody is there waits in the listener. The credential comes a moment later.
    done = boxes.run(sandbox, "sh", "-c", 'until "$@" -f; do sleep 0.1; done 2> /dev/null', "sh", *asks)
    assert done["stdout"] == ANSWER


def test_link_of_a_service_that_was_killed_is_gone(internet: Internet, tmp_path: Path) -> None:
    settings = {
        "BULKHEAD_PROCESS__ENABLED": "false",
        "BULKHEAD_BOXLITE__URL": "http://127.0.0.1:1",
        "BULKHEAD_EGRESS__BOXLITE_NETWORK": str(OTHER_NETWORK),
    }
    with Service(tmp_path, settings) as running:
        link = f"bh-{host.first_uid(running)}"
        assert link in links()
        running.process.kill()
        running.process.wait()
        host.until(lambda: link not in links(), "the kernel has removed it")
