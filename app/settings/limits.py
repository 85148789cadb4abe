"""A default and a ceiling for each limit of a sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from app.core.limits import LIMITS
from app.settings.part import Part


class LimitSettings(Part):
    default: float = Field(gt=0, allow_inf_nan=False)
    ceiling: float = Field(gt=0, allow_inf_nan=False)


def _limit(name: str) -> LimitSettings:
    row = LIMITS[name]
    ceiling = len(os.sched_getaffinity(0)) if row.ceiling is None else row.ceiling
    return LimitSettings(default=row.default, ceiling=ceiling)


class LimitsSettings(Part):
    """Default and ceiling may be set alone. The other then keeps its own value."""

    cpus: LimitSettings = _limit("cpus")
    memory_mib: LimitSettings = _limit("memory_mib")
    processes: LimitSettings = _limit("processes")
    disk_mib: LimitSettings = _limit("disk_mib")
    output_bytes: LimitSettings = _limit("output_bytes")
    wall_seconds: LimitSettings = _limit("wall_seconds")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {**_limit(name).model_dump(), **part} if name in LIMITS and isinstance(part, Mapping) else part
            for name, part in value.items()
        }

    @model_validator(mode="after")
    def _default_in_range(self) -> Self:
        for name, row in LIMITS.items():
            limit: LimitSettings = getattr(self, name)
            if limit.default > limit.ceiling:
                raise ValueError(f"{name}: the default {limit.default:g} is above the ceiling {limit.ceiling:g}")
            if limit.default < row.floor:
                raise ValueError(f"{name}: must be at least {row.floor:g}")
            if row.is_whole and not (limit.default.is_integer() and limit.ceiling.is_integer()):
                raise ValueError(f"{name}: must be whole numbers")
        return self
