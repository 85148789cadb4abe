"""`python -m benchmarks.oneshot`, as root: what one call for a whole run costs, beside its parts.

One client for the latencies, in one interleaved run; many for the rate, through selectors in one process, so that the
client takes as little as it can of the two cores that it shares with the service.
"""

from __future__ import annotations

import argparse
import json
import random
import selectors
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.latency import spawn
from benchmarks.rest import Rest
from tests.service import Service

BODY = {"runtime": "process", "command": ["/bin/true"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, Service(Path(data)) as service:
        for name, values in latencies(service.port, options.rounds).items():
            cuts = statistics.quantiles(values, n=100)
            print(f"{name:44} p50 {cuts[49] * 1e3:6.2f}  p95 {cuts[94] * 1e3:6.2f}  p99 {cuts[98] * 1e3:6.2f} ms")
        before = cpu_seconds(service)
        began = time.perf_counter()
        count = rate(service.port, options.clients, options.seconds)
        took = time.perf_counter() - began
        print(f"{'runs per second, ' + str(options.clients) + ' clients':44} {count / took:6.0f}")
        for name, used in cpu_seconds(service).items():
            print(f"{'processor time per run, ' + name:44} {(used - before[name]) / count * 1e3:6.2f} ms")


def latencies(port: int, rounds: int) -> dict[str, list[float]]:
    """Seconds. `create + execute + delete` are the same steps in four requests."""
    rest = Rest(port)

    def in_one() -> None:
        status, answer = rest("POST", "/run", BODY)
        if status != 200 or answer["exit"]["code"] != 0:
            raise RuntimeError(answer)

    def in_four() -> None:
        sandbox = rest.create()
        rest.execute(sandbox, "/bin/true")
        rest.delete(sandbox)

    operations: dict[str, Callable[[], None]] = {
        "POST /run": in_one,
        "create + execute + delete, four requests": in_four,
        "posix_spawn /bin/true (floor)": lambda: spawn(["/bin/true"]),
    }
    samples: dict[str, list[float]] = {name: [] for name in operations}
    for number in range(rounds + rounds // 10):
        for name, operation in random.sample(list(operations.items()), len(operations)):
            began = time.perf_counter()
            operation()
            if number >= rounds // 10:
                samples[name].append(time.perf_counter() - began)
    rest.close()
    return samples


def rate(port: int, clients: int, seconds: float) -> int:
    """How many runs ended in that time: each client sends its next one when the answer to the last is there."""
    payload = json.dumps(BODY).encode()
    head = f"POST /run HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}"
    request = head.encode() + b"\r\n\r\n" + payload
    rests = [Rest(port) for _ in range(clients)]
    done = 0
    with selectors.DefaultSelector() as selector:
        for rest in rests:
            selector.register(rest.socket, selectors.EVENT_READ, rest)
            rest.socket.sendall(request)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for key, _ in selector.select(1):
                status, answer = key.data.answer()
                if status != 200 or answer["exit"]["code"] != 0:
                    raise RuntimeError(answer)
                done += 1
                key.data.socket.sendall(request)
    for rest in rests:
        rest.close()
    return done


def cpu_seconds(service: Service) -> dict[str, float]:
    """Of gateway, launcher and what ended in it: its own code, and the kernel's on its behalf."""
    found: dict[str, float] = {}
    for name, pid in service.children().items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own, of_children = fields[11:13], fields[13:15]
        for who, times in ((name, own), ("sandboxes", of_children)):
            if who == name or name == "launcher":
                found[f"{who}, user"], found[f"{who}, kernel"] = (int(ticks) / 100 for ticks in times)
    return found


if __name__ == "__main__":
    main()
