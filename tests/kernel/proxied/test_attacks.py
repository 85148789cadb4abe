"""Ways past the rules. Each works from outside of a sandbox, straight to the same server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import host
from tests.kernel.proxied.conftest import Internet, Proxied
from tests.kernel.proxied.world import HOST, OTHER
from tests.service import Service

TRY = """
import errno, json, socket, ssl, sys
def attempt(kind, address, port, data, tls_name=None):
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, getattr(socket, kind)) as it:
            it.settimeout(100)
            it.connect((address, port))
            if tls_name is not None:
                context = ssl.create_default_context(cafile=sys.argv[1])
                context.check_hostname = False
                it = context.wrap_socket(it, server_hostname=tls_name or None)
            it.sendall(data.encode())
            return it.recv(100_000).split(b"\\r\\n")[0].decode("latin-1") or "closed"
    except ssl.SSLError as error:
        return f"alert {error.reason}"
    except socket.gaierror as error:
        return "no such name" if error.errno == socket.EAI_NONAME else str(error)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
print(json.dumps([attempt(*each) for each in json.loads(sys.argv[2])]))
"""
OK, FORBIDDEN, RESET = "HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden", "ECONNRESET"
NAME = "www.example.org"
GET = f"GET /answer HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
RULES = (f"{NAME}:80", f"{NAME}:443")
Attempt = tuple[Any, ...]


def outside(internet: Internet, *each: Attempt) -> list[str]:
    """The same from this process's network, where a name leads to HOST."""
    there = [(kind, HOST if address == NAME else address, *rest) for kind, address, *rest in each]
    command = [sys.executable, "-c", TRY, str(internet.authority.certificate), json.dumps(there)]
    return list(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def inside(proxied: Proxied, sandbox: str, *each: Attempt) -> list[str]:
    done = proxied.service.run(sandbox, "python3", "-c", TRY, "ca.pem", json.dumps(each))
    assert done["exit"]["code"] == 0, done
    return list(json.loads(done["stdout"]))


def refusals(proxied: Proxied, sandbox: str) -> Counter[str]:
    return Counter(event["reason"] for event in proxied.events(sandbox) if event["verdict"] == "refused")


def hexadecimal(address: str) -> str:
    """As the end of an IPv6 address."""
    parts = [int(part) for part in address.split(".")]
    return f"{parts[0] << 8 | parts[1]:x}:{parts[2] << 8 | parts[3]:x}"


def spellings(address: str) -> list[Attempt]:
    """Itself, mapped, in NAT64, in 6to4, compatible."""
    low = hexadecimal(address)
    written = (address, f"::ffff:{address}", f"64:ff9b::{low}", f"2002:{low}::", f"::{low}")
    return [("SOCK_STREAM", text, 80, GET) for text in written]


def test_literal_address_is_refused_in_every_spelling(proxied: Proxied, internet: Internet) -> None:
    """That of the permitted host too: an address alone does not say which rule it is."""
    assert outside(internet, *spellings(HOST)[:2]) == [OK, OK]
    sandbox = proxied.sandbox(*RULES)
    tries = [*spellings(HOST), *spellings("169.254.169.254"), *spellings("127.0.0.1"), ("SOCK_STREAM", "::1", 80, GET)]
    assert set(inside(proxied, sandbox, *tries)) == {RESET}
    assert refusals(proxied, sandbox) == {"rule": len(tries)}


@contextmanager
def greeter(address: str, port: int) -> Iterator[None]:
    """A server that greets whoever connects, until it is closed."""

    def greet() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"here")

    with socket.create_server((address, port)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_permitted_network_does_not_permit_its_neighbour(proxied: Proxied, internet: Internet) -> None:
    sandbox = proxied.sandbox({"host": HOST, "ports": [7000], "raw": True})
    tries = [("SOCK_STREAM", address, 7000, "x") for address in (HOST, OTHER)]
    with greeter(HOST, 7000), greeter(OTHER, 7000):
        assert outside(internet, *tries) == ["here", "here"]
        assert inside(proxied, sandbox, *tries) == ["here", RESET]


def test_other_ports_than_those_of_the_rules_are_refused_by_the_kernel(proxied: Proxied, internet: Internet) -> None:
    other = ("SOCK_STREAM", NAME, 7000, "x")
    with greeter(HOST, 7000):
        assert outside(internet, other) == ["here"]
        assert inside(proxied, proxied.sandbox(*RULES), other) == ["EACCES"]


ANSWERS: dict[str, tuple[list[Sequence[str]], str]] = {
    "mixed": ([[HOST, OTHER]], "own"),
    "own": ([["127.0.0.1"]], "own"),
    "mapped": ([[f"::ffff:{OTHER}"]], "own"),
    "nat64": ([[f"64:ff9b::{hexadecimal(OTHER)}"]], "own"),
    "metadata": ([["169.254.169.254"]], "metadata"),
    "private": ([["192.168.1.1"]], "private"),
    "shared": ([["100.64.0.1"]], "shared"),
    "local": ([["fd00:1::1"]], "private"),
    "unspecified": ([["0.0.0.0"]], "own"),
}


def test_name_that_leads_to_a_forbidden_address_is_refused(proxied: Proxied, internet: Internet) -> None:
    sandbox = proxied.sandbox("*.example.org:80")
    internet.names.names |= {f"{name}.answers.example.org": answers for name, (answers, _) in ANSWERS.items()}
    tries = [
        ("SOCK_STREAM", f"{name}.answers.example.org", 80, GET.replace("www", f"{name}.answers")) for name in ANSWERS
    ]
    assert inside(proxied, sandbox, *tries) == [FORBIDDEN] * len(tries)
    told = {event["name"].partition(".")[0]: event["reason"] for event in proxied.events(sandbox) if event["reason"]}
    assert told == {name: reason for name, (_, reason) in ANSWERS.items()}


def test_name_whose_answer_changes_gains_nothing(proxied: Proxied, internet: Internet) -> None:
    """The address that was judged is the one that is dialled: there is one question for each connection."""
    internet.names.names["rebinding.example.org"] = [[HOST], [OTHER]]
    tries = [("SOCK_STREAM", "rebinding.example.org", 80, GET.replace("www", "rebinding"))] * 3
    answers = inside(proxied, proxied.sandbox("rebinding.example.org:80"), *tries)
    assert answers == ["HTTP/1.1 404 File not found", FORBIDDEN, FORBIDDEN]
    assert internet.names.asked["rebinding.example.org A"] == 3


def test_tls_with_another_name_or_none_is_cut(proxied: Proxied, internet: Internet) -> None:
    tries = [("SOCK_STREAM", NAME, 443, GET, name) for name in (NAME, "code.example.org", "")]
    assert outside(internet, *tries) == [OK] * 3
    sandbox = proxied.sandbox(*RULES)
    assert inside(proxied, sandbox, *tries) == [OK, *["alert TLSV1_UNRECOGNIZED_NAME"] * 2]
    assert refusals(proxied, sandbox) == {"tls_name": 2}


REQUESTS = {
    "two hosts": (GET.replace("\r\n\r\n", "\r\nHost: code.example.org\r\n\r\n"), "HTTP/1.1 400 Bad Request"),
    "another host": (GET.replace("www", "code"), FORBIDDEN),
    "absolute form": (GET.replace("/answer", "http://code.example.org/answer"), FORBIDDEN),
}


def test_plain_http_that_names_another_host_does_not_reach_the_server(proxied: Proxied, internet: Internet) -> None:
    tries = [("SOCK_STREAM", NAME, 80, data) for data, _ in REQUESTS.values()]
    before = len(internet.plain.requests)
    assert inside(proxied, proxied.sandbox(*RULES), *tries) == [answer for _, answer in REQUESTS.values()]
    assert len(internet.plain.requests) == before
    outside(internet, *tries)
    assert len(internet.plain.requests) == before + len(tries)


def test_datagrams_reach_the_resolver_only(proxied: Proxied, internet: Internet) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 443))
        threading.Thread(target=lambda: server.sendto(b"here", server.recvfrom(9)[1]), daemon=True).start()
        to_server = ("SOCK_DGRAM", HOST, 443, "x")
        assert outside(internet, to_server) == ["here"]
        others = [("SOCK_DGRAM", address, port, "x") for address, port in (("8.8.8.8", 53), ("127.0.0.53", 54))]
        tries = [to_server, ("SOCK_DGRAM", "198.18.0.1", 443, "x"), *others]
        assert inside(proxied, proxied.sandbox(*RULES), *tries) == ["ECONNREFUSED"] * len(tries)


