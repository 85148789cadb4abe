"""Turns an execution's exit into an exit status and a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from app.cli import FAILED

TIMED_OUT = 124  # as timeout(1)
KILLED = 137
NOT_FOUND = 127
LINE_SHOWN = 60  # characters


def status_of(exit_: Mapping[str, Any], exit_code: int) -> tuple[int, str | None]:
    """`exit_code` is the stream's integer. The sentence is None where a shell would print nothing either."""
    reason, detail = str(exit_.get("reason")), exit_.get("detail")
    sentence = f"{reason}: {detail}" if detail else reason
    match reason:
        case "exited":
            return exit_code & 255, None
        case "signaled":
            return 128 - exit_code, None
        case "timeout":
            return TIMED_OUT, sentence
        case "oom" | "resource_limit" | "killed" | "output_limit" | "cpu_limit":
            return KILLED, sentence
        case "start_failed":
            return exit_code & 255, sentence
        case _:
            return FAILED, sentence


def shell_line(exit_: Mapping[str, Any], status: int, command: Sequence[str]) -> str | None:
    """Another sentence, for a whole shell line that was given as the name of a program."""
    line = command[0]
    if exit_.get("reason") != "start_failed" or status != NOT_FOUND or " " not in line:
        return None
    shown = shlex.quote(line) if len(command) == 1 and len(line) <= LINE_SHOWN else "'…'"
    return (
        f"start_failed: a command is a program and its arguments, not a shell line. To run a shell line: sh -c {shown}"
    )
