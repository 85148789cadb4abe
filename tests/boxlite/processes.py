"""Processes of the host, found by what stands in their command line."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from tests.boxlite.client import until
from tests.boxlite.double import Double

_numbers = itertools.count(100_000)


def some_seconds() -> str:
    """About a minute for `sleep`, and a mark by which this very process is found."""
    return f"60.{os.getpid()}{next(_numbers)}"


def alive(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in arguments:
            found.append(int(folder.name))
    return found


def environments(double: Double) -> dict[int, bytes]:
    """The processes of this double's boxes, whoever else tests on this machine, with their environments."""
    marks = [f"BOXLITE_EXECUTOR=container={container}".encode() for container in double.containers]
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if any(mark in environment for mark in marks):
            found[int(folder.name)] = environment
    return found


async def gone(mark: str) -> None:
    await until(lambda: not alive(mark))
