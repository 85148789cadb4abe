"""What the parts of the settings are made of."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


def split(value: Any) -> Any:
    """`a,b` as well as `["a", "b"]`."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return tuple(json.loads(value))
    return tuple(part.strip() for part in value.split(",") if part.strip())


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
