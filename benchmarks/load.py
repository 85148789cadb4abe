"""What many clients at once get: executions, one-shots, and bytes of output through one WebSocket."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from benchmarks.rest import Rest


def executions_per_second(port: int, clients: int, seconds: float) -> float:
    """Each client has a sandbox of its own and runs /bin/true in it, one after the other."""

    def work(rest: Rest, sandbox: str) -> None:
        rest.execute(sandbox, "/bin/true")

    return _rate(port, clients, seconds, work)


def one_shots_per_second(port: int, clients: int, seconds: float) -> float:
    """Create, execute, delete."""

    def work(rest: Rest, _: str) -> None:
        sandbox = rest.create()
        rest.execute(sandbox, "/bin/true")
        rest.delete(sandbox)

    return _rate(port, clients, seconds, work)


def _rate(port: int, clients: int, seconds: float, work: Any) -> float:
    done = [0] * clients
    ready, stop = threading.Barrier(clients + 1), threading.Event()

    def client(index: int) -> None:
        rest = Rest(port)
        sandbox = rest.create()
        work(rest, sandbox)
        ready.wait()
        while not stop.is_set():
            work(rest, sandbox)
            done[index] += 1
        rest.delete(sandbox)
        rest.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    total, took = sum(done), time.perf_counter() - began
    for thread in threads:
        thread.join()
    return total / took


async def stream(port: int, megabytes: int, gateway: int) -> dict[str, float | str]:
    """`megabytes` of output through one client that checks the digest. Memory: the gateway's peak, before and after."""
    rest = Rest(port)
    # A client that is a little slower than the program falls behind: within this distance it misses nothing.
    sandbox = rest.create(limits={"output_bytes": 256 * 1024 * 1024})
    rest.execute(sandbox, "/bin/true")
    before = _peak_kib(gateway)
    script = f"read _; exec head -c {megabytes * 1_000_000} /dev/zero"  # begins when its viewer is there
    body = {"command": ["sh", "-c", script], "stdin": "open"}
    _, execution = rest("POST", f"/sandboxes/{sandbox}/executions", body)
    url = f"ws://localhost:{port}/sandboxes/{sandbox}/executions/{execution['id']}/stream?stdin=true"
    received, lost, digest = 0, 0, hashlib.sha256()
    async with connect(url, compression=None, max_size=None, max_queue=64, ping_interval=None) as socket:
        await socket.send(b"\n")
        began = time.perf_counter()
        async for frame in socket:
            if isinstance(frame, bytes):
                received += len(frame) - 1
                digest.update(memoryview(frame)[1:])
                continue
            said = json.loads(frame)
            if said["type"] == "gap":
                lost += said["to"] - said["from"]
            elif said["type"] == "exit":
                break
    took = time.perf_counter() - began
    complete = lost == 0 and digest.hexdigest() == said["stdout"]["sha256"]
    rest.delete(sandbox)
    rest.close()
    return {
        "MB/s printed": round(megabytes / took),
        "MB/s received": round(received / 1e6 / took),
        "complete": "yes, digest equal" if complete else f"no: {lost / 1e6:.0f} MB in gaps",
        "gateway's peak grew by MiB": round((_peak_kib(gateway) - before) / 1024, 1),
    }


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def idle_memory(port: int, count: int) -> float:
    """MiB per idle sandbox, all kernel memory included, from what the machine has available before and after."""
    rest = Rest(port)
    before = _available_kib()
    sandboxes = [rest.create() for _ in range(count)]
    used = before - _available_kib()
    for sandbox in sandboxes:
        rest.delete(sandbox)
    rest.close()
    return used / 1024 / count


def _available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise RuntimeError("no MemAvailable in /proc/meminfo")
