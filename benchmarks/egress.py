"""`python -m benchmarks.egress`, as root: what the egress process costs a connection.

One client program runs on the host, straight to the server, and in a sandbox, in turn. It takes the time from
`connect` to the first byte of an answer, and the rate of one connection: by an address, by a name, by a name within
TLS, and of HTTP within TLS that is read on the way. For each connection by name the egress process asks this
benchmark's name server, which takes 0.05 ms for a question. A look-up is measured too: it is answered by the egress
process. Then connections are opened in many sandboxes and stay open.

With `--nginx FOLDER` the client on the host also connects by way of nginx, in turn with the others. The folder has
nginx's modules: /usr/lib/nginx/modules after `apt-get install nginx libnginx-mod-stream`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.nginx import nginx
from benchmarks.rest import Rest
from tests.kernel import host
from tests.kernel.proxied.world import HOST, NET, Authority
from tests.kernel.talk import start
from tests.service import Service

RAW, TLS, HTTP = 7000, 443, 8443
NAME = "www.example.org"
NGINX = HOST.removesuffix(".1") + ".2"  # where nginx listens
SERVER = """
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
piece = bytes(1 << 20)
def serve(connection, port):
    if port != 7000:
        connection = context.wrap_socket(connection, server_side=True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("r") as lines:
        for line in lines:
            if port == 8443:
                if not line.startswith("GET "):
                    continue
                line = line.split()[1].strip("/")
                connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %b\\r\\n\\r\\n" % line.encode())
            size = int(line)
            for _ in range(size >> 20):
                connection.sendall(piece)
            connection.sendall(piece[: size & (1 << 20) - 1])
def accept(listener, port):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, port), daemon=True).start()
listeners = [(socket.create_server((sys.argv[1], port), backlog=1024), port) for port in (7000, 443, 8443)]
threads = [threading.Thread(target=accept, args=pair) for pair in listeners]
[thread.start() for thread in threads]
print("ready", flush=True)
"""
NAMES = """
import socket, sys
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.bind(("127.0.0.1", 0))
print(endpoint.getsockname()[1], flush=True)
record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[1])
while True:
    question, sender = endpoint.recvfrom(4096)
    end = question.index(b"\\0", 12) + 5
    found = record if question[end - 3] == 1 else b""
    head = question[:2] + b"\\x81\\x80\\0\\1\\0" + bytes((bool(found),)) + bytes(4)
    endpoint.sendto(head + question[12:end] + found, sender)
"""
CLIENT = """
import json, socket, ssl, sys, time
name, literal, authority, rounds, size = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
named = socket.gethostbyname(name)
context = ssl.create_default_context()
context.load_verify_locations(authority)
kinds = {"address": (literal, 7000), "name": (named, 7000), "TLS": (named, 443), "HTTP": (named, 8443)}
def question(kind, size):
    return b"GET /%d HTTP/1.1\\r\\nHost: www.example.org:8443\\r\\n\\r\\n" % size if kind == "HTTP" else b"%d\\n" % size
def first_byte(kind):
    connection = connect(kind)
    connection.sendall(question(kind, 1))
    assert connection.recv(2)
    return connection
def connect(kind):
    connection = socket.create_connection(kinds[kind])
    if kind in ("TLS", "HTTP"):
        connection = context.wrap_socket(connection, server_hostname="www.example.org")
    return connection
first, rates = {kind: [] for kind in ("look-up", *kinds)}, {}
for _ in range(rounds):
    began = time.perf_counter()
    socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    first["look-up"].append((time.perf_counter() - began) * 1e3)
    for kind in kinds:
        began = time.perf_counter()
        connection = first_byte(kind)
        first[kind].append((time.perf_counter() - began) * 1e3)
        connection.close()
        time.sleep(0.02)
buffer = bytearray(1 << 20)
for kind in ("address", "TLS", "HTTP"):
    connection = connect(kind)
    began, left = time.perf_counter(), size
    connection.sendall(question(kind, size))
    while left > 0:  # the head of an answer counts with its body
        left -= connection.recv_into(buffer)
    rates[kind] = size / 1e6 / (time.perf_counter() - began)
    connection.close()
print(json.dumps([first, rates]))
"""
HOLD = """
import socket, sys
address = socket.gethostbyname("www.example.org")
held = [socket.create_connection((address, 7000)) for _ in range(int(sys.argv[1]))]
for connection in held:
    connection.sendall(b"1\\n")
    assert connection.recv(2)
print("held", flush=True)
sys.stdin.read()
"""
FLOOD = """
import socket, sys
held, opened = [], 0
while True:
    it = socket.socket()
    it.connect_ex((sys.argv[1], 7000))
    held.append(it)
    opened += 1
    if len(held) > 256:
        held.pop(0).close()
    if opened % 1000 == 1:
        print(opened, flush=True)
