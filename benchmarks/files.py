"""`python -m benchmarks.files`, as root: files into a process sandbox and out of it, beside bytes over bare loopback.

The floor is a socket of the same two processes with nothing behind it: what is below that is what the service costs.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rest import Rest
from tests.service import Service

MB = 1_000_000
PIECE = 256 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    data = os.urandom(MB) * options.megabytes
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service:
        rest = Rest(service.port)
        sandbox = rest.create(limits={"disk_mib": 1024, "memory_mib": 1024})
        before = resident(service.children()["gateway"])
        for name, rates in rounds(rest, sandbox, data, options.rounds).items():
            low, middle, high = min(rates), statistics.median(rates), max(rates)
            print(f"{name:42} {low:6.0f} {middle:6.0f} {high:6.0f} MB/s, least, median, most")
        grown = resident(service.children()["gateway"]) - before
        print(f"{'the gateway grew meanwhile by':42} {grown / 2**20:6.1f} MiB")
        print(f"{'HEAD of a file':42} {latency(rest, f'/sandboxes/{sandbox}/files?path=f') * 1e3:6.2f} ms, median")
        rest.delete(sandbox)


def rounds(rest: Rest, sandbox: str, data: bytes, count: int) -> dict[str, list[float]]:
    files, archive = f"/sandboxes/{sandbox}/files?path=f", f"/sandboxes/{sandbox}/archive?path=tree"
    packed = tar_of(data)
    steps: dict[str, Callable[[], int]] = {
        "bare loopback (floor)": lambda: loopback(data),
        "PUT of a file": lambda: put(rest, files, data),
        "GET of a file": lambda: get(rest, files),
        "PUT of an archive, 100 files": lambda: put(rest, archive, packed),
        "GET of an archive, 100 files": lambda: get(rest, archive),
    }
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, step in steps.items():
            began = time.perf_counter()
            size = step()
            found[name].append(size / MB / (time.perf_counter() - began))
    return found


def put(rest: Rest, path: str, data: bytes) -> int:
    rest.socket.sendall(f"PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode())
    view = memoryview(data)
    for begin in range(0, len(data), PIECE):
        rest.socket.sendall(view[begin : begin + PIECE])
    status, answer = rest.answer()
    if status not in (201, 204):
        raise RuntimeError(answer)
    return len(data)


def get(rest: Rest, path: str) -> int:
    """Reads to the end of the body, which has a length or comes in chunks, and keeps nothing."""
    rest.socket.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n".encode())
    head, buffer = b"", bytearray(PIECE)
    while b"\r\n\r\n" not in head:
        head += rest.socket.recv(65536)
    head, _, rest_of = head.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head)
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    total, end = len(rest_of), rest_of[-5:]
    while total < lengths[0] if lengths else end != b"0\r\n\r\n":
        count = rest.socket.recv_into(buffer)
        if count == 0:
            raise ConnectionError("the service closed the connection")
        total, end = total + count, (end + buffer[max(0, count - 5) : count])[-5:]
    return total


def loopback(data: bytes) -> int:
    near, far = socket.socketpair()
    with near, far:
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: far.recv_into(bytearray(PIECE)), 0)])
        reader.start()
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        reader.join()
    return len(data)


def tar_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for number in range(100):
            info = tarfile.TarInfo(f"d{number % 10}/{number}")
            info.size = len(data) // 100
            packed.addfile(info, io.BytesIO(data[: info.size]))
    return buffer.getvalue()


def latency(rest: Rest, path: str) -> float:
    times = []
    for _ in range(50):
        began = time.perf_counter()
        rest.socket.sendall(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += rest.socket.recv(65536)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
