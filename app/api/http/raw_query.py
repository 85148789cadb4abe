"""Queries with a `path`. Names of files are bytes, so a path is read from the raw query and not from decoded text."""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from app.api.http.validation import invalid_request
from app.core.errors import FieldError, InvalidRequest

LONGEST_PATH = 4095  # bytes, as the kernel's
_NO_BYTE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class PathQuery(BaseModel):
    """The parameters beside `path`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Q = TypeVar("Q", bound=PathQuery)


def read_query(request: Request, model: type[Q]) -> tuple[bytes, Q]:
    """Returns the path and the other parameters. Raises InvalidRequest with every wrong parameter. A + is a space, as
    in every form."""
    paths: list[bytes] = []
    others: dict[str, str] = {}
    for pair in request.scope["query_string"].split(b"&"):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        if unquote_to_bytes(name) == b"path":
            paths.append(value)
        elif pair:
            others[_text(name)] = _text(value)
    errors = _wrong_path(paths)
    try:
        query = model.model_validate(others)
    except ValidationError as error:
        raise InvalidRequest([*errors, *invalid_request(error, model, "query").errors]) from None
    if errors:
        raise InvalidRequest(errors)
    return unquote_to_bytes(paths[0]), query


def _text(value: bytes) -> str:
    return unquote_to_bytes(value).decode(errors="replace")


def _wrong_path(paths: list[bytes]) -> list[FieldError]:
    sentence = ""
    if len(paths) != 1:
        sentence = "must be given once" if paths else "is required"
    elif _NO_BYTE.search(paths[0]):
        sentence = "has a % without two hexadecimal digits; write a % as %25"
    elif not 0 < len(path := unquote_to_bytes(paths[0])) <= LONGEST_PATH:
        sentence = f"must have 1 to {LONGEST_PATH} bytes"
    elif b"\0" in path:
        sentence = "must not have a NUL byte"
    return [FieldError("query/path", sentence)] if sentence else []


def parameters(model: type[PathQuery]) -> list[dict[str, Any]]:
    """The parameters for OpenAPI."""
    path = {
        "name": "path",
        "in": "query",
        "required": True,
        "description": f"absolute, or relative to /workspace; {LONGEST_PATH} bytes at most, not necessarily UTF-8; "
        "percent-encode what a URL cannot have",
        "schema": {"type": "string", "minLength": 1},
    }
    rest = [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description", ""), "schema": schema}
        for name, schema in model.model_json_schema().get("properties", {}).items()
    ]
    return [path, *rest]
