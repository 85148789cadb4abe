"""Follows an execution with the client that is part of Bulkhead. docs/clients.md quotes it."""

from __future__ import annotations

import asyncio
import os

from app.client import Client
from app.client.stream import Exited, Gap, Output

URL, KEY = os.environ["BULKHEAD_CLIENT_URL"], os.environ["BULKHEAD_CLIENT_KEY"]


# [follow]
async def follow(command: list[str], stdin: bytes) -> tuple[bytes, int]:
    """The program's stdout, every byte once whatever happens to the connection, and its exit code."""
    stdout = b""
    async with Client(URL, KEY) as client:
        sandbox = await client.create_sandbox({})
        execution = await client.start(sandbox["id"], {"command": command, "stdin": "open"})
        async with client.stream(sandbox["id"], execution["id"], stdin=True) as stream:
            await stream.write(stdin)
            stream.end_input()
            async for event in stream:  # raises OutputDamaged, StreamCut, Problem, ServiceUnreachable
                match event:
                    case Output(channel="stdout", data=data):
                        stdout += data
                    case Gap(channel=channel, begin=begin, end=end):
                        raise RuntimeError(f"{channel} from {begin} to {end} is no longer stored")
                    case Exited(exit_code=code):
                        await client.destroy_sandbox(sandbox["id"])
                        return stdout, code
    raise RuntimeError("unreachable: the last event is Exited, or an error")


# [end]
if __name__ == "__main__":
    print(asyncio.run(follow(["cat"], b"followed\n")))
