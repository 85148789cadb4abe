"""Chooses the processors of each sandbox, so that all are used."""

from __future__ import annotations


class CpuAllocator:
    """Gives each sandbox the processors on which the fewest others may run, weighed by their limits."""

    def __init__(self) -> None:
        # Processor -> what sandboxes may use of it, in millionths. The one that was given out last stands last.
        self._loads: dict[int, int] = {}

    def allocate(self, usable: list[int], cpu_millis: int) -> list[int]:
        """As many of the `usable` processors as the limit, in thousandths of a cpu, rounded up. `give_back` takes them
        back."""
        count = min(len(usable), -(-cpu_millis // 1000))
        for cpu in usable:
            self._loads.setdefault(cpu, 0)
        found = sorted((cpu for cpu in self._loads if cpu in usable), key=self._loads.__getitem__)[:count]
        for cpu in found:
            self._loads[cpu] = self._loads.pop(cpu) + _share(found, cpu_millis)
        return sorted(found)

    def give_back(self, cpus: list[int], cpu_millis: int) -> None:
        for cpu in cpus:
            self._loads[cpu] -= _share(cpus, cpu_millis)


def _share(cpus: list[int], cpu_millis: int) -> int:
    return cpu_millis * 1000 // len(cpus)
