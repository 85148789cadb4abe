"""Chooses the runtime: the one that was asked for, or with `auto` the cheapest that is available and strong enough.

It never chooses another runtime than the one asked for, and never a weaker wall than the floor. It refuses a request
that no runtime fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.core.backend import Backend
from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable, BulkheadError, CapabilityMissing, InvalidRequest, RuntimeNotEnabled
from app.core.models import Tier
from app.core.registry import AUTO, Registry

_RANK = {tier: place for place, tier in enumerate(Tier)}


@dataclass(frozen=True, slots=True)
class RuntimeRequest:
    """`needs`: the capabilities that the request requires by name or by what it asks for."""

    runtime: str
    floor: Tier | None = None
    needs: frozenset[Capability] = frozenset()


def _meets(backend: Backend, floor: Tier | None) -> bool:
    return floor is None or _RANK[Tier(backend.info.tier)] >= _RANK[floor]


async def choose(
    request: RuntimeRequest,
    registry: Registry,
    failure_of: Callable[[Backend], Awaitable[BulkheadError | None]],
    settled_on: str | None = None,
) -> tuple[Backend, str | None]:
    """Returns the backend, and with `auto` a sentence that says why. `failure_of` says why a runtime does not work now.
    `settled_on` is the runtime of an existing sandbox with this id, which a repeated `auto` must choose again.

    Raises UnknownRuntime, RuntimeNotEnabled, InvalidRequest, CapabilityMissing, BackendUnavailable.
    """
    if request.runtime != AUTO:
        backend = registry.get(request.runtime)
        if not _meets(backend, request.floor):
            name, tier = backend.info.name, backend.info.tier
            hint = f"the runtime {AUTO!r} chooses one that is strong enough"  # who named no runtime may not know of it
            detail = f"the runtime {name!r} isolates by {tier}, which is weaker than {request.floor}; {hint}"
            raise InvalidRequest.at("/isolation_min", detail)
        return backend, None
    passed: list[str] = []
    suitable = _suitable(request, registry, passed)
    if settled_on is not None:
        suitable = [backend for backend in suitable if backend.info.name == settled_on] or suitable
    for backend in suitable:
        if backend.info.name == settled_on or (error := await failure_of(backend)) is None:
            return backend, _reason(request, backend, passed)
        passed.append(f"{backend.info.name} is not available ({error})")
    detail = f"no runtime that meets the request is available: {'; '.join(passed)}"
    raise BackendUnavailable(suitable[0].info.name, detail)


def _suitable(request: RuntimeRequest, registry: Registry, passed: list[str]) -> list[Backend]:
    """Returns the runtimes that fit, cheapest first, as the registry has them. Raises CapabilityMissing or
    RuntimeNotEnabled when there is none."""
    suitable: list[Backend] = []
    fewest: frozenset[Capability] | None = None
    for backend in registry:
        name = backend.info.name
        missing = request.needs - backend.info.capabilities
        if not registry.enabled(name):
            passed.append(f"{name} is not enabled")
        elif not _meets(backend, request.floor):
            passed.append(f"{name} isolates by {backend.info.tier} only")
        elif missing:
            passed.append(f"{name} lacks {', '.join(sorted(missing))}")
            fewest = missing if fewest is None or len(missing) < len(fewest) else fewest
        else:
            suitable.append(backend)
    if suitable:
        return suitable
    detail = f"no runtime meets the request: {'; '.join(passed)}"
    if fewest is not None:
        raise CapabilityMissing(fewest, AUTO, detail)
    raise RuntimeNotEnabled(AUTO, [b.info.name for b in registry if registry.enabled(b.info.name)], detail)


def _reason(request: RuntimeRequest, chosen: Backend, passed: list[str]) -> str:
    floor = f", isolates by {request.floor} at least" if request.floor else ""
    needs = f", has {', '.join(sorted(request.needs))}" if request.needs else ""
    beside = f"; {'; '.join(passed)}" if passed else ""
    return f"auto: {chosen.info.name} is the cheapest runtime that is available{floor}{needs}{beside}"
