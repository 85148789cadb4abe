"""Bounds the cost of reading a JSON body. It depends on the values and not on the bytes: 4 MiB of `[],` take half a
second.

The parser runs in one piece and serves nobody else meanwhile. A thread would not help, as the parser holds the
interpreter's lock. So the values are counted before, in small pieces, and a body with too many of them is refused. The
cost of a number grows with the square of its digits: 1,900 integers of 4,300 digits, in 8 MiB, take 54 ms. So the
digits of numbers are bounded too, in every body.
"""

from __future__ import annotations

from app.core.errors import InvalidRequest
from app.core.timeslices import TimeSlices

# Measured with pydantic 2.12: a value takes 40 to 60 ns, a list or an object 400, a name 500. This many take 9 ms.
MOST = 160_000
_WEIGHTS = ((b",", 1), (b"[", 8), (b"{", 8), (b":", 10))
DIGITS = 32  # in a row; a float of 64 bits has 17 that count
_TOO_MANY_DIGITS = b"0" * (DIGITS + 1)
_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_PIECE = 64 * 1024


async def check_complexity(body: bytes) -> int | None:
    """The number of names in all objects of a body that is valid JSON; None where the body is small and they were not
    counted. Raises InvalidRequest. Returns at the beginning of a slice, which the parser of a large body needs for
    itself. It does not refuse invalid JSON: the parser does, and stops there."""
    is_small = len(body) * max(weight for _, weight in _WEIGHTS) <= MOST
    if is_small and not _has_long_number(body):
        return None
    slices = TimeSlices.of_loop()
    at = weight = names = inside = 0  # inside: 1 in the middle of a string
    while at < len(body):
        if slices.over:
            await slices.next()
        piece = body[at : at + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and len(piece) == _PIECE:  # what it escapes is in the next one
            piece = piece[:-1]
        at += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
        if _has_long_number(outside):
            raise InvalidRequest.at("", f"the body has a number with more than {DIGITS} digits in a row")
        names += outside.count(b":")
        weight += sum(outside.count(sign) * cost for sign, cost in _WEIGHTS)
        if weight > MOST:
            raise InvalidRequest.at(
                "",
                f"the body has too many parts: at most {MOST} are read; a name counts as ten, a list or an object as "
                "eight",
            )
    await slices.next()
    return names


def _has_long_number(text: bytes) -> bool:
    return _TOO_MANY_DIGITS in text.translate(_AS_ZEROS)
