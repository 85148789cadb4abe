"""What the routes state in OpenAPI: bodies, answers, and the problems that each can end in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from app.api.http.problem_types import PROBLEMS, ProblemType
from app.api.http.problems import MEDIA_TYPE, problem_of
from app.core.errors import BulkheadError

REF = "#/components/schemas/"
EXAMPLE_ID = "req_06fa2c8q0gsbsd9e2y5k8w1m3c"
NO_EXAMPLES: Mapping[str, BulkheadError] = MappingProxyType({})
EVERYWHERE = ("unauthenticated", "forbidden", "internal_error")

_OF_A_KEY = (
    *("invalid_request", "idempotency_mismatch", "conflict"),
    *("payload_too_large", "bound_exceeded", "capacity_exceeded"),
)

Responses = dict[int | str, dict[str, Any]]


def example_of(kind: ProblemType) -> dict[str, Any]:
    return _body(kind.example)


def _body(error: BulkheadError) -> dict[str, Any]:
    return problem_of(error).body(EXAMPLE_ID)


def problems(*slugs: str, examples: Mapping[str, BulkheadError] = NO_EXAMPLES) -> Responses:
    """The `responses` of a route: one entry per status, one example per type of problem. `examples`: errors, by type,
    for a route in which something else is the usual cause."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for slug in (*slugs, *EVERYWHERE):
        by_status[PROBLEMS[slug].status].append(slug)
    return {status: _answer(found, examples) for status, found in sorted(by_status.items())}


def _answer(slugs: Iterable[str], examples: Mapping[str, BulkheadError] = NO_EXAMPLES) -> dict[str, Any]:
    errors = {slug: examples.get(slug, PROBLEMS[slug].example) for slug in sorted(slugs)}
    return {
        "description": ", ".join(f"`{slug}`" for slug in sorted(slugs)),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": f"{REF}Problem"},
                "examples": {slug: {"value": _body(error)} for slug, error in errors.items()},
            }
        },
    }


def keyed(responses: dict[str, Any]) -> None:
    """Adds the answers that a request with an Idempotency-Key may get, whatever its route."""
    for slug in _OF_A_KEY:
        status = str(PROBLEMS[slug].status)
        known = responses.get(status, {}).get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
        responses[status] = _answer({slug, *known})


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body with `read_json`."""
    examples = model.model_json_schema().get("examples", [])
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": REF + model.__name__},
                    "examples": {f"example_{n}": {"value": value} for n, value in enumerate(examples, 1)},
                }
            },
        }
    }


def created(what: str) -> dict[str, Any]:
    return {
        "description": f"the new {what}",
        "headers": {"Location": {"description": f"path of the {what}", "schema": {"type": "string"}}},
    }
