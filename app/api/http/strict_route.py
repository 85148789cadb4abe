"""A route that takes only what it declares: no other parameter, no parameter twice, and no body where it has none."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app.api.http.misplaced import home_of_parameter
from app.api.http.validation import unknown
from app.core.errors import FieldError, InvalidRequest

_SHOWN = 32


class StrictRoute(APIRoute):
    """For `APIRouter(route_class=StrictRoute)`. Raises InvalidRequest with every wrong parameter. With `answers_head`
    HEAD is answered like GET, and the server leaves the body out (RFC 9110, section 9.3.2).
    """

    answers_head = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._known, self._repeatable = self._parameters()
        self._takes_body = "requestBody" in (self.openapi_extra or {})

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] == "HEAD" and self.answers_head:
            match = Match.FULL
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()) and not (scope["method"] == "HEAD" and self.answers_head):
            return await super().handle(scope, receive, send)  # which names the methods that it takes
        if scope["query_string"]:
            _check_query(scope["query_string"], self._known, self._repeatable, self.path)
        if not self._takes_body:
            _check_no_body(Headers(scope=scope))
        return await self.app(scope, receive, send)

    def _parameters(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of the query's parameters, and of those that may be repeated."""
        extra = (self.openapi_extra or {}).get("parameters", ())
        known = {parameter["name"] for parameter in extra if parameter["in"] == "query"}
        repeatable = set()
        for parameter in self.dependant.query_params:
            model = parameter.field_info.annotation
            if isinstance(model, type) and issubclass(model, BaseModel):
                schema = model.model_json_schema()["properties"]
                known |= schema.keys()
                repeatable |= {name for name, field in schema.items() if field.get("type") == "array"}
        return frozenset(known), frozenset(repeatable)


def _check_query(query: bytes, known: frozenset[str], repeatable: frozenset[str], path: str) -> None:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            home = home_of_parameter(name, path)
            detail = f"is not known here; {home}" if home else unknown(name, sorted(known))
            errors.append(FieldError(f"query/{name[:64]}", detail))
        elif name in seen and name not in repeatable:
            errors.append(FieldError(f"query/{name}", "must be given once"))
        seen.add(name)
        if len(errors) == _SHOWN:
            break
    if errors:
        raise InvalidRequest(errors)


def _check_no_body(headers: Headers) -> None:
    if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
        raise InvalidRequest.at("", "this request takes no body")
