"""What the parts of the settings are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


def split(value: Any, like: str = '["a", "b"]') -> Any:
    """`a,b` as well as `["a", "b"]`. Raises ValueError with `like`, an example of the list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return tuple(json.loads(value))
        except json.JSONDecodeError as error:
            sentence = f"is not JSON at character {error.pos + 1}: write a list such as {like}"
            raise ValueError(f"{sentence}, or items with commas between them") from None
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} must be an absolute path")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
