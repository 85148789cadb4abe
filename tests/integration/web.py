"""Servers that the egress process can reach: one beside it, and one beyond the machine."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import docker
from docker.models.containers import Container
from pyroute2 import IPRoute, NetNS, netns

from tests.integration.project import TAG
from tests.kernel import host

NAME = "www.example.org"  # the engine's DNS knows containers by their names
PERMITTED = {"BULKHEAD_EGRESS__PERMIT_NETS": "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"}  # an engine's own networks
HERE, THERE = "198.51.100.1", "198.51.100.2"  # RFC 5737
# Without http.server, whose import takes many seconds on an emulated processor.
SERVER = """
import socket
server = socket.create_server(("", 80))
print("listens", flush=True)
while True:
    client, _ = server.accept()
    with client:
        asked = b""
        while not asked.endswith(b"\\r\\n\\r\\n") and (more := client.recv(4096)):
            asked += more
        if asked:
            client.sendall(b"HTTP/1.0 200 OK\\r\\ncontent-length: 8\\r\\n\\r\\nanswered")
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 80), float(sys.argv[2]))"


@contextlib.contextmanager
def web_server(client: docker.DockerClient) -> Iterator[Container]:
    """In a container of its own, in the network of the egress process."""
    options = {"name": NAME, "entrypoint": "python3", "network": "bulkhead_egress"}
    container = client.containers.run(f"bulkhead-gateway:{TAG}", ["-ISc", SERVER], detach=True, **options)
    try:
        host.until(lambda: b"listens" in container.logs(), "it listens", 600, every=0.2)
        yield container
    finally:
        container.remove(force=True)


def address_of(container: Container) -> str:
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"]["bulkhead_egress"]["IPAddress"])


def connects(container: Container, address: str, seconds: float) -> bool:
    """`seconds` is how long nobody may answer."""
    return bool(container.exec_run(["python3", "-ISc", CONNECT, address, str(seconds)]).exit_code == 0)


@contextlib.contextmanager
def beyond_the_host() -> Iterator[str]:
    """The address of a server in a network namespace, which knows a way to this host and to no container."""
    name, link = f"bulkhead-test-{os.getpid()}", f"bh{os.getpid()}"
    with NetNS(name) as there, IPRoute() as here:
        try:
            here.link("add", ifname=link, kind="veth", peer={"ifname": "out", "net_ns_fd": name})
            for side, device, address in ((here, link, HERE), (there, "out", THERE)):
                (index,) = side.link_lookup(ifname=device)
                side.addr("add", index=index, address=address, prefixlen=30)
                side.link("set", index=index, state="up")
            with contextlib.closing(_listening(name)):
                yield THERE
        finally:
            netns.remove(name)  # and with it both ends of the link


def _listening(name: str) -> socket.socket:
    """Made by a thread that stays there for this one call."""
    made: list[socket.socket] = []

    def make() -> None:
        netns.setns(name)
        made.append(socket.create_server((THERE, 80)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]
