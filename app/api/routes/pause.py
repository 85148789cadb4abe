"""Routes that pause and resume a sandbox."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.context import context_of
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.routes.sandboxes import body_of
from app.api.schemas import answers
from app.api.schemas.views import json_response

router = APIRouter(tags=["sandboxes"], route_class=StrictRoute)

PROBLEMS = (
    *("not_found", "wrong_state", "unsupported_by_runtime"),
    *("runtime_failed", "backend_error", "backend_unavailable", "backend_timeout"),
)


@router.post(
    "/sandboxes/{sandbox_id}/pause",
    operation_id="pause_sandbox",
    summary="Stop every process of a sandbox",
    response_model=answers.Sandbox,
    responses=problems(*PROBLEMS),
)
async def pause_sandbox(request: Request, sandbox_id: str) -> Response:
    """When the answer comes, none of them runs. Files, memory, stdin and output stay as they are. The time limits of
    the sandbox and of its executions go on. Repeatable."""
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    await sandbox.pause()
    return json_response(body_of(sandbox, context))


@router.post(
    "/sandboxes/{sandbox_id}/resume",
    operation_id="resume_sandbox",
    summary="Let a paused sandbox run again",
    response_model=answers.Sandbox,
    responses=problems(*PROBLEMS),
)
async def resume_sandbox(request: Request, sandbox_id: str) -> Response:
    """Signals that were sent during the pause arrive now. Repeatable, also on a sandbox that was never paused."""
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    await sandbox.resume()
    return json_response(body_of(sandbox, context))
