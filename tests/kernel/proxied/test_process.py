"""The egress process: who it is, and what its end costs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

from tests.kernel import host
from tests.kernel.proxied.conftest import Proxied
from tests.kernel.talk import start
from tests.kernel.test_start import status_of
from tests.service import Service

HELLO = "HEAD /answer HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
# The C library waits for an answer for a few seconds only. The next egress process may take longer to start.
ASK = f"""
import socket, sys
def look_up(tries=10):
    try:
        return socket.gethostbyname("www.example.org")
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN or tries == 0:
            raise
    return look_up(tries - 1)
address = look_up()
def ask(it):
    it.sendall({HELLO.encode()!r})
    return it.recv(1000).split(b"\\r\\n")[0].decode() or "closed"
with socket.create_connection((address, 80)) as it:
    print(address, ask(it), flush=True)
    if sys.argv[1:]:
        try:
            left = it.recv(1000)
        except OSError:
            left = b""
        print(left or "cut", flush=True)
"""


def test_egress_process_is_nobody(service: Service) -> None:
    pid, first = service.children()["egress"], host.first_uid(service)
    status = status_of(pid)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(first + 1)}
    assert status["Groups"] == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "nobody under the same uid could trace it"


def test_its_environment_and_descriptors_hold_nothing_of_the_service(service: Service) -> None:
    pid = service.children()["egress"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert not [name for name in variables if name.startswith(b"BULKHEAD")]
    files = {name for name in host.descriptors(pid) if not name.startswith(("socket", "anon_inode", "pipe"))}
    assert files == {"/dev/null"}


def test_only_the_gateway_may_connect_to_it(service: Service) -> None:
    first = host.first_uid(service)
    path = f"/run/bulkhead/{first}/egress.sock"
    assert (Path(path).stat().st_uid, Path(path).stat().st_mode & 0o777) == (first, 0o600)
    connect = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect({path!r})"
    for uid in (first + 1, first + 2):
        as_other = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", connect]
        assert "PermissionError" in subprocess.run(as_other, capture_output=True, text=True).stderr


def test_killed_egress_process_costs_its_connections_and_nothing_else(service: Service, proxied: Proxied) -> None:
    sandboxes = [proxied.sandbox("www.example.org:80", "*.example.org:80") for _ in range(3)]
    for number, sandbox in enumerate(sandboxes):  # so that each has another address for the name
        for other_name in range(number):
            service.run(sandbox, "getent", "hosts", f"n{other_name}.example.org")
    running = [start(service, sandbox, "python3", "-c", ASK, "hold") for sandbox in sandboxes]
    said = [each.saw(b"200 OK\n").decode() for each in running]
    assert len(set(said)) == 3, said
    other = start(service, sandboxes[0], "sleep", "1000")
    before = service.children()
    os.kill(before["egress"], signal.SIGKILL)
    sandboxes.append(proxied.sandbox("www.example.org:80"))  # waits for the next one
    said.append("198.18.0.1 HTTP/1.1 200 OK\n")
    host.until(lambda: service.children().get("egress", before["egress"]) != before["egress"], "another one is started")
    # A connection that is made while nobody is there waits in the listener.
    for sandbox, first in zip(sandboxes, said, strict=True):
        done = service.run(sandbox, "python3", "-c", ASK)
        assert done["stdout"] == first, "the same name has the same address"
    for each in running:
        each.saw(b"cut\n")
        assert each.exit()["code"] == 0
    assert other.show()["state"] == "running"
    assert {name: pid for name, pid in service.children().items() if name != "egress"} == {
        name: pid for name, pid in before.items() if name != "egress"
    }


def no_more(now: tuple[list[str], ...], before: tuple[list[str], ...]) -> bool:
    """A connection of the test itself may still be there before, and not now."""
    return not any(Counter(of_now) - Counter(of_before) for of_now, of_before in zip(now, before, strict=True))


def test_nothing_of_a_sandbox_stays_in_gateway_and_egress_process(service: Service, proxied: Proxied) -> None:
    def held() -> tuple[list[str], ...]:
        return tuple(host.descriptors(service.children()[name]) for name in ("gateway", "egress"))

    def use() -> None:
        sandbox = proxied.sandbox("www.example.org:80", "www.example.org:443")
        start(service, sandbox, "python3", "-c", ASK, "hold").saw(b"200 OK\n")
        assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
        told = proxied.events(sandbox)
        assert [(event["verdict"], event["reason"]) for event in told] == [("allowed", None)], "told at its end"

    use()
    before = held()
    for _ in range(5):
        use()
    host.until(lambda: no_more(held(), before), "no descriptor stays")


def test_without_rules_of_the_operator_there_is_no_egress_process_and_no_network(tmp_path: Path) -> None:
    with Service(tmp_path, {"BULKHEAD_EGRESS__ALLOW": "[]"}) as service:
        assert service.children().keys() == {"gateway", "launcher"}
        network = {"mode": "proxy", "allow": ["www.example.org:80"]}
        status, problem = service.call("POST", "/sandboxes", {"policy": {"network": network}})
        assert (status, problem["type"]) == (422, "/problems/policy_not_supported"), problem
        assert problem["detail"] == "the runtime 'process' has no network: this service has no egress process"
        (process, *_) = service.call("GET", "/runtimes")[1]["items"]
        assert "network_proxy" not in process["capabilities"]
        assert service.run(service.create(), "echo", "fine")["stdout"] == "fine\n"


def test_create_without_an_egress_process_fails_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        first, spare = host.first_uid(service), service.create()
        Path(f"/run/bulkhead/{first}/egress.sock").unlink()
        os.kill(service.children()["egress"], signal.SIGKILL)  # the next one cannot be found

        def says_so() -> bool:
            return "No such file" in str(service.call("GET", "/readyz")[1]["runtimes"][0]["reason"])

        host.until(says_so, "readiness tells it")

        def held() -> tuple[list[str], ...]:
            groups = [re.sub(r"/s-\d+", "/s-uid", folder) for folder in host.group_folders(first)]
            return groups, host.descriptors(service.children()["gateway"])

        def of_each_sandbox() -> set[int]:
            return {count for folder, count in Counter(held()[0]).items() if folder.endswith("/s-uid")}

        # The clone that is made ahead has groups too, one after the other. The next one has another uid.
        host.until(lambda: of_each_sandbox() == {2}, "there is a clone ahead with all its groups")
        before = held()
        network = {"mode": "proxy", "allow": ["www.example.org:443"]}
        status, problem = service.call("POST", "/sandboxes", {"policy": {"network": network}})
        assert (status, problem["type"]) == (503, "/problems/backend_unavailable"), problem
        assert "the egress process does not answer: No such file or directory" in problem["detail"]
        host.until(lambda: no_more(held(), before), "nothing of the sandbox stays")
        assert service.run(spare, "echo", "fine")["stdout"] == "fine\n", "others go on"


def test_service_ends_soon_although_the_egress_process_hangs(tmp_path: Path) -> None:
    """The gateway waits for it, to end a sandbox. It is killed after two seconds."""
    with Service(tmp_path) as service:
        first = host.first_uid(service)
        network = {"mode": "proxy", "allow": ["www.example.org:443"]}
        start(service, service.create(policy={"network": network}), "sleep", "1000")
        os.kill(service.children()["egress"], signal.SIGSTOP)
        assert service.stop() == 0
    with host.kept(first):
        assert host.left_of(first) == []
