"""Text as the kernel takes it: bytes."""

from __future__ import annotations


def byte_length(text: str) -> int | None:
    """The length in UTF-8. None for half of a surrogate pair, which JSON can have but which has no bytes."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
