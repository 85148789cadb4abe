"""The path of a request as rules see it: decoded once, and refused where two servers may read it in two ways."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

SHOWN = 256  # characters of a path in an event
LENGTH, SEGMENTS = 8 * 1024, 128  # bytes of a path, and its segments: what rules have to be compared with
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# What a server may find in a path, or after it decodes a second time: a step up or on the spot, also with blanks
# behind it, which some cut off, or a parameter (`..;x`); an empty segment; a backslash; a control character.
_UNCLEAR = re.compile(r"/\.{1,2}\s*(?:;[^/]*)?(?:/|$)|//|[\\\x00-\x1f\x7f]")


class UnclearPath(Exception):
    """It is not compared with rules."""


def decoded_path(target: bytes) -> str:
    """The path of an origin-form target. Raises UnclearPath for what has dot segments, `//`, a backslash or control
    characters, as it stands or encoded once or twice, and for what is not UTF-8."""
    path = target.partition(b"?")[0]
    if not path.startswith(b"/") or len(path) > LENGTH or b"#" in path or _BAD_ESCAPE.search(path):
        raise UnclearPath
    once = unquote_to_bytes(path)
    try:
        text, twice = once.decode(), unquote_to_bytes(once).decode(errors="replace")
    except UnicodeDecodeError as error:  # also two bytes that stand for an ASCII character
        raise UnclearPath from error
    if text.count("/") > SEGMENTS or _UNCLEAR.search(text) or _UNCLEAR.search(twice):
        raise UnclearPath
    return text


def shown_path(target: bytes) -> str:
    """The path of a target for people: as it was sent, without the query, which may hold keys, and cut to SHOWN."""
    path = re.split(rb"[?#]", target, maxsplit=1)[0]
    if not path.startswith(b"/") and b"://" in path:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path[:SHOWN].decode("latin-1")
