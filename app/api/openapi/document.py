"""Makes openapi.yaml from the code: FastAPI's routes, the bodies that the service reads itself, and the frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.api.http.idempotency import PATTERN
from app.api.http.open_paths import OPEN_PATHS, OPEN_PREFIX
from app.api.http.problem_types import PROBLEMS, TABLE
from app.api.http.problems import MEDIA_TYPE
from app.api.openapi.documents import REF, keyed
from app.api.openapi.examples import EXAMPLES, OF_OPERATIONS
from app.api.openapi.links import link
from app.api.openapi.plain import make_plain
from app.api.schemas import answers, requests, runs
from app.api.schemas.problem_schema import Problem
from app.api.streams.frames import FRAMES

_REQUESTS = (
    requests.CreateSandbox,
    requests.UpdateSandbox,
    requests.CreateExecution,
    requests.SignalExecution,
    requests.CreateStreamTicket,
    runs.Run,
    runs.RunInSandbox,
)
_DESCRIPTION = "Runs untrusted code in sandboxes on one Linux machine and streams its output live."


_TAGS = [
    {"name": "sandboxes", "description": "Sandboxes, in which commands run."},
    {"name": "executions", "description": "Commands in a sandbox, and their output."},
    {"name": "files", "description": "The file system of a sandbox, as its commands see it."},
    {"name": "service", "description": "The service itself: runtimes, health, metrics, problems."},
]
_REQUEST_ID = "X-Request-Id"
_REPLAYED = "Idempotency-Replayed"
FIRST_ERROR = 400
_HEADERS = {
    _REPLAYED: {
        "description": "`true` when this is the answer to an earlier request with the same Idempotency-Key",
        "schema": {"type": "string", "const": "true"},
    },
    _REQUEST_ID: {
        "description": "the client's own id or a new one; it is also in the log",
        "schema": {"type": "string"},
    },
    **{
        header.name: {"description": header.meaning, "schema": {"type": header.type}}
        for row in TABLE
        for header in row.headers
        if header.meaning
    },
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "chosen by the client, one for each thing to do once: a repeated request with the same "
    "key, query and body gets the first answer again, for 24 hours; answers of 5xx and 429 are not kept",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": f"^{PATTERN}$"},
}

_OF_THE_FRAMEWORK = "Successful Response"
_NO_CONTENT = "204"
_SUCCESSES = {  # by the schema of the answer
    "Directory": "the entries of the directory, in pages",
    "Execution": "the execution as it is now",
    "ExecutionList": "executions, in pages",
    "Health": "the service is alive",
    "Ready": "the default runtime works",
    "ResourceUsage": "the figures of now",
    "RunInSandboxResult": "how the command ended, its output, and the collected files",
    "RunResult": "how the command ended, its output, and the collected files",
    "RuntimeList": "every runtime, with what it can do",
    "Sandbox": "the sandbox as it is now",
    "SandboxList": "sandboxes, in pages",
    "StreamTicket": "the ticket and when it expires",
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once per application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Bulkhead", version=app.version, description=_DESCRIPTION, routes=app.routes, tags=_TAGS
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(_components())
        components["Capability"]["description"] = "A promise of a runtime, by name."
        document["components"]["headers"] = _HEADERS
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["info"]["license"] = {"name": "Apache License 2.0", "identifier": "Apache-2.0"}
        document["servers"] = [{"url": "/", "description": "the service that this document came from"}]
        document["security"] = [{"key": []}, {}]  # a service without keys asks for none
        document["components"]["parameters"] = {"IdempotencyKey": _IDEMPOTENCY_KEY}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if method == "post":
                    _take_key(operation)
                _correct(path, operation)
                _explain_success(operation)
        _drop_unused_headers(document)
        link(document)
        for name, example in EXAMPLES.items():
            components[name]["examples"] = [example]
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        make_plain(document)
        app.openapi_schema = document
    return app.openapi_schema


def _take_key(operation: dict[str, Any]) -> None:
    operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IdempotencyKey"})
    keyed(operation["responses"])
    for status, answer in operation["responses"].items():
        if int(status) < FIRST_ERROR:
            answer.setdefault("headers", {})[_REPLAYED] = {"$ref": f"#/components/headers/{_REPLAYED}"}


def _correct(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        operation["security"] = []
        answers.pop("401")
    if "application/json" in answers.get("422", {}).get("content", {}):
        answers.pop("422")  # FastAPI adds it for every path parameter, and an id of any text is at most not found
    for answer in answers.values():
        names = [_REQUEST_ID, *_headers_of(answer)]
        answer["headers"] = {
            **answer.get("headers", {}),
            **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
        }


def _explain_success(operation: dict[str, Any]) -> None:
    """In place of the framework's one sentence for all."""
    for status, answer in operation["responses"].items():
        if answer["description"] != _OF_THE_FRAMEWORK:
            continue
        if status == _NO_CONTENT:
            answer["description"] = "it is done; the answer has no body"
            continue
        ((media_type, content),) = answer["content"].items()
        schema = content["schema"].get("$ref", "").removeprefix(REF)
        answer["description"] = _SUCCESSES[schema] if schema else f"a page ({media_type})"
        if example := OF_OPERATIONS.get(operation["operationId"]):
            content["example"] = example


def _drop_unused_headers(document: dict[str, Any]) -> None:
    answers = (answer for o in _operations(document) for answer in o["responses"].values())
    used = {name for answer in answers for name in answer["headers"]}
    headers = document["components"]["headers"]
    document["components"]["headers"] = {name: header for name, header in headers.items() if name in used}


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (operation for operations in document["paths"].values() for operation in operations.values())


def _headers_of(answer: dict[str, Any]) -> list[str]:
    """The headers of the problems that the answer may be."""
    slugs = answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    return sorted({header.name for slug in slugs for header in PROBLEMS[slug].headers if header.meaning})


def _components() -> dict[str, Any]:
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _REQUESTS]
    wanted += [(model, "serialization") for model in (*FRAMES, *answers.NETWORK_EVENTS)]
    wanted.append((Problem, "serialization"))
    _, definitions = models_json_schema(wanted, ref_template=REF + "{model}")
    found: dict[str, Any] = definitions["$defs"]
    return found
