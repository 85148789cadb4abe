"""docs/settings.md lists every setting with its default, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPENDS_ON_HOST = {"BULKHEAD_DATA", "BULKHEAD_LIMITS__CPUS__CEILING"}


def leaves(model: type[BaseModel], defaults: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        full, value = prefix + name.upper(), getattr(defaults, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, value, full + "__")
        else:
            yield full, value


def shown(value: Any) -> str:
    if value is None or value in ((), "", {}):
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    assert not isinstance(value, SecretStr)
    return str(value)


def documented() -> dict[str, str]:
    text = (ROOT / "docs/settings.md").read_text()
    rows = re.findall(r"^\| `(BULKHEAD_[A-Z_]+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a setting is listed twice"
    return {name: default.strip().strip("`") for name, default in rows}


def test_every_setting_is_documented_and_no_other() -> None:
    assert set(documented()) == {name for name, _ in leaves(Settings, Settings.model_construct(), "BULKHEAD_")}


def test_the_documented_defaults_are_the_ones_in_force() -> None:
    wanted = {name: shown(value) for name, value in leaves(Settings, Settings.model_construct(), "BULKHEAD_")}
    for name, default in documented().items():
        if name not in DEPENDS_ON_HOST:
            assert default == wanted[name], name


def test_the_aliases_and_the_prefixes_of_others_are_mentioned() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    theirs = ("OPENSHELL_RUNTIME", "BOXLITE_REST_URL", "BOXLITE_URL", "BOXLITE_API_KEY", "BOXLITE_REST_PATH_PREFIX")
    for word in (*theirs, "BULKHEAD_CLIENT_", "BULKHEAD_TEST_", "keys.json"):
        assert word in text
