"""Simplifies the document for readers and for generators of clients (docs/clients.md lists the reasons)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

INT32_MAX = 2**31 - 1
_MAPS = ("properties", "patternProperties", "$defs")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "propertyNames", "not")


def make_plain(document: dict[str, Any]) -> None:
    """Changes the document in place: numbers get their width. Titles that only repeat a name, and defaults of null, are
    removed."""
    components = document["components"]
    for schema in components["schemas"].values():
        _walk(schema)
    for header in components.get("headers", {}).values():
        _walk(header["schema"])
    for operations in document["paths"].values():
        for operation in operations.values():
            for schema in _schemas_of(operation):
                _walk(schema)


def _schemas_of(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for parameter in operation.get("parameters", ()):
        yield parameter.get("schema", {})  # a reference has none of its own
    for answer in (*operation["responses"].values(), operation.get("requestBody", {})):
        for header in answer.get("headers", {}).values():
            yield header.get("schema", {})
        for content in answer.get("content", {}).values():
            yield content.get("schema", {})


def _walk(schema: dict[str, Any]) -> None:
    if isinstance(schema.get("title"), str):
        del schema["title"]  # FastAPI makes it of the name; a generator would name a class after it
    match schema.get("default", ...):  # null says no more than that the field may be left out
        case None:
            del schema["default"]
        case dict() as default:
            schema["default"] = {name: value for name, value in default.items() if value is not None}
    match schema.get("type"):
        case "integer" if "enum" not in schema:
            schema.setdefault("format", "int32" if schema.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64")
        case "number":
            schema.setdefault("format", "double")
    for key in _MAPS:
        for part in schema.get(key, {}).values():
            _walk(part)
    for key in _LISTS:
        for part in schema.get(key, ()):
            _walk(part)
    for key in _SINGLES:
        if isinstance(schema.get(key), dict):
            _walk(schema[key])
