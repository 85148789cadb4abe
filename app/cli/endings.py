"""How an execution's exit becomes our exit status and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.cli import FAILED

TIMED_OUT = 124  # as timeout(1)
KILLED = 137
NOT_FOUND = 127


def status_of(exit_: Mapping[str, Any], exit_code: int) -> tuple[int, str | None]:
    """`exit_code` is the stream's integer. The sentence is None where a shell would say nothing either."""
    reason, detail = str(exit_.get("reason")), exit_.get("detail")
    sentence = f"{reason}: {detail}" if detail else reason
    match reason:
        case "exited":
            return exit_code & 255, None
        case "signaled":
            return 128 - exit_code, None
        case "timeout":
            return TIMED_OUT, sentence
        case "oom" | "resource_limit" | "killed" | "output_limit":
            return KILLED, sentence
        case "start_failed":
            return exit_code & 255, sentence
        case _:
            return FAILED, sentence


def hint_for(exit_: Mapping[str, Any], status: int, command: Sequence[str]) -> str | None:
    """For a whole shell line that was given as the name of a program."""
    if exit_.get("reason") != "start_failed" or status != NOT_FOUND or " " not in command[0]:
        return None
    return "a command is an argv, no shell line; use: sh -c '…'"
