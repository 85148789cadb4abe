"""Collects the files of a sandbox that a run brings back: patterns below /workspace, and the bytes of what they match.

Nothing here fails a run. The answer says for each path why it was not brought back: it is no regular file, it may not
be read, or the answer has no room for it. Names come from whoever runs in the sandbox, so their number and the time for
them have bounds.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from app.core.errors import AccessDenied, BulkheadError, FieldError, InvalidRequest, NotFound, WrongType
from app.core.files import DirectoryEntry, FileKind, Files, shown
from app.core.limits import MIB
from app.core.text import byte_length
from app.core.timeslices import TimeSlices
from app.core.transfers import closing

PATTERNS = FILES = 1024  # of one run: patterns, and entries of its answer beside one for each pattern
TOTAL_BYTES = 8 * MIB  # of all files together
NAMES = 100_000  # of directories, that are looked at for all patterns together
OPENS = 4 * FILES  # of what wild patterns match, for all of them together: names that lead nowhere are no entries
SECONDS = 60.0
DEPTH = 64  # directories of one pattern
NAME_BYTES, PATH_BYTES = 255, 4095  # path_resolution(7)
_PAGE = 4096  # names of one listing
_WILD = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """`parts`: names below /workspace, in which *, ? and [...] mean the same as in a shell."""

    text: str
    parts: tuple[str, ...]

    @property
    def is_wild(self) -> bool:
        return any(map(_WILD.search, self.parts))


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """`path`: relative to /workspace. It has either `content`, or `error`, which says why it was not brought back:
    words that follow the path, such as "does not exist"."""

    path: bytes
    content: bytes | None = None
    error: str | None = None


def patterns_of(texts: Sequence[str]) -> tuple[Pattern, ...]:
    """Raises InvalidRequest, which names every wrong one as /collect/N."""
    errors: list[FieldError] = []
    patterns: list[Pattern] = []
    for number, text in enumerate(texts):
        parts = tuple(part for part in text.split("/") if part not in {"", "."})
        if wrong := _wrong(text, parts):
            errors.append(FieldError(f"/collect/{number}", wrong))
        patterns.append(Pattern(text, parts))
    if errors:
        raise InvalidRequest(errors)
    return tuple(patterns)


def _wrong(text: str, parts: tuple[str, ...]) -> str:
    """What is wrong with a pattern, or nothing."""
    size = byte_length(text)
    rules = (
        (size is None or "\0" in text, "must not contain a NUL byte or half a surrogate pair"),
        (text.startswith("/"), "must be relative to /workspace"),
        (".." in parts, "must not contain .. as a component"),
        (not parts or text.endswith(("/", "/.")), "must name a file"),
        ("**" in text, "must not contain **; * matches within one directory"),
        (
            (size or 0) > PATH_BYTES or any((byte_length(part) or 0) > NAME_BYTES for part in parts),
            f"is too long: the kernel takes {NAME_BYTES} bytes for a name and {PATH_BYTES} for the whole path",
        ),
        (len(parts) > DEPTH, f"is below more than {DEPTH} directories"),
    )
    return next((sentence for applies, sentence in rules if applies), "")


class _Bound(Exception):
    """The rest of a pattern is left out."""


class Collection:
    """`files`: what was found so far, in the order of the patterns and then of the names' bytes. It has each path
    once."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.files: list[CollectedFile] = []
        self._patterns = patterns
        self._done = 0  # patterns
        self._seen: set[bytes] = set()
        self._bytes = self._names = self._opens = 0

    async def run(self, files: Files) -> None:
        """Does not raise for an error of one file or pattern."""
        deadline = asyncio.get_running_loop().time() + SECONDS
        for pattern in self._patterns:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._take(files, pattern)
            except TimeoutError:
                self._fail(pattern.text.encode(), f"was not collected within {SECONDS:g} seconds")
            except _Bound as bound:
                self._fail(pattern.text.encode(), str(bound))
            self._done += 1

    def give_up(self, why: str) -> None:
        """Nothing more can be read. Records this for each pattern that is not done."""
        for pattern in self._patterns[self._done :]:
            self._fail(pattern.text.encode(), why)
        self._done = len(self._patterns)

    def _fail(self, path: bytes, why: str) -> None:
        self.files.append(CollectedFile(path, error=why))

    async def _take(self, files: Files, pattern: Pattern) -> None:
        matched = False
        async with closing(self._matches(files, b"", pattern.parts)) as found:
            async for path, kind in found:
                if path not in self._seen and not await self._take_path(files, pattern, path, kind):
                    continue
                matched = True
        if not matched:
            self._fail(pattern.text.encode(), "nothing matches")

    async def _take_path(self, files: Files, pattern: Pattern, path: bytes, kind: FileKind) -> bool:
        """Returns False for a path that does not exist, or not any more."""
        if len(self._seen) == FILES:
            raise _Bound(f"matches more; one answer has {FILES} files at most")
        if kind not in {FileKind.FILE, FileKind.SYMLINK}:
            self._seen.add(path)
            self._fail(path, f"is {kind.noun}; only regular files are collected")
            return True
        if pattern.is_wild:
            self._opens += 1
            if self._opens > OPENS:
                raise _Bound(f"needs more than {OPENS} files to be opened, which is the most for one answer")
        try:
            content = await self._read(files, path)
        except NotFound as error:
            if not pattern.is_wild:
                self._fail(path, _why(error, path))
            return not pattern.is_wild
        except BulkheadError as error:
            self._fail(path, _why(error, path))
        except _Bound as bound:
            self._fail(path, str(bound))
        else:
            self._bytes += len(content)
            self.files.append(CollectedFile(path, content))
        self._seen.add(path)
        return True

    async def _read(self, files: Files, path: bytes) -> bytes:
        async with files.open(path) as file:
            size = file.stat.size
            if size > TOTAL_BYTES - self._bytes:
                left = f"; the files before it have {self._bytes}" if self._bytes else ""
                raise _Bound(f"has {size} bytes; collected files have {TOTAL_BYTES} bytes in all at most{left}")
            async with closing(file.read(0, size)) as pieces:
                return b"".join([piece async for piece in pieces])

    # --- names

    async def _matches(
        self, files: Files, folder: bytes, parts: tuple[str, ...]
    ) -> AsyncIterator[tuple[bytes, FileKind]]:
        """Yields paths with their kind from a listing. A path of plain names is taken for a file."""
        wild = next((at for at, part in enumerate(parts) if _WILD.search(part)), None)
        plain = "/".join(parts[:wild]).encode()
        folder = _below(folder, plain) if plain else folder
        if wild is None:
            yield folder, FileKind.FILE
            return
        rest = parts[wild + 1 :]
        async with closing(self._names_like(files, folder, parts[wild])) as entries:
            async for entry in entries:
                path, kind = _below(folder, entry.name), entry.stat.kind
                if not rest:
                    yield path, kind
                elif kind in {FileKind.DIRECTORY, FileKind.SYMLINK}:
                    async with closing(self._matches(files, path, rest)) as deeper:
                        async for found in deeper:
                            yield found

    async def _names_like(self, files: Files, folder: bytes, part: str) -> AsyncIterator[DirectoryEntry]:
        """As in a shell, a name that begins with a dot needs a pattern that begins with a dot."""
        matches = re.compile(fnmatch.translate(part)).match
        slices, after, more = TimeSlices.of_loop(), None, True
        while more:
            try:
                listing = await files.list(folder or b".", after, _PAGE)
            except (NotFound, WrongType):
                return
            except BulkheadError as error:
                raise _Bound(f"{shown(folder)!r} cannot be listed: {_why(error, folder)}") from error
            for entry in listing.entries:
                if slices.over:
                    await slices.next()
                self._names += 1
                if self._names > NAMES:
                    raise _Bound(f"needs a look at more than {NAMES} names, which is the most for one answer")
                name = entry.name.decode(errors="surrogateescape")
                if matches(name) and (part.startswith(".") or not name.startswith(".")):
                    yield entry
            more = listing.more and bool(listing.entries)
            after = listing.entries[-1].name if listing.entries else None


def _why(error: BulkheadError, path: bytes) -> str:
    """Words that follow the path. The sentence of an error names the path, and the field of a request that had it."""
    match error:
        case NotFound():
            return "does not exist"
        case WrongType() if error.found == FileKind.FILE.value:
            return "does not exist: a part of it is not a directory"
        case WrongType():
            return f"is {FileKind(error.found).noun}; only regular files are collected"
        case AccessDenied():
            return "permission denied"
        case InvalidRequest():
            sentence = "; ".join(field.detail for field in error.errors)
        case _:
            sentence = str(error)
    return sentence.removeprefix(f"{shown(path)!r}: ")


def _below(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
