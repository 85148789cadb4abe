"""Routes of usage: what a sandbox, or one execution of it, takes of its limits."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.context import context_of
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.schemas import answers
from app.api.schemas.views import json_response, usage_body

router = APIRouter(prefix="/sandboxes/{sandbox_id}", route_class=StrictRoute)

_OF_A_RUNTIME = ("backend_error", "backend_unavailable", "backend_timeout")


@router.get(
    "/usage",
    operation_id="get_sandbox_usage",
    summary="Show what a sandbox uses",
    response_model=answers.ResourceUsage,
    responses=problems("not_found", "wrong_state", *_OF_A_RUNTIME),
    tags=["sandboxes"],
)
async def get_sandbox_usage(request: Request, sandbox_id: str) -> Response:
    """As measured now. A figure that nobody knows is null."""
    sandbox = context_of(request).sandboxes.use(sandbox_id)
    return json_response(usage_body(await sandbox.usage()))


@router.get(
    "/executions/{execution_id}/usage",
    operation_id="get_execution_usage",
    summary="Show what an execution uses",
    response_model=answers.ResourceUsage,
    responses=problems("not_found", *_OF_A_RUNTIME),
    tags=["executions"],
)
async def get_execution_usage(request: Request, sandbox_id: str, execution_id: str) -> Response:
    """As measured now. After its end what it left behind counts, and when that is gone the figures are final."""
    execution = context_of(request).sandboxes.execution(sandbox_id, execution_id)
    return json_response(usage_body(await execution.usage()))
