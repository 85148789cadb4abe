"""What one client does to the service: each attack ends after a time, and opens a bounded number of connections."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

CONNECTIONS = 300
HELD = 1200
KEY = "key-of-the-attacker"  # each key is a client, and has a share of what is bounded
PING, BINARY, CONTINUATION = 9, 2, 0


@dataclass(frozen=True, slots=True)
class Target:
    port: int
    sandbox: str
    execution: str
    seconds: float

    @property
    def execution_path(self) -> str:
        return f"/sandboxes/{self.sandbox}/executions/{self.execution}"


@dataclass(frozen=True, slots=True)
class Outside:
    """`prepare`: Python that runs in the target's sandbox before."""

    run: Callable[[Target], None]
    prepare: str = ""


def _connect(target: Target, *, small: bool = False) -> socket.socket:
    made = socket.socket()
    if small:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(5)
    made.connect(("127.0.0.1", target.port))
    return made


def _head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def _own_head(method: str, path: str, *lines: str) -> bytes:
    return _head(method, path, f"Authorization: Bearer {KEY}", *lines)


def _send_all_the_time(target: Target, begin: bytes, data: bytes) -> None:
    """On one connection after the other, as each is ended by the service."""
    until = time.monotonic() + target.seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), _connect(target) as connection:
            connection.sendall(begin)
            while time.monotonic() < until:
                connection.sendall(data)
        time.sleep(0.01)


def _frame(opcode: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """With a mask of zeros: at most 125 bytes."""
    return struct.pack("BB4x", (0x80 if last else 0) | opcode, 0x80 | len(data)) + data


def _upgrade(target: Target, query: str = "") -> bytes:
    key = b64encode(os.urandom(16)).decode()
    return _own_head(
        "GET",
        f"{target.execution_path}/stream{query}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    )


def send_pings(target: Target) -> None:
    _send_all_the_time(target, _upgrade(target), _frame(PING, b"x" * 125) * 500)


def send_empty_continuations(target: Target) -> None:
    begin = _upgrade(target, "?stdin=take") + _frame(BINARY, last=False)
    _send_all_the_time(target, begin, _frame(CONTINUATION, last=False) * 10_000)


def send_refused_bodies(target: Target) -> None:
    """One byte in each chunk, without a key."""
    _send_all_the_time(target, _head("POST", "/nothing", "Transfer-Encoding: chunked"), b"1\r\nx\r\n" * 20_000)


def send_complex_bodies(target: Target) -> None:
    body = b'{"labels":[' + b"[]," * 1_300_000 + b"0]}"
    head = _own_head("POST", "/sandboxes", "Content-Type: application/json", f"Content-Length: {len(body)}")
    until = time.monotonic() + target.seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), _connect(target) as connection:
            connection.sendall(head + body)
            connection.recv(65536)


def take_no_answers(target: Target) -> None:
    _hold(target, CONNECTIONS, _head("GET", "/docs/swagger-ui-bundle.js"))


def hold_requests(target: Target) -> None:
    _hold(target, HELD, _own_head("GET", f"{target.execution_path}?wait_seconds=60"))


def send_half_heads(target: Target) -> None:
    _hold(target, HELD, b"GET /healthz HT")


def _hold(target: Target, count: int, data: bytes) -> None:
    until = time.monotonic() + target.seconds
    with contextlib.ExitStack() as held:
        for _ in range(count):
            if time.monotonic() >= until:
                return
            with contextlib.suppress(OSError):
                connection = held.enter_context(_connect(target, small=True))
                connection.sendall(data)
        time.sleep(max(0.0, until - time.monotonic()))


def _take(target: Target, path: str) -> None:
    until = time.monotonic() + target.seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), _connect(target) as connection:
            connection.settimeout(target.seconds)
            connection.sendall(_own_head("GET", path, "Connection: close"))
            while time.monotonic() < until and connection.recv(1 << 20):
                pass


def take_archives(target: Target) -> None:
    _take(target, f"/sandboxes/{target.sandbox}/archive?path=many")


def list_directories(target: Target) -> None:
    _take(target, f"/sandboxes/{target.sandbox}/directory?path=links&limit=1000")


def take_sparse_file(target: Target) -> None:
    _take(target, f"/sandboxes/{target.sandbox}/files?path=sparse")


_MANY = "import os; os.mkdir('many'); [os.close(os.open(f'many/{n:06}', os.O_CREAT)) for n in range(250_000)]"
_LINKS = "import os; os.mkdir('links'); [os.symlink('/' + 'y/' * 2000, f'links/{n:05}') for n in range(20_000)]"

ATTACKS = {
    "pings on a WebSocket": Outside(send_pings),
    "empty continuations on a WebSocket": Outside(send_empty_continuations),
    "bodies of one-byte chunks that are refused": Outside(send_refused_bodies),
    "JSON bodies of 1,300,000 lists": Outside(send_complex_bodies),
    f"{CONNECTIONS} answers that nobody takes": Outside(take_no_answers),
    f"{HELD:,} held requests": Outside(hold_requests),
    f"{HELD:,} half heads": Outside(send_half_heads),
    "an archive of 250,000 empty files": Outside(take_archives, _MANY),
    "pages of 1,000 long links of 20,000": Outside(list_directories, _LINKS),
    "a sparse file of 1 TiB": Outside(take_sparse_file, "open('sparse', 'w').truncate(1 << 40)"),
}
