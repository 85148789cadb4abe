"""What the gateway adds to a BoxLite server: `python -m benchmarks.boxlite [--rounds N] [--json FILE]`, as root.

The same calls to the same server, through the gateway and straight, in random order in each round. The server is the
double of the tests, which boots nothing: so what takes time is the passthrough. The straight client does what the
gateway has to do as well: create, start, and a first command with its output; it keeps its connection, and waits for
nothing that it need not know.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.backends.boxlite.inside import PROVE, WORKSPACE, shell_command
from benchmarks.rest import Rest
from benchmarks.wire import follow
from tests.service import PROJECT, clean_environment

WANTED_MS = 2.0  # of the gateway over the server
WANTED_EXACT_MS = 10.0  # of exact output over plain output
KEY = secrets.token_urlsafe(24)
IMAGE = {"bench": {"rootfs_path": "/images/busybox"}}
Samples = dict[str, list[float]]


class Straight:
    """The server without the gateway."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._headers = f"authorization: Bearer {KEY}\r\n"
        self._rest = Rest(port, self._headers)
        self._first = shell_command(PROVE, WORKSPACE, seconds=15)
        self._names = itertools.count()

    def create(self) -> str:
        network = {"mode": "disabled"}
        body = {"name": f"bench-{next(self._names)}", "rootfs_path": "/images/busybox", "network": network}
        more = {"cpus": 1, "memory_mib": 512, "disk_size_gb": 1, "detach": True}
        command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]
        box = self._ask("POST", "/v1/boxes", {**body, **more, "cmd": command})["box_id"]
        self._ask("POST", f"/v1/boxes/{box}/start")
        self._follow(box, self._first)
        return str(box)

    def execute(self, box: str) -> tuple[float, float]:
        began = time.perf_counter()
        body = {"command": "echo", "args": ["x"], "env": {"A": "exe"}, "working_dir": WORKSPACE}
        seen = self._follow(box, {**body, "tty": False, "timeout_seconds": 3600})
        return seen.first_byte - began, seen.exit - began

    def delete(self, box: str) -> None:
        self._rest("POST", f"/v1/boxes/{box}/stop")
        self._rest("DELETE", f"/v1/boxes/{box}?force=true")

    def _follow(self, box: str, body: Mapping[str, object]) -> Any:
        execution = self._ask("POST", f"/v1/boxes/{box}/exec", body)["execution_id"]
        path = f"/v1/boxes/{box}/executions/{execution}/attach"
        return follow(self._port, path, self._headers, end_stdin=True)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        status, answer = self._rest(method, path, body)
        if not 200 <= status < 300:
            raise RuntimeError(answer)
        return answer


class Gateway:
    """`output_mode`: plain for what the gateway adds; exact also has the wrapper in it."""

    def __init__(self, port: int, output_mode: str) -> None:
        self._port = port
        self._rest = Rest(port)
        self._output_mode = output_mode

    def create(self) -> str:
        return self._rest.create(runtime="boxlite")

    def execute(self, sandbox: str) -> tuple[float, float]:
        began = time.perf_counter()
        body = {"command": ["echo", "x"], "output_mode": self._output_mode}
        status, answer = self._rest("POST", f"/sandboxes/{sandbox}/executions", body)
        if status != 201:
            raise RuntimeError(answer)
        seen = follow(self._port, f"/sandboxes/{sandbox}/executions/{answer['id']}/stream")
        return seen.first_byte - began, seen.exit - began

    def wait(self, sandbox: str) -> None:
        self._rest.execute(sandbox, "echo", "x", output_mode=self._output_mode)

    def delete(self, sandbox: str) -> None:
        self._rest.delete(sandbox)


