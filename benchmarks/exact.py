"""What the wrapper of exact output costs: `python -m benchmarks.exact [--rounds N]`.

A command under the wrapper (`app/backends/boxlite/scripts/exact.sh`) as a local process of each shell, in turns with
the same command without it. The reader is that of the gateway, and takes 1 KiB at a time, as a server passes output on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.boxlite.local import SHELLS, local

MB = 1_000_000
WANTED_MS, WANTED_OUT, WANTED_IN = 10.0, 10.0, 3.0
LINES = 20
# A line with the time at which it was written, each after a moment in which nothing happens.
CLOCK = f"""
import os, time
for _ in range({LINES}):
    time.sleep(0.03)
    os.write(1, b'%d\\n' % time.perf_counter_ns())
"""
SIZE_OUT, SIZE_IN = 20 * MB, 5 * MB
Samples = dict[tuple[str, str], list[float]]
Source = Callable[..., Awaitable["Taken"]]


class Taken:
    """What one run gave, with the times at which it came: seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.came: list[tuple[float, bytes]] = []
        self.size = 0
        self.ended = 0.0

    def take(self, data: bytes) -> None:
        self.size += len(data)
        if len(self.came) < 2 * LINES:
            self.came.append((time.perf_counter(), data))


async def plain(*command: str, stdin: int = 0) -> Taken:
    taken = Taken()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/")
    assert process.stdin is not None and process.stdout is not None
    feeding = asyncio.create_task(_feed(process.stdin, stdin))
    while data := await process.stdout.read(1024):
        taken.take(data)
    await process.wait()
    await feeding
    taken.ended = time.perf_counter()
    return taken


async def _feed(pipe: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size // MB):
        pipe.write(bytes(MB))
        await pipe.drain()
    pipe.close()


def under(shell: str, folder: Path) -> Source:
    async def run(*command: str, stdin: int = 0) -> Taken:
        taken = Taken()
        async with local(shell, folder / shell, *command, stdin=stdin > 0) as run:
            log = run.logs.stdout

            def changed() -> None:
                if log.total > taken.size:
                    taken.take(log.read(taken.size, log.total - taken.size))

            log.watch(changed)
            for _ in range(stdin // MB):
                await run.streams.write(bytes(MB))
            if stdin:
                await run.streams.close_stdin()
            await run.end()
            taken.ended = time.perf_counter()
        return taken

    return run


async def first_byte(run: Source) -> dict[str, float]:
    taken = await run("/bin/echo", "x")
    return {"first byte": (taken.came[0][0] - taken.began) * 1e3, "end": (taken.ended - taken.began) * 1e3}


async def line(run: Source) -> dict[str, float]:
    taken = await run(sys.executable, "-S", "-c", CLOCK)
    late = [when * 1e3 - int(data.split()[0]) / 1e6 for when, data in taken.came]
    return {"a line": statistics.median(late)}


async def output(run: Source, data: Path) -> dict[str, float]:
    taken = await run("cat", str(data))
    if taken.size != SIZE_OUT:
        raise RuntimeError(f"{taken.size} bytes came")
    return {"output": SIZE_OUT / MB / (taken.ended - taken.began)}


async def intake(run: Source) -> dict[str, float]:
    taken = await run("wc", "-c", stdin=SIZE_IN)
    if int(taken.came[0][1]) != SIZE_IN:
        raise RuntimeError(f"{taken.came} bytes went in")
    return {"stdin": SIZE_IN / MB / (taken.ended - taken.began)}


async def measure(sources: dict[str, Source], data: Path, rounds: int) -> Samples:
    samples: Samples = {}
    for number in range(-1, rounds):
        # The short ones more often: one sample each is little.
        steps = [first_byte] * 5 + [line, lambda run: output(run, data), intake]
        turns = [(name, step) for name in sources for step in steps]
        for name, step in random.sample(turns, len(turns)):
            for what, value in (await step(sources[name])).items():
                if number >= 0:  # the first round warms up
                    samples.setdefault((name, what), []).append(value)
    return samples


def show(samples: Samples) -> None:
    names = list(dict.fromkeys(name for name, _ in samples))
    titles = ("first byte", "added", "a line", "added", "end", "output", "stdin")
    units = ("ms p50", "ms", "ms p50", "ms", "ms p50", "MB/s", "MB/s")
    for words in (titles, units):
        print(f"{'':16}", *(f"{word:>12}" for word in words))
    floor = {what: statistics.median(values) for (name, what), values in samples.items() if name == "plain"}
    for name in names:
        of = {what: statistics.median(samples[name, what]) for what in floor}
        first, one = of["first byte"], of["a line"]
        numbers = (first, first - floor["first byte"], one, one - floor["a line"], of["end"], of["output"], of["stdin"])
        print(f"{name:16}", *(f"{number:12.2f}" for number in numbers))
    print(f"wanted: a line and the first byte at most {WANTED_MS} ms later, {WANTED_OUT} and {WANTED_IN} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.write_bytes(os.urandom(SIZE_OUT))
        sources = {"plain": plain, **{shell: under(shell, folder) for shell in SHELLS}}
        show(asyncio.run(measure(sources, data, options.rounds)))


if __name__ == "__main__":
    main()
