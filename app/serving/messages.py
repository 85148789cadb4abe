"""Messages to the operator on stderr, before the log is set up or where there is none."""

from __future__ import annotations

import sys


def say(sentence: str) -> None:
    """Prints one line: `bulkhead: ` and the sentence."""
    sys.stderr.write(f"bulkhead: {sentence}\n")
    sys.stderr.flush()
