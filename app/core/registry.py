"""Finds the backend of a runtime by name or alias, cheapest first. It never finds another runtime than the one asked
for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from app.core.backend import Backend
from app.core.errors import RuntimeNotEnabled, UnknownRuntime

AUTO = "auto"  # no runtime, but the request for the cheapest that will do: `choice.py`


class Registry:
    def __init__(self, backends: Iterable[Backend], *, default: str, disabled: Iterable[str] = ()) -> None:
        self._backends = {backend.info.name: backend for backend in backends}
        self._names = {alias: b.info.name for b in self._backends.values() for alias in (b.info.name, *b.info.aliases)}
        self._disabled = frozenset(disabled)
        self._default = default

    @property
    def default(self) -> str:
        """The canonical name of the runtime for a request that names none, or `auto`."""
        return AUTO if self._default == AUTO else self.canonical(self._default)

    def canonical(self, name: str) -> str:
        """Raises UnknownRuntime or RuntimeNotEnabled."""
        canonical = self._names.get(name)
        if canonical is None:
            raise UnknownRuntime(name, self._offered)
        if canonical in self._disabled:
            raise RuntimeNotEnabled(canonical, self._offered)
        return canonical

    @property
    def _offered(self) -> list[str]:
        """The names that a request may use."""
        return [AUTO, *(name for name, runtime in self._names.items() if runtime not in self._disabled)]

    def get(self, name: str) -> Backend:
        return self._backends[self.canonical(name)]

    def enabled(self, name: str) -> bool:
        return name not in self._disabled

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())