def test_questions_about_names_go_nowhere(proxied: Proxied, internet: Internet) -> None:
    """A name may carry data. The name server hears of one only when a rule has it and a program connects."""
    internet.names.asked.clear()
    names = ("secret.attacker.example", "secret.example.org", "www.example.org.attacker.example")
    sandbox = proxied.sandbox(*RULES)
    assert inside(proxied, sandbox, *[("SOCK_STREAM", name, 80, GET) for name in names]) == ["no such name"] * 3
    proxied.service.run(sandbox, "getent", "hosts", NAME)
    assert refusals(proxied, sandbox)["name"] >= 3
    assert not internet.names.asked
    assert inside(proxied, sandbox, ("SOCK_STREAM", NAME, 80, GET)) == [OK]
    assert internet.names.asked == {f"{NAME} A": 1, f"{NAME} AAAA": 1}


def test_socket_of_the_egress_process_is_not_in_a_sandbox(service: Service, proxied: Proxied) -> None:
    path = f"/run/bulkhead/{host.first_uid(service)}/egress.sock"
    assert Path(path).is_socket()
    sandbox = proxied.sandbox(*RULES)
    look = f"ls {path} /run/bulkhead; wc -l < /proc/net/unix"
    assert service.run(sandbox, "sh", "-c", look)["stdout"] == "1\n", "the line of titles"


