"""Everything that can go wrong, as one tree. Only `api/http/problem_types.py` knows status codes.

::

    BulkheadError
    ├── InvalidRequest             a field is wrong; names every wrong field
    ├── Refused                    the request is well formed and will not be done
    │   ├── UnknownRuntime  RuntimeNotEnabled  UnknownProfile  UnknownImage
    │   ├── PolicyTooBroad  LimitTooHigh  PolicyNotSupported  CapabilityMissing
    │   ├── Unauthenticated  Forbidden
    │   ├── CapacityExceeded       a limit is reached now; to try again later helps
    │   ├── BoundExceeded          a fixed bound is exceeded; to try again never helps
    │   └── ServiceStopping        nothing new begins any more
    ├── NotFound
    ├── Conflict                   an id or stdin is taken
    ├── IdempotencyMismatch        a key that stands for another request
    ├── WrongState                 the sandbox or execution is past this
    ├── UnsupportedByRuntime       a request that needs a capability which the sandbox's runtime lacks
    ├── WrongType                  a file is not what is needed here
    ├── AccessDenied               the sandbox itself may not do this with a file
    ├── DiskFull                   no room for files, or for the disk of a new sandbox
    ├── InvalidArchive             an entry of an archive is refused
    ├── PreconditionFailed
    ├── RangeNotSatisfiable        an offset beyond the end
    ├── PayloadTooLarge            more bytes than may ever be sent there
    └── BackendFailure             the runtime could not do it
        ├── LaunchFailed           a named isolation step was refused by the kernel
        ├── IsolationUnavailable   the host lacks a layer that was not given up by name
        ├── BackendRefused         the runtime's server answered with an error
        ├── BackendUnavailable     the launcher (or server) is not there
        └── BackendTimeout

A program that fails inside a sandbox is not an error here: it is an `Exit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Holder = Literal["service", "client", "sandbox", "execution"]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: a JSON pointer into the body (or `query/NAME`, `path/NAME`) and a sentence."""

    pointer: str
    detail: str


class BulkheadError(Exception):
    """The root. `str(error)` is a sentence for people and never holds a secret."""


class InvalidRequest(BulkheadError):
    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{e.pointer}: {e.detail}" for e in self.errors))

    @classmethod
    def at(cls, pointer: str, detail: str) -> InvalidRequest:
        return cls([FieldError(pointer, detail)])


class Refused(BulkheadError):
    pass


class UnknownRuntime(Refused):
    def __init__(self, runtime: str, known: Iterable[str]) -> None:
        self.runtime, self.known = runtime, sorted(known)
        super().__init__(f"there is no runtime {runtime!r}; known: {', '.join(self.known)}")


class RuntimeNotEnabled(Refused):
    def __init__(self, runtime: str, known: Iterable[str], detail: str = "") -> None:
        self.runtime, self.known = runtime, sorted(known)
        super().__init__(detail or f"the operator has not enabled the runtime {runtime!r}")


class UnknownProfile(Refused):
    def __init__(self, profile: str, known: Iterable[str]) -> None:
        self.known = sorted(known)
        super().__init__(f"there is no policy profile {profile!r}; known: {', '.join(self.known)}")


class UnknownImage(Refused):
    """`image` is None if none was named and there is no default."""

    def __init__(self, image: str | None, known: Iterable[str], detail: str = "") -> None:
        self.known = sorted(known)
        names = f"known: {', '.join(self.known) or 'none'}"
        what = "no image was named, and there is no default" if image is None else f"there is no image {image!r}"
        super().__init__(f"{what}; {detail or names}")


class PolicyTooBroad(Refused):
    def __init__(self, pointer: str, ceiling: str, detail: str) -> None:
        self.pointer, self.ceiling = pointer, ceiling
        super().__init__(detail)


_MOST_WHOLE = 10**15  # a float has each whole number below it


def plain_number(number: float) -> str:
    """Whole numbers in full: 67108864, not 6.71089e+07. Not 1e300, which would have 301 digits."""
    is_whole = abs(number) < _MOST_WHOLE and float(number).is_integer()
    return f"{number:.0f}" if is_whole else f"{number:g}"


class LimitTooHigh(Refused):
    """`way_out`: what the client can change to get it."""

    def __init__(self, pointer: str, value: float, ceiling: float, way_out: str = "") -> None:
        self.pointer, self.ceiling = pointer, ceiling
        super().__init__(
            f"{pointer} is {plain_number(value)}, the ceiling is {plain_number(ceiling)}" + (way_out and f": {way_out}")
        )


class PolicyNotSupported(Refused):
    def __init__(self, pointer: str, runtime: str, detail: str) -> None:
        self.pointer, self.runtime = pointer, runtime
        super().__init__(detail)


class CapabilityMissing(Refused):
    def __init__(self, missing: Iterable[str], runtime: str, detail: str = "") -> None:
        self.missing, self.runtime = sorted(missing), runtime
        super().__init__(detail or f"the runtime {runtime!r} lacks: {', '.join(self.missing)}")


class Unauthenticated(Refused):
    pass


