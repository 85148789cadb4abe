"""Conditional and partial requests of RFC 9110, sections 13 and 14: pure functions over a file's stat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime

from starlette.datastructures import Headers

from app.core.errors import InvalidRequest, PreconditionFailed, RangeNotSatisfiable
from app.core.files import Check, FileKind, FileStat

_TAG = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})-(\d{0,19})", re.IGNORECASE)
_SECOND = 1_000_000_000
_LAST_DATE = 253_402_300_799  # the end of the year 9999: HTTP has four digits


def etag_of(stat: FileStat) -> str:
    """A strong entity tag. Every replacement has another inode, and a change in place has another time or size."""
    return f'"{stat.modified_ns:x}-{stat.size:x}-{stat.inode:x}"'


def last_modified_of(stat: FileStat) -> str | None:
    """None for a time that HTTP cannot express."""
    seconds = stat.modified_ns // _SECOND
    return formatdate(seconds, usegmt=True) if 0 <= seconds <= _LAST_DATE else None


def describe(stat: FileStat) -> dict[str, str]:
    """The headers that describe a file. Only a regular file has a length."""
    headers = {"etag": etag_of(stat), "file-mode": f"{stat.mode:04o}", "file-type": str(stat.kind)}
    if (modified := last_modified_of(stat)) is not None:
        headers["last-modified"] = modified
    if stat.kind is FileKind.FILE:
        headers |= {
            "content-type": "application/octet-stream",
            "content-length": str(stat.size),
            "accept-ranges": "bytes",
        }
    return headers


@dataclass(frozen=True, slots=True)
class Tags:
    """The entity tags of a header. `everything` means that the header was `*`."""

    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()
    everything: bool = False

    @classmethod
    def read(cls, headers: Headers, name: str) -> Tags | None:
        """None when the header is absent. Raises InvalidRequest."""
        values = headers.getlist(name)
        if not values:
            return None
        text = ", ".join(values).strip()
        if text == "*":
            return cls(everything=True)
        strong: set[str] = set()
        weak: set[str] = set()
        at = 0
        while at < len(text) or not text:
            tag = _TAG.match(text, at)
            if tag is None:
                raise InvalidRequest.at(f"header/{name}", 'must be * or entity tags in double quotes, such as "1a2b"')
            (weak if tag[1] else strong).add(tag[2])
            at = tag.end()
        return cls(frozenset(strong), frozenset(weak))


def _date(headers: Headers, name: str) -> int | None:
    """Parses a date in seconds. A value that is not a date is ignored."""
    try:
        found = parsedate_to_datetime(headers.get(name, ""))
        return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def refuse_conditions(headers: Headers) -> None:
    """Refuses conditions for changes that cannot check them in one step. Raises InvalidRequest."""
    for name in ("if-match", "if-none-match", "if-unmodified-since"):
        if name in headers:
            raise InvalidRequest.at(f"header/{name}", "is allowed only where one file is read or replaced")


class Conditions:
    """Of one request."""

    def __init__(self, headers: Headers) -> None:
        """Raises InvalidRequest."""
        self._match = Tags.read(headers, "if-match")
        self._none_match = Tags.read(headers, "if-none-match")
        self._modified_since = _date(headers, "if-modified-since")
        self._unmodified_since = _date(headers, "if-unmodified-since")
        self._range = headers.get("range")
        self._if_range = headers.get("if-range")
        self._if_range_date = _date(headers, "if-range")

    @property
    def for_writes(self) -> Check | None:
        """None without conditions: then a runtime need not check whether the file is still the same."""
        any_of_them = any(x is not None for x in (self._match, self._none_match, self._unmodified_since))
        return self._check_write if any_of_them else None

    def _check_write(self, found: FileStat | None) -> None:
        self._check_still(found)
        tags = self._none_match
        if tags is not None and found is not None and (tags.everything or etag_of(found) in tags.strong | tags.weak):
            raise PreconditionFailed("If-None-Match: the file exists")

    def _check_still(self, found: FileStat | None) -> None:
        if self._match is not None:
            if found is None:
                raise PreconditionFailed("If-Match: the file does not exist")
            if not self._match.everything and etag_of(found) not in self._match.strong:
                raise PreconditionFailed("If-Match: the file has changed")
        elif self._unmodified_since is not None and (
            found is None or found.modified_ns // _SECOND > self._unmodified_since
        ):
            raise PreconditionFailed("If-Unmodified-Since: the file has changed")

    def not_modified(self, found: FileStat) -> bool:
        """For a read: whether the client has this state already. Raises PreconditionFailed."""
        self._check_still(found)
        if self._none_match is not None:
            tags = self._none_match
            return tags.everything or etag_of(found) in tags.strong | tags.weak
        return self._modified_since is not None and found.modified_ns // _SECOND <= self._modified_since

    def part(self, found: FileStat) -> tuple[int, int] | None:
        """Returns begin and end of the one range that is asked for. None means the whole file: also for several ranges,
        for a range that is not understood, and when `If-Range` names another state. Raises RangeNotSatisfiable."""
        asked = _RANGE.fullmatch(self._range.strip()) if self._range is not None else None
        if asked is None or not self._is_same(found):
            return None
        first, last = asked[1], asked[2]
        if not first:
            return self._tail(found.size, last)
        begin, end = int(first), min(int(last) + 1, found.size) if last else found.size
        if last and int(last) < begin:
            return None
        if begin >= found.size:
            raise RangeNotSatisfiable(f"the file has {found.size} bytes, the range begins at {begin}", found.size)
        return begin, end

    def _tail(self, size: int, wanted: str) -> tuple[int, int] | None:
        if not wanted or size == 0:
            return None
        if int(wanted) == 0:
            raise RangeNotSatisfiable("the last 0 bytes of a file are not a range", size)
        return max(0, size - int(wanted)), size

    def _is_same(self, found: FileStat) -> bool:
        if self._if_range is None or self._if_range.strip() == etag_of(found):
            return True
        return self._if_range_date is not None and found.modified_ns // _SECOND == self._if_range_date
