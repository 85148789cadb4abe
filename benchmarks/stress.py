"""`python -m benchmarks.stress`, as root: what a sandbox at all its limits at once costs its neighbours.

One sandbox runs, all at the same time, what fills each of its limits; meanwhile a client creates sandboxes and runs
commands in them. Quiet and stressed turns alternate, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.rest import Rest
from tests.service import Service

# Each for ever; what its limit refuses is tried again.
STRESSES = {
    "cpu": "while True: pass",
    "processes": "import os, time\nwhile True:\n  try:\n    if os.fork() == 0: time.sleep(0.2); os._exit(0)\n"
    "  except OSError: os.wait()",
    "memory": "import time\nx = []\nwhile len(x) < 60: x.append(bytearray(1 << 20))\nwhile True: bytearray(4 << 20)",
    "disk": "import os\nwhile True:\n  f = os.open('large', os.O_CREAT | os.O_TRUNC | os.O_WRONLY)\n  try:\n"
    "    while True: os.write(f, bytes(1 << 20))\n  except OSError: os.close(f)",
    "descriptors": "import os\nx = []\nwhile True:\n  try: x.append(os.open('/', os.O_RDONLY))\n"
    "  except OSError: [os.close(f) for f in x]; x = []",
    "output": "import os\nwhile True: os.write(1, bytes(65536))",
    "signals": "import os\nwhile True: os.kill(1, 17)",
    "exec": "import os\nwhile True:\n  try: os.waitpid(os.posix_spawn('/usr/bin/true', ['true'], {}), 0)\n"
    "  except OSError: pass",
}
_LIMITS = {"cpus": 1, "memory_mib": 128, "disk_mib": 32, "processes": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=60, help="creates in a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, Service(Path(data)) as service:
        samples = measure(service.port, options.turns, options.rounds)
    print(f"{'milliseconds':12} {'quiet p50':>10} {'p99':>8} {'stressed p50':>13} {'p99':>8} {'ratio of p99':>13}")
    for name in ("create", "execute"):
        quiet, stressed = (statistics.quantiles(samples[name, state], n=100) for state in ("quiet", "stressed"))
        numbers = (quiet[49] * 1e3, quiet[98] * 1e3, stressed[49] * 1e3, stressed[98] * 1e3)
        print("{:12} {:10.2f} {:8.2f} {:13.2f} {:8.2f} {:13.2f}".format(name, *numbers, stressed[98] / quiet[98]))


def measure(port: int, turns: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds, by operation and state."""
    rest, samples = Rest(port), {}  # type: tuple[Rest, dict[tuple[str, str], list[float]]]
    for _ in range(turns):
        neighbour(rest, "quiet", rounds, samples)
        sandbox = stress(rest)
        neighbour(rest, "stressed", rounds, samples)
        rest.delete(sandbox)
    rest.close()
    return samples


def stress(rest: Rest) -> str:
    """The sandbox that takes all that it can, until it is deleted."""
    sandbox = rest.create(limits=_LIMITS)
    for program in STRESSES.values():
        status, answer = rest("POST", f"/sandboxes/{sandbox}/executions", {"command": ["python3", "-c", program]})
        if status != 201:
            raise RuntimeError(answer)
    return sandbox


def neighbour(rest: Rest, state: str, rounds: int, samples: dict[tuple[str, str], list[float]]) -> None:
    for _ in range(rounds):
        began = time.perf_counter()
        sandbox = rest.create()
        created = time.perf_counter()
        rest.execute(sandbox, "/bin/true")
        executed = time.perf_counter()
        rest.delete(sandbox)
        samples.setdefault(("create", state), []).append(created - began)
        samples.setdefault(("execute", state), []).append(executed - created)


if __name__ == "__main__":
    main()
