"""A route that takes only what it declares: no other parameter, no parameter twice, and no body where it has none."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app.api.http.misplaced import home_of_parameter
from app.api.http.validation import invalid_request, unknown
from app.core.errors import FieldError, InvalidRequest

_SHOWN = 32


class StrictRoute(APIRoute):
    """For `APIRouter(route_class=StrictRoute)`. Its endpoint takes the request, the parameters of the path as text, and
    one model of the query, or less, and returns a Response. FastAPI describes it, and does not run it: what it does for
    any kind of parameter takes a fifth of the processor time of a short request. Raises InvalidRequest with every
    wrong parameter. With `answers_head` HEAD is answered like GET, and the server leaves the body out (RFC 9110,
    section 9.3.2).
    """

    answers_head = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._request_name = self.dependant.request_param_name
        self._query_name, self._query_model = self._query()
        self._known, self._repeatable = self._parameters()
        self._no_query = None if self._query_model is None else self._query_model()
        self._takes_body = "requestBody" in (self.openapi_extra or {})

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] == "HEAD" and self.answers_head:
            match = Match.FULL
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()) and not (scope["method"] == "HEAD" and self.answers_head):
            return await super().handle(scope, receive, send)  # which names the methods that it takes
        values = dict(scope["path_params"])
        query = _read_query(scope["query_string"], self._known, self._repeatable, self.path)
        if self._query_model is not None:
            values[self._query_name] = _valid(query, self._query_model) if query else self._no_query
        if not self._takes_body:
            _check_no_body(Headers(scope=scope))
        if self._request_name is not None:
            values[self._request_name] = Request(scope, receive, send)
        response: Response = await self.endpoint(**values)
        return await response(scope, receive, send)

    def _query(self) -> tuple[str, type[BaseModel] | None]:
        """The name and the model of the endpoint's parameter for the query. Raises TypeError for an endpoint with
        parameters of another kind, which nobody would fill."""
        models = self.dependant.query_params
        others = (self.dependant.header_params, self.dependant.cookie_params, self.dependant.body_params)
        if any(others) or self.dependant.dependencies or len(models) > 1:
            raise TypeError(f"{self.name} takes more than the request, its path and one model of the query")
        if any(parameter.field_info.annotation is not str for parameter in self.dependant.path_params):
            raise TypeError(f"{self.name} takes a parameter of the path that is not a str")
        if not models:
            return "", None
        model = models[0].field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{self.name} takes a parameter of the query that is not in a model")
        return models[0].name, model

    def _parameters(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of the query's parameters, and of those that may be repeated."""
        extra = (self.openapi_extra or {}).get("parameters", ())
        known = {parameter["name"] for parameter in extra if parameter["in"] == "query"}
        if self._query_model is None:
            return frozenset(known), frozenset()
        schema = self._query_model.model_json_schema()["properties"]
        repeatable = {name for name, field in schema.items() if field.get("type") == "array"}
        return frozenset(known | schema.keys()), frozenset(repeatable)


def _read_query(
    query: bytes, known: frozenset[str], repeatable: frozenset[str], path: str
) -> dict[str, str | list[str]]:
    """The parameters by name. One that may be repeated has a list."""
    values: dict[str, str | list[str]] = {}
    if not query:
        return values
    errors: list[FieldError] = []
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            home = home_of_parameter(name, path)
            detail = f"is not known here; {home}" if home else unknown(name, sorted(known))
            errors.append(FieldError(f"query/{name[:64]}", detail))
        elif name in repeatable:
            values[name] = [*values.get(name, ()), value]
        elif name in values:
            errors.append(FieldError(f"query/{name}", "must be given once"))
        else:
            values[name] = value
        if len(errors) == _SHOWN:
            break
    if errors:
        raise InvalidRequest(errors)
    return values


def _valid(query: dict[str, str | list[str]], model: type[BaseModel]) -> BaseModel:
    try:
        return model.model_validate(query)
    except ValidationError as error:
        raise invalid_request(error, model, "query") from None


def _check_no_body(headers: Headers) -> None:
    if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
        raise InvalidRequest.at("", "this request takes no body")
