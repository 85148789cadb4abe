"""A reader who types a document into a terminal: one shell and one folder from the first block to the last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import Block, matches

SECONDS = 250
HOW = {
    "bash": "source {}",
    "console": "{{ source {} || :; }}",  # what it printed says whether it was to fail
    "python": "python3 {}",
}
SHOWN = 5  # after a block that failed all others do


def read(document: Path, blocks: list[Block], folder: Path, url: str, seconds: float = SECONDS) -> None:
    """Does what the document says, exactly as printed. AssertionError where a block fails or prints something else."""
    desk, home = folder / "desk", folder / "home"
    desk.mkdir()
    home.mkdir()
    script = ["set -euo pipefail"]
    for number, block in enumerate(blocks):
        if block.file is not None:
            (home / block.file).parent.mkdir(parents=True, exist_ok=True)
            (home / block.file).write_text(block.text)
            continue
        saved = desk / str(number)
        saved.write_text(block.text)
        script.append(HOW[block.language].format(saved) + f" >{saved}.out 2>&1; touch {saved}.done")
    _type("\n".join(script), home, url, seconds)
    wrong = [said for number, block in enumerate(blocks) if (said := _judged(block, desk / str(number)))]
    assert not wrong, "\n\n".join(f"{document.name}:{said}" for said in wrong[:SHOWN])


def _type(script: str, home: Path, url: str, seconds: float) -> None:
    """Until its end, or until the time is over: then the blocks without an end tell what hung."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BULKHEAD_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = {"BULKHEAD_CLIENT_URL": url, "HOME": str(home), "PATH": path}
    with subprocess.Popen(
        ["bash", "-c", script], cwd=home, env=clean | place, stdin=subprocess.DEVNULL, start_new_session=True
    ) as shell:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                shell.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def _judged(block: Block, saved: Path) -> str | None:
    """What is wrong with what a block did; None when nothing is."""
    if not block.runs:
        return None
    told = saved.with_suffix(".out")
    printed = told.read_text(errors="replace") if told.exists() else ""
    where = f"{block.line} ({block.heading})"
    if not saved.with_suffix(".done").exists():
        return f"{where} failed, or was not over in time. It printed:\n{printed}"
    if block.output is not None and not matches(block.output, printed):
        return f"{where} printed\n{printed}\nand not\n{block.output}"
    return None