def measure(straight: Straight, gateway: Gateway, exact: Gateway, rounds: int) -> Samples:
    """Seconds. The order changes from round to round."""
    samples: Samples = {}
    standing = {"straight": straight.create(), "gateway": gateway.create()}

    def create(name: str, client: Straight | Gateway) -> None:
        began = time.perf_counter()
        room = client.create()
        samples.setdefault(f"{name}: create", []).append(time.perf_counter() - began)
        client.delete(room)

    def execute(name: str, client: Straight | Gateway) -> None:
        first, end = client.execute(standing[name])
        samples.setdefault(f"{name}: first byte", []).append(first)
        samples.setdefault(f"{name}: exec", []).append(end)

    def wait() -> None:
        began = time.perf_counter()
        gateway.wait(standing["gateway"])
        samples.setdefault("gateway: exec, asked by GET", []).append(time.perf_counter() - began)

    operations: list[Callable[[], None]] = [wait]
    clients: dict[str, Straight | Gateway] = {"straight": straight, "gateway": gateway}
    for name, client in clients.items():
        operations += [lambda n=name, c=client: create(n, c), lambda n=name, c=client: execute(n, c)]  # type: ignore[misc]
    standing["exact"] = standing["gateway"]
    operations.append(lambda: execute("exact", exact))
    warm_up = max(5, rounds // 10)
    for number in range(rounds + warm_up):
        for operation in random.sample(operations, len(operations)):
            operation()
        if number == warm_up - 1:
            samples.clear()
    for name, client in clients.items():
        client.delete(standing[name])
    return samples


def show(samples: Samples) -> None:
    def cut(name: str, percent: int) -> float:
        return statistics.quantiles(samples[name], n=100)[percent - 1] * 1e3

    def row(floor: str, name: str, wanted: float) -> None:
        added = cut(name, 50) - cut(floor, 50)
        numbers = (cut(floor, 50), cut(floor, 95), cut(name, 50), cut(name, 95), added, cut(name, 50) / cut(floor, 50))
        verdict = "reached" if added <= wanted else "missed"
        print(f"{name:28}", *(f"{number:12.2f}" for number in numbers), f"<= {wanted:.2f}, {verdict}")

    titles = ("floor p50", "p95", "p50", "p95", "added p50", "ratio", "wanted")
    print(f"{'milliseconds':28}", *(f"{title:>12}" for title in titles))
    row("straight: create", "gateway: create", WANTED_MS)
    row("straight: exec", "gateway: exec", WANTED_MS)
    row("straight: exec", "gateway: exec, asked by GET", WANTED_MS)
    row("straight: first byte", "gateway: first byte", WANTED_MS)
    row("gateway: exec", "exact: exec", WANTED_EXACT_MS)
    row("gateway: first byte", "exact: first byte", WANTED_EXACT_MS)


@contextmanager
def double() -> Iterator[str]:
    """The URL of a server that this process has started, and ends."""
    command = [sys.executable, "-m", "tests.boxlite.double", "--port", "0", f"--key={KEY}"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


@contextmanager
def service(data: Path, settings: Mapping[str, str]) -> Iterator[int]:
    """Its port. The log goes to a file: a thread that read it here would take turns with what is measured."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data", str(data)]
    log = data / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, cwd=PROJECT, env=clean_environment() | dict(settings), stderr=written)
    try:
        while not (found := re.search(r"listening on \S+:(\d+)", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="keep the raw samples here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, double() as url:
        settings = {
            "BULKHEAD_BOXLITE__URL": url,
            "BULKHEAD_BOXLITE__API_KEY": KEY,
            "BULKHEAD_BOXLITE__IMAGES": json.dumps(IMAGE),
            "BULKHEAD_BOXLITE__DEFAULT_IMAGE": "bench",
            "BULKHEAD_CAPACITY__EXECUTIONS_KEPT": str(10 * options.rounds + 100),
            "BULKHEAD_CAPACITY__RECORDS": str(10 * options.rounds + 100),
        }
        with service(Path(data), settings) as port:
            straight = Straight(int(url.rsplit(":", 1)[1]))
            plain, exact = Gateway(port, "plain"), Gateway(port, "exact")
            samples = measure(straight, plain, exact, options.rounds)
    show(samples)
    if options.json:
        options.json.write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
