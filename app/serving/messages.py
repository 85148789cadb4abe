"""What the service tells the operator on stderr before its log is set up, or where it has none."""

from __future__ import annotations

import sys


def say(sentence: str) -> None:
    """One line: `bulkhead: ` and the sentence."""
    sys.stderr.write(f"bulkhead: {sentence}\n")
    sys.stderr.flush()