"""
RULES: list[Any] = [{"host": host, "ports": [RAW], "raw": True} for host in (NAME, HOST)] + [f"{NAME}:{TLS}"]
READ: list[Any] = [*RULES, {"host": NAME, "ports": [HTTP], "http": [{}]}]


@contextmanager
def running(program: str, *arguments: str) -> Iterator[str]:
    """Yields its first line."""
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started.stdout.readline().strip()
        finally:
            started.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--creates", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--sandboxes", type=int, default=200)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--nginx", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(NAMES, HOST) as port:
        settings = {
            "BULKHEAD_EGRESS__ALLOW": json.dumps([*RULES, f"{NAME}:{HTTP}"]),
            "BULKHEAD_EGRESS__CA_FILE": str(Path(folder) / "ca.pem"),
            "BULKHEAD_EGRESS__PERMIT_NETS": NET,
            "BULKHEAD_EGRESS__RESOLVER": f"127.0.0.1:{port}",
            "BULKHEAD_CAPACITY__SANDBOXES": "1000",
        }
        authority = Authority(Path(folder), [NAME])
        certificate = str(Path(folder) / "server.pem"), str(Path(folder) / "server.key")
        with running(SERVER, HOST, *certificate), Service(Path(folder) / "data", settings) as service:
            creates(service, options.creates)
            with ExitStack() as stack:
                addresses = {"straight": HOST}
                if options.nginx is not None:
                    addresses["nginx"] = NGINX
                    stack.enter_context(nginx(options.nginx, Path(folder), NAME, NGINX, HOST))
                compare(service, authority, addresses, options.turns, options.rounds, options.megabytes << 20)
            neighbour(service, authority)
            hold(service, options.sandboxes, options.connections)


def create(service: Service, rules: list[Any]) -> str:
    policy = {"network": {"mode": "proxy", "allow": rules}}
    return service.create(policy=policy, limits={"memory_mib": 64})


def creates(service: Service, rounds: int) -> None:
    rest = Rest(service.port)
    networks: dict[str, dict[str, Any]] = {
        "none": {"mode": "none"},
        "proxy": {"mode": "proxy", "allow": RULES},
        "http": {"mode": "proxy", "allow": READ},
    }
    found: dict[str, list[float]] = {kind: [] for kind in networks}
    for turn in range(rounds + 1):
        for kind, times in found.items():
            time.sleep(0.02)  # what is made ahead is ready
            began = time.perf_counter()
            sandbox = rest.create(policy={"network": networks[kind]}, limits={"memory_mib": 64})
            if turn:
                times.append((time.perf_counter() - began) * 1e3)
            rest.delete(sandbox)
    for kind, times in found.items():
        least, low, middle, high = min(times), *statistics.quantiles(times, n=4)
        print(f"create, {kind:6} {least:6.2f} {low:6.2f} {middle:6.2f} {high:6.2f} ms, least and quartiles")


def neighbour(service: Service, authority: Authority) -> None:
    """First bytes of one sandbox, alone and beside one that opens as many connections as it may."""
    quiet, greedy = create(service, READ), create(service, RULES)
    certificate = authority.certificate.read_text()
    service.run(quiet, "sh", "-c", 'printf %s "$1" > ca.pem', "sh", certificate)
    for turn in range(3):
        for beside in (False, True):
            flood = start(service, greedy, "python3", "-c", FLOOD, HOST) if beside else None
            if flood is not None:
                flood.saw(b"1001\n")
            inside = service.run(quiet, "python3", "-c", CLIENT, NAME, HOST, "ca.pem", "40", "0")
            opened = 0
            if flood is not None:
                opened = int(flood.out().split()[-1])
                flood.delete()
            times = json.loads(inside["stdout"])[0]
            told = ", ".join(f"{kind} {statistics.median(values):.2f}" for kind, values in times.items())
            print(f"turn {turn}, beside {opened:6} connections: {told} ms to the first byte, p50")


def compare(
    service: Service, authority: Authority, addresses: dict[str, str], turns: int, rounds: int, size: int
) -> None:
    """`addresses`: where the client on the host connects to."""
    sandbox = create(service, READ)
    certificate = authority.certificate.read_text()
    service.run(sandbox, "sh", "-c", 'printf %s "$1" > ca.pem', "sh", certificate)
    first: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(turns):
        arguments = [str(rounds), str(size)]
        said = {}
        for place, address in addresses.items():
            own = [sys.executable, "-c", CLIENT, address, address, str(authority.certificate), *arguments]
            said[place] = subprocess.run(own, capture_output=True, text=True, check=True).stdout
        inside = service.run(sandbox, "python3", "-c", CLIENT, NAME, HOST, "ca.pem", *arguments)
        assert inside["exit"]["code"] == 0, inside
        said["sandbox"] = inside["stdout"]
        for place, text in said.items():
            times, speeds = json.loads(text)
            for kind in times:
                first.setdefault((kind, place), []).extend(times[kind])
            for kind in speeds:
                rates.setdefault((kind, place), []).append(speeds[kind])
    for (kind, place), values in sorted(first.items()):
        cuts = statistics.quantiles(values, n=20)
        print(f"{kind:8} {place:9} {cuts[1]:6.2f} {cuts[9]:6.2f} {cuts[18]:6.2f} ms to the first byte, p10, p50, p95")
    for (kind, place), values in sorted(rates.items()):
        print(f"{kind:8} {place:9} {statistics.median(values):6.0f} MB/s in one connection, median of {len(values)}")


def hold(service: Service, sandboxes: int, connections: int) -> None:
    made = [create(service, RULES) for _ in range(sandboxes)]
    egress = service.children()["egress"]
    before = host.resident_mib(egress)
    shares = [connections // sandboxes + (place < connections % sandboxes) for place in range(sandboxes)]
    for _ in range(2):
        holders = [
            start(service, sandbox, "python3", "-c", HOLD, str(share), stdin="open")
            for sandbox, share in zip(made, shares, strict=True)
            if share
        ]
        for each in holders:
            each.saw(b"held")
        print(
            f"{connections} connections in {sandboxes} sandboxes: {before:.1f} -> {host.resident_mib(egress):.1f} MiB"
        )
        for each in holders:
            each.delete()
    print(f"after their end: {host.resident_mib(egress):.1f} MiB")


if __name__ == "__main__":
    main()
