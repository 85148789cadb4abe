"""What the gateway reads of a network namespace is what is there now, however often the same was read before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.require import require
from tests.service import PATIENCE, PROJECT

PROGRAM = """
import ctypes, fcntl, json, socket, struct
from app.backends.process.receipt import read_network
from app.launcher.sandbox.network import own_every_address

def read():
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    return read_network(netlink.detach())

def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, netdevice(7)

said = []
for _ in range(3):
    assert ctypes.CDLL(None).unshare(0x40000000) == 0  # a new network namespace
    said.append(read())
    loopback_up()
    said += [read(), read()]
    own_every_address()
    said.append(read())
print(json.dumps(said))
"""


def test_a_change_is_seen_although_the_same_was_read_before() -> None:
    require("root", os.geteuid() == 0, "a network namespace is made by root")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=PROJECT, capture_output=True, check=True, timeout=PATIENCE
    )
    down, *up, routed = json.loads(done.stdout)[:4]
    assert (down["links"], down["addresses"]) == ([{"name": "lo", "up": False}], [])
    assert up[0]["links"] == [{"name": "lo", "up": True}]
    assert "127.0.0.1/8" in up[0]["addresses"]
    assert down["routes"] < up[0]["routes"]
    assert up[0] == up[1]
    assert up[0]["any_address_routes"] == []
    assert (up[0]["routes"] + 3, ["0.0.0.0/0", "::/0"]) == (routed["routes"], routed["any_address_routes"])
    assert set(routed["addresses"]) == {*up[0]["addresses"], "127.0.0.53/32"}
    assert json.loads(done.stdout) == [down, *up, routed] * 3
