"""Puts the routes and the translation of errors into an application."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from app.api.context import ApplicationContext, context_of, request_id_of
from app.api.http.access import AccessMiddleware, AccessPolicy
from app.api.http.dispatch import Dispatch
from app.api.http.errors import InternalError, MethodNotAllowed
from app.api.http.idempotency import Idempotency, Recorded
from app.api.http.problems import problem_of
from app.api.http.strict_route import StrictRoute
from app.api.openapi import document
from app.api.routes import (
    archives,
    directories,
    docs_page,
    executions,
    files,
    network,
    output,
    pages,
    pause,
    run,
    sandboxes,
    stdin,
    stream,
    stream_tickets,
    system,
    usage,
)
from app.core.errors import BulkheadError
from app.core.idempotency import IdempotencyStore

MODULES = (  # the busiest first: they are tried in turn
    executions,
    sandboxes,
    output,
    stdin,
    stream,
    run,
    archives,
    directories,
    files,
    stream_tickets,
    pause,
    usage,
    network,
    system,
    pages,
)


async def _answer(connection: HTTPConnection, error: Exception) -> Response:
    problem = problem_of(error)
    context_of(connection).journal.refused(error)
    if problem.type.error is InternalError:
        context_of(connection).journal.failure(request_id=request_id_of(connection), error=error)
    if problem.type.error is MethodNotAllowed:
        problem = problem_of(MethodNotAllowed(_methods(connection)))
    response = problem.response(request_id_of(connection))
    if connection.scope["state"].get("close_after_problem"):
        response.headers["connection"] = "close"
    return response


def _methods(connection: HTTPConnection) -> set[str]:
    """The methods of all routes with this path, as the router names only those of the first."""
    path = connection.scope["path"]
    routes = [r for r in connection.scope["app"].router.routes if isinstance(r, Route)]
    found = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return found | {"HEAD"} if "GET" in found else found


def _answer_head(app: FastAPI) -> None:
    """HEAD works wherever GET does. Files have a HEAD of their own."""
    routes = [r for r in app.router.routes if isinstance(r, Route)]
    own = {r.path for r in routes if "HEAD" in (r.methods or ())}
    for route in routes:
        if isinstance(route, StrictRoute) and "GET" in (route.methods or ()):
            route.answers_head = route.path not in own


class Application(FastAPI):
    """Without the layers that FastAPI puts around every request: answers to unexpected errors, which our access check
    gives; telemetry, a limit for bodies and files of forms, which we do not use."""

    def openapi(self) -> dict[str, Any]:
        return document.describe(self)

    @cached_property
    def openapi_json(self) -> bytes:
        """What `/openapi.json` answers: 290 kB, made once. Making the document takes 150 ms, writing it 6 ms."""
        return json.dumps(self.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = ExceptionMiddleware(Dispatch(self.router), self.exception_handlers)
        for layer, arguments, named in reversed(self.user_middleware):
            app = layer(app, *arguments, **named)
        return app


def install(
    app: FastAPI, context: ApplicationContext, access_policy: AccessPolicy, answers: IdempotencyStore[Recorded]
) -> None:
    app.state.context = context
    app.router.routes.extend(stream.routes)  # first: for a request of HTTP they cost nothing, and a stream is one match
    for module in MODULES:
        # Not `include_router`: it keeps routers inside routers, and walking them costs 15 µs per request.
        app.router.routes.extend(module.router.routes)
    app.router.routes.extend(docs_page.routes())
    app.router.routes.extend(pages.routes)
    _answer_head(app)
    for kind in (BulkheadError, HTTPException):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Idempotency, answers=answers)
    app.add_middleware(
        AccessMiddleware,
        access_policy=access_policy,
        tickets=context.tickets,
        journal=context.journal,
        shares=context.shares,
    )
