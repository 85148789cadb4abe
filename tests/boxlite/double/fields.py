"""Fields of JSON bodies as the server's deserializer takes them: what is unknown or of the wrong type is a 422."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.boxlite.double.http import Unframed

Check = Callable[[Any], str | None]  # what was expected, when the value is not it


def refuse(text: str, raw: bytes) -> Unframed:
    where = f"line 1 column {len(raw)}"  # the real one stops where it noticed; nobody should read this
    return Unframed(422, f"Failed to deserialize the JSON body into the target type: {text} at {where}")


def whole(name: str, bits: int, *, signed: bool = False) -> Check:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def check(value: Any) -> str | None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return None if is_whole and low <= value <= high else name

    return check


def of(kind: type | tuple[type, ...], name: str) -> Check:
    def check(value: Any) -> str | None:
        wrong = isinstance(value, bool) and kind is not bool
        return name if wrong or not isinstance(value, kind) else None

    return check


def every(inner: Check, kind: type[list[Any]] | type[dict[str, Any]], name: str) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, kind):
            return name
        items = value.values() if isinstance(value, dict) else value
        return next((found for item in items if (found := inner(item))), None)

    return check


U8, U32, U64, I32 = whole("u8", 8), whole("u32", 32), whole("u64", 64), whole("i32", 32, signed=True)
STRING, BOOL, FLOAT = of(str, "a string"), of(bool, "a boolean"), of((int, float), "f64")
STRINGS, ENVIRONMENT = every(STRING, list, "a sequence"), every(STRING, dict, "a map")
ANYTHING, OBJECTS = of(dict, "a map"), every(of(dict, "a map"), list, "a sequence")


def describe(value: Any) -> str:
    match value:
        case bool():
            return f"type: boolean `{str(value).lower()}`"
        case int():
            return f"value: integer `{value}`"
        case float():
            return f"type: floating point `{value}`"
        case str():
            return f"type: string {json.dumps(value, ensure_ascii=False)}"
        case None:
            return "type: null"
        case list():
            return "type: sequence"
        case _:
            return "type: map"


def take(
    body: Any, raw: bytes, fields: Mapping[str, Check], *, required: tuple[str, ...] = (), strict: bool = False
) -> dict[str, Any]:
    """The known fields of a body. `strict`: an unknown one is refused. `null` is the same as left out."""
    if not isinstance(body, dict):
        raise refuse(f"invalid {describe(body)}, expected struct", raw)
    for name, value in body.items():
        if name not in fields:
            if strict:
                known = ", ".join(f"`{field}`" for field in fields)
                raise refuse(f"{name}: unknown field `{name}`, expected one of {known}", raw)
            continue
        if value is None and name not in required:
            continue
        if expected := fields[name](value):
            raise refuse(f"{name}: invalid {describe(value)}, expected {expected}", raw)
    for name in required:
        if name not in body:
            raise refuse(f"missing field `{name}`", raw)
    return {name: value for name, value in body.items() if name in fields and value is not None}
