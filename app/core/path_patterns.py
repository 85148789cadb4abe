"""Patterns of paths in network rules: `*` stands for any characters of one segment, `**` for whole segments.

`/v1/**` is everything below `/v1`, and not `/v1` itself. Between other segments `**` also stands for none:
`/a/**/b` matches `/a/b`. A pattern is compared with a path that is percent-decoded once. No pattern takes more time
than its segments times those of the path, because no step is ever taken back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

PATTERN_BYTES = 256
SEGMENTS = 32  # of a pattern
ANY_SEGMENTS = "**"
# In `covers` it stands for the `**` of the narrower pattern. Only a `**` matches it, as no pattern contains it.
_SOME_SEGMENTS = "\0"


def check_pattern(text: str) -> str:
    """Returns the pattern. Raises ValueError with a sentence."""
    shown = text[:80]
    if not text.startswith("/"):
        raise ValueError(f"the path {shown} does not begin with /")
    if len(text.encode(errors="replace")) > PATTERN_BYTES:
        raise ValueError(f"the path {shown}… has more than {PATTERN_BYTES} bytes")
    if "%" in text:
        raise ValueError(f"the path {shown} contains %; paths are compared decoded, so write the character itself")
    if wrong := next((char for char in text if char in '?#\\"' or not char.isprintable()), None):
        raise ValueError(f"the path {shown!r} contains {wrong!r}, which no path of a rule may")
    segments = text.split("/")[1:]
    if len(segments) > SEGMENTS:
        raise ValueError(f"the path {shown} has more than {SEGMENTS} segments")
    if not all(segments[:-1]) or "." in segments or ".." in segments:
        raise ValueError(f"the path {shown} has an empty segment, . or .., which no request may have")
    if any(ANY_SEGMENTS in segment and segment != ANY_SEGMENTS for segment in segments):
        raise ValueError(f"the path {shown} has a ** that is not a segment of its own")
    if any(pair == (ANY_SEGMENTS, ANY_SEGMENTS) for pair in itertools.pairwise(segments)):
        raise ValueError(f"the path {shown} has two ** that follow each other")
    return text


def matches(pattern: str, path: str) -> bool:
    """`path` is decoded and begins with `/`."""
    first, *others = _between(pattern.split("/")[1:])
    segments = path.split("/")[1:]
    if not _match_at(first, segments, 0):
        return False
    at = len(first)
    if not others:
        return at == len(segments)
    *middle, last = others
    for part in middle:  # the earliest place leaves the most room for what follows
        found = next((place for place in range(at, len(segments)) if _match_at(part, segments, place)), None)
        if found is None:
            return False
        at = found + len(part)
    if not last:  # `**` at the end is at least one segment, which may be empty: `/v1/`
        return at < len(segments)
    return len(segments) - len(last) >= at and _match_at(last, segments, len(segments) - len(last))


def covers(wide: str, narrow: str) -> bool:
    """Whether one pattern matches every path that another one matches. Says no for some that do, never yes for one that
    does not."""
    return matches(wide, "/".join(_SOME_SEGMENTS if part == ANY_SEGMENTS else part for part in narrow.split("/")))


def _between(segments: Sequence[str]) -> list[list[str]]:
    """The segments before, between and after each `**`."""
    parts: list[list[str]] = [[]]
    for segment in segments:
        if segment == ANY_SEGMENTS:
            parts.append([])
        else:
            parts[-1].append(segment)
    return parts


def _match_at(patterns: Sequence[str], segments: Sequence[str], at: int) -> bool:
    return at + len(patterns) <= len(segments) and all(
        _match_segment(pattern, segments[place]) for place, pattern in enumerate(patterns, at)
    )


def _match_segment(pattern: str, segment: str) -> bool:
    first, *others = pattern.split("*")
    if not others:
        return pattern == segment
    *middle, last = others
    if _SOME_SEGMENTS in segment or not segment.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = segment.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(segment) - len(last) >= at and segment.endswith(last)
