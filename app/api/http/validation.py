"""Turns pydantic's errors into the fields of a problem."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.api.http.misplaced import home_of
from app.core.errors import FieldError, InvalidRequest
from app.sentences import sentence_for

KEY_SHOWN = 64
# The largest valid body is a run with 1,024 files; an object more than this means that a field was given again.
OBJECTS = 4096
_NO_FIELDS = frozenset({"[key]", "[text]", "[rule]"})  # parts of a location that say which schema was meant
PREFIX = 3  # characters that two names must share at their beginnings: `ttl` is `ttl_seconds`
_ELSEWHERE = {"cwd": "workdir", "args": "command", "argv": "command"}  # what other interfaces call it
_DOUBLED = "the body has a key twice in one object"
_LOCATIONS = frozenset({"query", "path", "header"})


def invalid_request(error: ValidationError, model: type[BaseModel], location: str = "") -> InvalidRequest:
    """`location` is `query` when the model describes a query, and empty for a body. Each field is a JSON pointer into
    the body, or `query/NAME`."""
    found = error.errors(include_url=False, include_input=False)
    prefix = (location,) if location else ()
    return InvalidRequest([FieldError(_pointer((*prefix, *f["loc"])), _sentence(f, model)) for f in found])


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence about an unknown name, with the nearest known one. A name with dots, such as `limits.cpus`, is a
    field of a field. It is compared by its last part."""
    near = _nearest(name[:KEY_SHOWN], {place.rpartition(".")[2]: place for place in known})
    return f"is not known here; did you mean {near!r}?" if near else "is not known here"


def _nearest(name: str, places: Mapping[str, str]) -> str | None:
    name = _ELSEWHERE.get(name, name)
    near = difflib.get_close_matches(name, list(places), n=1)
    near += [known for known in places if min(len(name), len(known)) >= PREFIX and _begins(name, known)]
    return places[near[0]] if near else None


def _begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def refuse_doubled_keys(body: bytes | str) -> None:
    """Raises InvalidRequest for an object that has a key twice: readers of JSON disagree on which one counts (RFC 8259,
    section 4). The body is valid JSON."""
    colons = body.count(b":") if isinstance(body, bytes) else body.count(":")  # behind names, and within texts
    if len(body) <= OBJECTS and _names_in(body) == colons:
        return  # no name was lost, and so small a body cannot have too many objects
    objects = 0

    def check(pairs: list[tuple[str, Any]]) -> None:
        nonlocal objects
        objects += 1
        names = set()
        for name, _ in pairs:
            if name in names:
                raise InvalidRequest.at("", f"the key {name[:KEY_SHOWN]!r} occurs twice in one object")
            names.add(name)
        if objects > OBJECTS:
            raise InvalidRequest.at("", _DOUBLED)

    json.loads(body, object_pairs_hook=check, parse_int=str, parse_float=str)


def refuse_fewer_names(body: bytes, names: int) -> None:
    """As `refuse_doubled_keys`, for a large body in which so many names were counted. It does not say which one occurs
    twice. 8 MiB of text take 1 ms; the parser of the standard library takes 15."""
    if _names_in(body) < names:
        raise InvalidRequest.at("", _DOUBLED)


def _names_in(body: bytes | str) -> int:
    """Names of all objects, each once for its object."""
    left, found = [from_json(body, cache_strings="none")], 0
    while left:
        match left.pop():
            case dict() as inner:
                found += len(inner)
                left += inner.values()
            case list() as inner:
                left += inner
    return found


def _pointer(loc: Sequence[str | int]) -> str:
    parts = [str(part)[:KEY_SHOWN].replace("~", "~0").replace("/", "~1") for part in loc if part not in _NO_FIELDS]
    if len(parts) > 1 and parts[0] in _LOCATIONS:  # alone it is a field of the body
        return "/".join(parts)
    return "".join(f"/{part}" for part in parts)


def _sentence(found: Mapping[str, Any], model: type[BaseModel]) -> str:
    if found["type"] == "extra_forbidden":
        *path, name = found["loc"]
        known = _fields_at(model, path)
        home = home_of(str(name), known, "collect" in model.model_fields)
        return f"is not known here; {home}" if home else unknown(str(name), known)
    return sentence_for(found)


def _fields_at(model: Any, path: Sequence[str | int]) -> list[str]:
    """The fields of the model at the path, after those of the objects in it (`limits.cpus`)."""
    for part in path:
        if not isinstance(part, str) or part in _NO_FIELDS:
            continue  # a place in a list, whose items were looked at already
        field = None if model is None else model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
    if model is None:
        return []
    own = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    within = {name: _model_in(kind) for name, kind in own.items() if get_origin(kind) is not list}
    return [*(f"{name}.{field}" for name, inner in within.items() if inner for field in inner.model_fields), *own]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one model in `X`, `X | None` and `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        for argument in get_args(annotation):
            if (model := _model_in(argument)) is not None:
                return model
    return None
