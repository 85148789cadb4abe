"""How much is remembered of requests that had an Idempotency-Key."""

from __future__ import annotations

from pydantic import Field

from app.core.idempotency import IdempotencyBounds
from app.core.limits import MIB
from app.settings.part import Part

_KEPT = IdempotencyBounds()


class IdempotencySettings(Part):
    keys: int = Field(_KEPT.keys, ge=1, description="keys that are known at once; the oldest is forgotten first")
    mib: int = Field(
        _KEPT.size // MIB, ge=0, description="memory for answers; the oldest is forgotten first, its key stays"
    )
    seconds: float = Field(_KEPT.seconds, gt=0, allow_inf_nan=False, description="how long an answer is repeated")

    def kept_answers(self) -> IdempotencyBounds:
        return IdempotencyBounds(self.keys, self.mib * MIB, self.seconds)
