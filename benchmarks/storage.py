"""`python -m benchmarks.storage`, as root: what `storage: disk` costs a create, and how fast its files are.

Creates of both kinds take turns. The same program writes 200 MB and reads them on the host's own disk and in a sandbox
of 64 MiB of memory, in turn. On the host it flushes what it wrote, and drops it from the page cache before it reads.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rest import Rest
from tests.service import Service

LIMITS = {"memory_mib": 64, "disk_mib": 512}
PROGRAM = """
import os, sys, time
piece = os.urandom(1 << 20)
def timed(flags, move):
    began = time.perf_counter()
    for name in range(4):
        file = os.open(f"{sys.argv[1]}/{name}", flags)
        for _ in range(50):
            move(file)
        os.fsync(file)
        os.close(file)
    return 200 * 2**20 / 1e6 / (time.perf_counter() - began)
written = timed(os.O_WRONLY | os.O_CREAT, lambda file: os.write(file, piece))
for name in range(4):
    with open(f"{sys.argv[1]}/{name}") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
print(written, timed(os.O_RDONLY, lambda file: os.read(file, 1 << 20)))
for name in range(4):
    os.unlink(f"{sys.argv[1]}/{name}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--transfers", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service:
        rest = Rest(service.port)
        for kind, times in creates(rest, options.rounds).items():
            least, low, middle, high = min(times), *statistics.quantiles(times, n=4)
            print(f"create, {kind:7} {least:6.2f} {low:6.2f} {middle:6.2f} {high:6.2f} ms, least and quartiles")
        for place, rates in transfers(service, Path(folder), options.transfers).items():
            written, read = (statistics.median(column) for column in zip(*rates, strict=True))
            print(f"{place:15} {written:6.0f} MB/s written, {read:6.0f} MB/s read, medians")


def creates(rest: Rest, rounds: int) -> dict[str, list[float]]:
    """Milliseconds."""
    found: dict[str, list[float]] = {"memory": [], "disk": []}
    for turn in range(rounds + 1):
        for kind, times in found.items():
            time.sleep(0.02)  # what is made ahead is ready
            began = time.perf_counter()
            sandbox = rest.create(storage=kind, limits=LIMITS if kind == "disk" else {"memory_mib": 64})
            if turn:  # the first makes the template of this size
                times.append((time.perf_counter() - began) * 1e3)
            rest.delete(sandbox)
    return found


def transfers(service: Service, folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """MB/s written and read."""
    found: dict[str, list[tuple[float, float]]] = {"host's own disk": [], "in a sandbox": []}
    sandbox = service.create(storage="disk", limits=LIMITS)
    for _ in range(rounds):
        own = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True)
        inside = service.run(sandbox, "python3", "-c", PROGRAM, "/workspace")
        for rates, said in zip(found.values(), (own.stdout, inside["stdout"]), strict=True):
            written, read = map(float, said.split())
            rates.append((written, read))
    return found


if __name__ == "__main__":
    main()
