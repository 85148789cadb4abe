"""The command as people type it: a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: bytes
    stderr: str


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("BULKHEAD_", "OPENSHELL_")) and "proxy" not in k.lower()
    }
    return {**kept, "BULKHEAD_CLIENT_URL": url, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **more}


async def begin(url: str, *arguments: str, env: dict[str, str] | None = None, **more: Any) -> Process:
    more = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **more}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", *arguments, env=environment(url, **(env or {})), **more
    )


async def bulkhead(
    url: str, *arguments: str, stdin: bytes | None = None, env: dict[str, str] | None = None, **more: Any
) -> Ended:
    if stdin is not None:
        more["stdin"] = PIPE
    process = await begin(url, *arguments, env=env, **more)
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out or b"", (err or b"").decode())
