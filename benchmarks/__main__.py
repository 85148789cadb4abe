"""`python -m benchmarks [--rounds N] [--json FILE]`, as root: starts a service, measures, prints, ends it."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks import latency, load
from tests.service import Service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="keep the raw samples here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, Service(Path(data)) as service:
        if shutil.which("bwrap") is None:
            print("bubblewrap is not installed: it is left out (apt-get install bubblewrap)")
        samples = latency.measure(service.port, options.rounds)
        print_latencies(samples)
        for name, measure in (
            ("executions per second, 8 clients, 8 sandboxes", load.executions_per_second),
            ("one-shots per second, 8 clients", load.one_shots_per_second),
        ):
            print(f"{name:48} {measure(service.port, 8, options.seconds):8.0f}")
        result = asyncio.run(load.stream(service.port, options.megabytes, service.children()["gateway"]))
        for name, value in result.items():
            print(f"stdout to one WebSocket client: {name:24} {value:>8}")
        print(f"{'MiB per idle sandbox, kernel memory included':48} {load.idle_memory(service.port, 100):8.2f}")
    if options.json:
        options.json.write_text(json.dumps(samples))


def print_latencies(samples: dict[str, list[float]]) -> None:
    floor = statistics.median(samples["posix_spawn /bin/true (floor)"])
    print(f"{'milliseconds':40} {'p50':>7} {'p95':>7} {'p99':>7} {'ratio to the floor':>19}")
    for name, values in sorted(samples.items(), key=lambda item: statistics.median(item[1])):
        cuts = statistics.quantiles(values, n=100)
        print(f"{name:40} {cuts[49] * 1e3:7.2f} {cuts[94] * 1e3:7.2f} {cuts[98] * 1e3:7.2f} {cuts[49] / floor:19.2f}")


if __name__ == "__main__":
    main()