class Forbidden(Refused):
    pass


class CapacityExceeded(Refused):
    """A limit is reached for now. There is room again when something ends.

    `budget`: what is counted, in the plural. `holder`: whose limit or share is used up. `share`: how much of the
    service's `limit` this holder may have now, and how much it has.
    """

    def __init__(
        self,
        budget: str,
        limit: int = 0,
        holder: Holder = "service",
        *,
        share: tuple[int, int] | None = None,
        retry_after_seconds: int = 1,
        detail: str = "",
    ) -> None:
        self.budget, self.holder, self.retry_after_seconds = budget, holder, retry_after_seconds
        super().__init__(detail or self._sentence(limit, share))

    def _sentence(self, limit: int, share: tuple[int, int] | None) -> str:
        if share is not None:
            most, held = share
            return (
                f"this {self.holder} has {held} of the service's {limit} {self.budget} and may have at most {most} "
                "now; free some, or try again later"
            )
        if self.holder == "service":
            return f"the service's limit of {limit} {self.budget} is reached; try again later"
        return f"this {self.holder}'s limit of {limit} {self.budget} is reached; free some, or try again later"


class BoundExceeded(Refused):
    """The request needs more than there can ever be. `bound`: what is counted, in the plural. `way_out`: what the
    client can do instead."""

    def __init__(self, bound: str, limit: int, way_out: str) -> None:
        self.bound, self.limit = bound, limit
        super().__init__(f"the request needs more than {limit} {bound}, which is the most that it can have; {way_out}")


class ServiceStopping(Refused):
    retry_after_seconds: ClassVar[int] = 5

    def __init__(self) -> None:
        super().__init__("the service is stopping and makes no sandbox any more; try again when it has been started")


class NotFound(BulkheadError):
    def __init__(self, what: str, name: str, detail: str = "") -> None:
        super().__init__(detail or f"there is no {what} {name!r}")


class Conflict(BulkheadError):
    pass


class IdempotencyMismatch(BulkheadError):
    def __init__(self) -> None:
        super().__init__("an earlier request with this Idempotency-Key had another body or query; use a new key")


class WrongState(BulkheadError):
    def __init__(self, state: str, detail: str) -> None:
        self.state = state
        super().__init__(detail)


class UnsupportedByRuntime(BulkheadError):
    def __init__(self, missing: str, runtime: str) -> None:
        super().__init__(f"the runtime {runtime!r} has no {missing}")


class WrongType(BulkheadError):
    def __init__(self, found: str, detail: str) -> None:
        self.found = found
        super().__init__(detail)


class AccessDenied(BulkheadError):
    pass


class DiskFull(BulkheadError):
    """`limit`: bytes that the sandbox's files may have."""

    def __init__(self, limit: int, detail: str = "") -> None:
        self.limit = limit
        super().__init__(detail or f"the sandbox's disk of {limit} bytes is full; delete files to make room")


class InvalidArchive(BulkheadError):
    def __init__(self, entry: str, detail: str) -> None:
        self.entry = entry
        super().__init__(f"{entry!r}: {detail}" if entry else detail)


class PreconditionFailed(BulkheadError):
    pass


class RangeNotSatisfiable(BulkheadError):
    """`size`: the size of the file whose range was asked for."""

    def __init__(self, detail: str, size: int | None = None) -> None:
        self.size = size
        super().__init__(detail)


class PayloadTooLarge(BulkheadError):
    """`limit`: bytes. `what`: what was sent. `way_out`: what the client can do instead."""

    def __init__(self, limit: int, what: str = "the request body", way_out: str = "") -> None:
        self.limit = limit
        super().__init__(f"{what} is larger than {limit} bytes, which is the most" + (way_out and f"; {way_out}"))


class BackendFailure(BulkheadError):
    pass


class LaunchFailed(BackendFailure):
    def __init__(self, step: str, errno_name: str, detail: str) -> None:
        self.step, self.errno_name = step, errno_name
        super().__init__(detail)


class IsolationUnavailable(BackendFailure):
    retry_after_seconds: ClassVar[int] = 60  # the layer comes back with an operator's work, not with time

    def __init__(self, layer: str, detail: str) -> None:
        self.layer = layer
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a runtime's server answered: its HTTP status and its own code for the error, as far as it gave them."""

    status: int | None = None
    code: str | None = None


class BackendRefused(BackendFailure):
    def __init__(self, runtime: str, detail: str, upstream: Upstream) -> None:
        self.runtime, self.upstream = runtime, upstream
        super().__init__(detail)


class BackendUnavailable(BackendFailure):
    def __init__(
        self, runtime: str, detail: str, retry_after_seconds: int = 1, upstream: Upstream | None = None
    ) -> None:
        self.runtime, self.retry_after_seconds = runtime, retry_after_seconds
        self.upstream = upstream or Upstream()
        super().__init__(detail)


class BackendTimeout(BackendFailure):
    def __init__(self, runtime: str, detail: str, upstream: Upstream | None = None) -> None:
        self.runtime, self.upstream = runtime, upstream or Upstream()
        super().__init__(detail)
