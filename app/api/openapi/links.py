"""OpenAPI links from an answer to the operations on what it names. They are computed from the paths, so a new route has
them too.

The answer that has made a sandbox or an execution links to every operation on it, with the parameters filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SCHEMAS = "#/components/schemas/"
# What an answer tells about the parameters of the paths, by the name of its schema.
_TOLD = {
    "Sandbox": {"sandbox_id": "$response.body#/id"},
    "Execution": {"sandbox_id": "$response.body#/sandbox_id", "execution_id": "$response.body#/id"},
}
_LISTS = ("SandboxList", "ExecutionList", "NetworkEventList")


def link(document: dict[str, Any]) -> None:
    """Adds `links` to the answers, and puts what they refer to under `components`."""
    operations = list(_operations(document))
    shared: dict[str, Any] = document["components"].setdefault("links", {})
    for _, _, operation in operations:
        for status, answer in operation["responses"].items():
            name = _schema_of(answer)
            if status == "201" and name in _TOLD:
                answer["links"] = {
                    target["operationId"]: {"$ref": f"#/components/links/{_name(target, name)}"}
                    for _, path, target in operations
                    if _parameters(path) == set(_TOLD[name])
                }
            elif name in _LISTS:
                answer["links"] = {"next_page": _next_page(operation)}
    for name, told in _TOLD.items():
        for _, path, target in operations:
            if _parameters(path) == set(told):
                shared[_name(target, name)] = {"operationId": target["operationId"], "parameters": dict(told)}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _schema_of(answer: dict[str, Any]) -> str:
    reference: str = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return reference.removeprefix(_SCHEMAS)


def _parameters(path: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", path))


def _name(operation: dict[str, Any], schema: str) -> str:
    return f"{schema.lower()}_{operation['operationId']}"


def _next_page(operation: dict[str, Any]) -> dict[str, Any]:
    """A link to the same list, from the end of this page."""
    kept = [p for p in operation["parameters"] if p["in"] == "path"]
    return {
        "operationId": operation["operationId"],
        "parameters": {
            **{p["name"]: f"$request.path.{p['name']}" for p in kept},
            "cursor": "$response.body#/next_cursor",
        },
        "description": "on the last page `next_cursor` is null: there is no next one",
    }