FLOOD = """
import socket, sys
address = socket.gethostbyname("www.example.org")
held, served = [socket.socket() for _ in range(int(sys.argv[1]))], 0
for it in held:
    it.connect_ex((address, 80))
for it in held:
    try:
        it.sendall(b"HEAD /answer HTTP/1.1\\r\\nHost: www.example.org\\r\\n\\r\\n")
        served += it.recv(100) != b""
    except OSError:
        pass
print(served)
"""


HAMMER = """
import collections, errno, select, socket
address = socket.gethostbyname("www.example.org")
held = [socket.create_connection((address, 80)) for _ in range(20)]
ends = collections.Counter()
for _ in range(10):
    burst = [socket.socket() for _ in range(200)]
    for it in burst:
        it.setblocking(False)
        it.connect_ex((address, 80))
    for it in burst:
        poll = select.poll()
        poll.register(it, select.POLLIN)
        assert poll.poll(100_000), "nobody answers"
        ends[errno.errorcode[it.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]] += 1
        it.close()
print(*ends, sum(ends.values()))
"""


@pytest.fixture
def bounded(internet: Internet, tmp_path: Path) -> Iterator[Proxied]:
    """Of a service that permits few connections."""
    settings = {
        "BULKHEAD_EGRESS__PERMIT_NETS": f"{HOST}/32",
        "BULKHEAD_EGRESS__RESOLVER": internet.names.address,
        "BULKHEAD_EGRESS__CONNECTIONS_PER_SANDBOX": "20",
        "BULKHEAD_EGRESS__CONNECTIONS_PER_SECOND": "1000",
    }
    with Service(tmp_path, settings) as service:
        yield Proxied(service, internet)


def test_connections_beyond_the_bound_are_reset_and_others_do_not_notice(bounded: Proxied) -> None:
    greedy, other = bounded.sandbox(*RULES), bounded.sandbox(*RULES)
    for _ in range(2):  # what was reset leaves nothing
        assert bounded.service.run(greedy, "python3", "-c", FLOOD, "60")["stdout"] == "20\n"
        assert inside(bounded, other, ("SOCK_STREAM", NAME, 80, GET)) == [OK]
    assert refusals(bounded, greedy)["connections_per_sandbox"] > 0
    assert refusals(bounded, other) == {}


FLOOD_AND_HOLD = f"""{FLOOD}
import os, time
sys.stdout.flush()
if os.fork() == 0:
    os.closerange(1, 3)
    time.sleep(600)
"""


def test_connections_beyond_the_share_of_a_key_are_reset_and_another_key_has_its_own(
    internet: Internet, tmp_path: Path
) -> None:
    keys = ["key-of-one-9d41b07c55ee12f3", "key-of-two-03c6a8f27be94d10"]
    settings = {
        "BULKHEAD_EGRESS__PERMIT_NETS": f"{HOST}/32",
        "BULKHEAD_EGRESS__RESOLVER": internet.names.address,
        "BULKHEAD_EGRESS__CONNECTIONS": "2",
        "BULKHEAD_API_KEYS": json.dumps(keys),
    }
    policy = {"network": {"mode": "proxy", "allow": list(RULES)}}
    with Service(tmp_path, settings) as service:
        for key in keys:
            headers = {"authorization": f"Bearer {key}"}
            _, sandbox = service.call("POST", "/sandboxes", {"policy": policy}, headers)
            body = {"command": ["python3", "-c", FLOOD_AND_HOLD, "3"]}
            status, answer = service.call("POST", f"/sandboxes/{sandbox['id']}/run", body, headers)
            assert (status, answer["stdout"]) == (200, "1\n"), answer
            assert [refused["reason"] for refused in answer["network"]["refused"]] == ["connections_per_client"]


def test_flood_beyond_the_bounds_is_refused_by_the_kernel(bounded: Proxied) -> None:
    """What overruns the backlog before the egress process can look comes again after a second, and is refused then."""
    done = bounded.service.run(bounded.sandbox(*RULES), "python3", "-c", HAMMER)
    *ends, count = done["stdout"].split()
    assert set(ends) <= {"ECONNREFUSED", "ECONNRESET"}
    assert "ECONNREFUSED" in ends
    assert count == "2000"
