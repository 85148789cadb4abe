"""`python -m benchmarks.attacks [--seconds N] [--only WORD]`, as root, alone on the machine: what others notice.

Starts a service, and for some seconds each lets one client or one sandbox do its worst, bounded in number and time,
over loopback only. Meanwhile one client asks /healthz all the time and another creates sandboxes. Printed is what they
waited: /healthz (wanted: p99 below 50 ms) and creates (wanted: p95 below five times that of the quiet service).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import attacks_inside, attacks_outside
from benchmarks.attacks_outside import Outside, Target
from benchmarks.rest import Rest
from tests.service import Service

HEALTH_PAUSE, CREATE_PAUSE = 0.01, 0.05  # seconds between two requests
SETTLE = 0.5
KEY = "key-of-the-honest-client"
HONEST = f"authorization: Bearer {KEY}\r\n"
KEYS = {"BULKHEAD_API_KEYS": json.dumps([KEY, attacks_outside.KEY])}


@dataclass
class Waited:
    """Seconds of each request of the two honest clients, and how many creates were refused."""

    health: list[float] = field(default_factory=list)
    creates: list[float] = field(default_factory=list)
    refused: int = 0


def observe(port: int, seconds: float) -> Waited:
    waited = Waited()
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(port, until, waited)) for work in (_ask_health, _create)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waited


def _ask_health(port: int, until: float, waited: Waited) -> None:
    rest = Rest(port, HONEST)
    while time.monotonic() < until:
        began = time.perf_counter()
        rest("GET", "/healthz")
        waited.health.append(time.perf_counter() - began)
        time.sleep(HEALTH_PAUSE)
    rest.close()


def _create(port: int, until: float, waited: Waited) -> None:
    rest = Rest(port, HONEST)
    while time.monotonic() < until:
        began = time.perf_counter()
        status, answer = rest("POST", "/sandboxes", {"runtime": "process"})
        if status == 201:
            waited.creates.append(time.perf_counter() - began)
            rest.delete(answer["id"])
        else:
            waited.refused += 1
        time.sleep(CREATE_PAUSE)
    rest.close()


@contextlib.contextmanager
def attack_from_outside(port: int, attack: Outside, seconds: float) -> Iterator[None]:
    """In a process of its own, so that it takes no time from the clients that are measured."""
    rest = Rest(port, f"authorization: Bearer {attacks_outside.KEY}\r\n")
    sandbox = rest.create(limits={"memory_mib": 1024, "disk_mib": 1024}, ttl_seconds=300)
    if attack.prepare:
        rest.execute(sandbox, "python3", "-c", attack.prepare)
    _, execution = rest("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sleep", "300"], "stdin": "open"})
    target = Target(port, sandbox, execution["id"], seconds)
    process = multiprocessing.get_context("spawn").Process(target=attack.run, args=(target,))
    process.start()
    try:
        time.sleep(SETTLE)
        yield
    finally:
        process.join(seconds + 10)
        process.kill()
        process.join()
        rest.delete(sandbox)
        rest.close()


@contextlib.contextmanager
def attack_from_inside(port: int, script: str, executions: int) -> Iterator[None]:
    rest = Rest(port, f"authorization: Bearer {attacks_outside.KEY}\r\n")
    sandbox = rest.create(ttl_seconds=300)
    for _ in range(executions):
        body = {"command": ["python3", "-c", script], "timeout_seconds": 60}
        status, answer = rest("POST", f"/sandboxes/{sandbox}/executions", body)
        if status == 429:
            break  # the sandbox is at its share, which is what some attacks are after
        if status != 201:
            raise RuntimeError(answer)
    try:
        time.sleep(SETTLE)
        yield
    finally:
        rest.delete(sandbox)
        rest.close()


def row(name: str, waited: Waited, quiet: Waited) -> str:
    health = statistics.quantiles(waited.health, n=100)
    if len(waited.creates) < 2:
        return f"| {name} | {health[49] * 1e3:.1f} | {health[98] * 1e3:.1f} | none was made | {waited.refused} |"
    creates = statistics.quantiles(waited.creates, n=20)[18]
    ratio = creates / statistics.quantiles(quiet.creates, n=20)[18]
    return (
        f"| {name} | {health[49] * 1e3:.1f} | {health[98] * 1e3:.1f} | {creates * 1e3:.1f} | {ratio:.1f} "
        f"| {waited.refused} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, Service(Path(data), KEYS) as service:
        quiet = observe(service.port, 2 * options.seconds)
        print("| attack | /healthz p50, ms | p99 | creates p95, ms | by quiet p95 | creates refused |")
        print("|---|---|---|---|---|---|")
        print(row("none", quiet, quiet), flush=True)
        for name, outside in attacks_outside.ATTACKS.items():
            if options.only in name:
                with attack_from_outside(service.port, outside, options.seconds + 2 * SETTLE):
                    waited = observe(service.port, options.seconds)
                print(row(name, waited, quiet), flush=True)
        for name, (script, executions) in attacks_inside.ATTACKS.items():
            if options.only in name:
                with attack_from_inside(service.port, script, executions):
                    waited = observe(service.port, options.seconds)
                print(row(name, waited, quiet), flush=True)


if __name__ == "__main__":
    main()
