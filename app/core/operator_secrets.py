"""The secrets that the operator has, by name. They may change while the service runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.core.secrets import Secret, SecretValue


@dataclass(frozen=True, slots=True)
class OperatorSecret:
    """`hosts`: exact names, the only ones that any sandbox may send it to."""

    value: SecretValue
    hosts: tuple[str, ...]


class OperatorSecrets:
    def __init__(self, found: Mapping[str, OperatorSecret] | None = None) -> None:
        self._found = dict(found or {})
        self._listeners: list[Callable[[], None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._found))

    def find(self, name: str) -> OperatorSecret | None:
        return self._found.get(name)

    def replace(self, found: Mapping[str, OperatorSecret]) -> None:
        """Takes the place of all that were there, also for sandboxes that run."""
        self._found = dict(found)
        for listener in self._listeners:
            listener()

    def listen(self, changed: Callable[[], None]) -> None:
        self._listeners.append(changed)

    def in_force(self, secret: Secret) -> tuple[SecretValue, tuple[str, ...]] | None:
        """The value and the hosts of a sandbox's secret now. None: the operator has taken it away."""
        if secret.source is None:
            return None if secret.value is None else (secret.value, secret.hosts)
        found = self._found.get(secret.source)
        if found is None:
            return None
        hosts = tuple(host for host in secret.hosts if host in found.hosts)
        return (found.value, hosts) if hosts else None
