"""openapi.yaml from the code: FastAPI's routes, plus what it cannot know: bodies that we read ourselves, and frames."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.api import schemas
from app.api.documents import REF
from app.api.examples import EXAMPLES
from app.api.frames import FRAMES
from app.api.guard import OPEN_PATHS, OPEN_PREFIX
from app.api.links import link
from app.api.plain import make_plain
from app.api.problem_schema import Problem

_REQUESTS = (
    schemas.CreateSandbox,
    schemas.UpdateSandbox,
    schemas.CreateExecution,
    schemas.SignalExecution,
    schemas.CreateStreamTicket,
)
_DESCRIPTION = "Run code nobody trusts on one Linux machine, with its output streamed live."


_TAGS = [
    {"name": "sandboxes", "description": "Rooms in which commands run."},
    {"name": "executions", "description": "Commands in a sandbox, and their output."},
    {"name": "service", "description": "What the service says about itself."},
]
_REQUEST_ID, _RETRY, _AUTHENTICATE = "X-Request-Id", "Retry-After", "WWW-Authenticate"
_HEADERS = {
    _REQUEST_ID: {"description": "the client's own or a new one; stands in the log", "schema": {"type": "string"}},
    _RETRY: {"description": "seconds to wait before trying again", "schema": {"type": "integer"}},
    _AUTHENTICATE: {"description": "always `Bearer`", "schema": {"type": "string"}},
}
_ONLY_WITH = {"401": _AUTHENTICATE, "429": _RETRY, "503": _RETRY}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once per application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Bulkhead", version=app.version, description=_DESCRIPTION, routes=app.routes, tags=_TAGS
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(_components())
        components["Capability"]["description"] = "What a runtime may promise."
        document["components"]["headers"] = _HEADERS
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["info"]["license"] = {"name": "Apache License 2.0", "identifier": "Apache-2.0"}
        document["servers"] = [{"url": "/", "description": "the service that this document came from"}]
        document["security"] = [{"key": []}, {}]  # a service without keys asks for none
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _correct(path, operation)
        link(document)
        for name, example in EXAMPLES.items():
            components[name]["examples"] = [example]
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        make_plain(document)
        app.openapi_schema = document
    return app.openapi_schema


def _correct(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        operation["security"] = []
        answers.pop("401")
    if "application/json" in answers.get("422", {}).get("content", {}):
        answers.pop("422")  # FastAPI adds it for every path parameter, and an id of any text is at most not found
    for status, answer in answers.items():
        names = [_REQUEST_ID, *([_ONLY_WITH[status]] if status in _ONLY_WITH else ())]
        answer["headers"] = {
            **answer.get("headers", {}),
            **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
        }


def _components() -> dict[str, Any]:
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _REQUESTS]
    wanted += [(model, "serialization") for model in FRAMES]
    wanted.append((Problem, "serialization"))
    _, definitions = models_json_schema(wanted, ref_template=REF + "{model}")
    found: dict[str, Any] = definitions["$defs"]
    return found
