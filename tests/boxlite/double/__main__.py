"""`python -m tests.boxlite.double --port 0 --key K`: prints `ready URL` and serves until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal

from tests.boxlite.double.server import Double
from tests.boxlite.double.settings import Settings


async def serve(port: int, key: str, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Double(key=key, port=port, settings=settings) as double:
        print("ready", double.url, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.boxlite.double", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="test-key")
    parser.add_argument("--shares-network", action="store_true")
    given = parser.parse_args()
    asyncio.run(serve(given.port, given.key, Settings(shares_network=given.shares_network)))


if __name__ == "__main__":
    main()
