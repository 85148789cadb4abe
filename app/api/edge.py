"""The routes and the translation of errors, put into an application."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app.api import executions, openapi, output, sandboxes, stream, system
from app.api.deps import Edge, request_id_of
from app.api.guard import Door, Guard
from app.api.problems import problem_of
from app.core.errors import BulkheadError


async def _answer(connection: HTTPConnection, error: Exception) -> Response:
    return problem_of(error).response(request_id_of(connection))


def install(app: FastAPI, edge: Edge, door: Door) -> None:
    app.state.edge = edge
    for module in (executions, sandboxes, output, stream, system):  # the busiest first: they are tried in turn
        # Not `include_router`: it keeps routers inside routers, and walking them costs 30 µs per request.
        app.router.routes.extend(module.router.routes)
    app.router.routes.extend(stream.routes)
    for kind in (BulkheadError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Guard, door=door, journal=edge.journal)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
