"""Routes of executions: start, list, show, signal, resize, kill."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.context import context_of, waiting_request
from app.api.http.bodies import read_json
from app.api.http.disconnect import until_disconnect
from app.api.http.paging import PageQuery, page
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import created, json_body, problems
from app.api.schemas import answers, requests
from app.api.schemas.specs import command_of
from app.api.schemas.views import execution_body, json_page, json_response
from app.core.commands import number_of_signal
from app.core.models import Terminal

TOLD_TO_A_RUNNING_ONE = (
    "invalid_request",
    "not_found",
    "wrong_state",
    "unsupported_media_type",
    "payload_too_large",
    "runtime_failed",
    "backend_error",
    "backend_unavailable",
    "backend_timeout",
)

router = APIRouter(prefix="/sandboxes/{sandbox_id}/executions", tags=["executions"], route_class=StrictRoute)


class StartQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait_seconds: Annotated[
        float, Field(ge=0, le=60, description="how long the answer may be held until the execution ends, in seconds")
    ] = 0


class ExecutionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait_seconds: Annotated[
        float, Field(ge=0, le=60, description="how long to hold the answer until the execution ends, in seconds")
    ] = 0


class ExecutionListQuery(PageQuery):
    pass


@router.post(
    "",
    operation_id="create_execution",
    summary="Start a command",
    status_code=201,
    response_model=answers.Execution,
    responses={
        200: {
            "model": answers.Execution,
            "description": "an execution with this id and the same command exists; this is it",
        },
        201: created("execution"),
        **problems(
            "invalid_request",
            "limit_too_high",
            "capability_missing",
            "not_found",
            "conflict",
            "wrong_state",
            "unsupported_media_type",
            "payload_too_large",
            "bound_exceeded",
            "capacity_exceeded",
            "runtime_failed",
            "backend_error",
            "backend_unavailable",
            "backend_timeout",
        ),
    },
    openapi_extra=json_body(requests.CreateExecution),
)
async def create_execution(request: Request, sandbox_id: str, query: Annotated[StartQuery, Query()]) -> Response:
    """A command that cannot be started is not an error here: it is an execution that ended with `start_failed`. A
    sandbox that is `creating` is waited for, 60 seconds at most. If the client disconnects, the execution runs and is
    listed."""
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    asked = await read_json(request, requests.CreateExecution)
    with waiting_request(request):
        command = command_of(asked, sandbox, context)
        execution, new = await sandbox.execute(command, asked.id)
        if query.wait_seconds and execution.exit is None:
            await until_disconnect(request.receive, execution.wait(query.wait_seconds))
    location = f"/sandboxes/{sandbox.id}/executions/{execution.id}"
    return json_response(execution_body(execution), 201 if new else 200, {"location": location} if new else None)


@router.get(
    "",
    operation_id="list_executions",
    summary="List the executions of a sandbox",
    response_model=answers.ExecutionList,
    responses=problems("invalid_request", "not_found"),
)
async def list_executions(request: Request, sandbox_id: str, query: Annotated[ExecutionListQuery, Query()]) -> Response:
    """Oldest first."""
    sandbox = context_of(request).sandboxes.use(sandbox_id)
    items, next_cursor = await page(sandbox.executions.values(), query)
    return await json_page(map(execution_body, items), next_cursor)


@router.get(
    "/{execution_id}",
    operation_id="get_execution",
    summary="Show an execution",
    response_model=answers.Execution,
    responses=problems("invalid_request", "not_found", "capacity_exceeded"),
)
async def get_execution(
    request: Request, sandbox_id: str, execution_id: str, query: Annotated[ExecutionQuery, Query()]
) -> Response:
    execution = context_of(request).sandboxes.execution(sandbox_id, execution_id)
    if query.wait_seconds and execution.exit is None:
        with waiting_request(request):
            await until_disconnect(request.receive, execution.wait(query.wait_seconds))
    return json_response(execution_body(execution))


@router.delete(
    "/{execution_id}",
    operation_id="delete_execution",
    summary="Kill everything that an execution started",
    status_code=204,
    response_class=Response,
    responses=problems("not_found", "runtime_failed", "backend_error", "backend_unavailable", "backend_timeout"),
)
async def delete_execution(request: Request, sandbox_id: str, execution_id: str) -> Response:
    """Kills daemons too, where the runtime has `kill_tree`. Other runtimes kill what they can reach, and the exit's
    `detail` says what may live on. Repeatable. The record stays."""
    context = context_of(request)
    await context.sandboxes.execution(sandbox_id, execution_id).kill()
    return Response(status_code=204)


@router.post(
    "/{execution_id}/signal",
    operation_id="signal_execution",
    summary="Send a signal to an execution's process group",
    status_code=204,
    response_class=Response,
    responses=problems(*TOLD_TO_A_RUNNING_ONE),
    openapi_extra=json_body(requests.SignalExecution),
)
async def signal_execution(request: Request, sandbox_id: str, execution_id: str) -> Response:
    """Ctrl-C does the same. A runtime without `signal_group` reaches the first process only."""
    execution = context_of(request).sandboxes.execution(sandbox_id, execution_id)
    asked = await read_json(request, requests.SignalExecution)
    await execution.signal(number_of_signal(asked.signal))
    return Response(status_code=204)


@router.post(
    "/{execution_id}/resize",
    operation_id="resize_execution",
    summary="Change the size of an execution's terminal",
    status_code=204,
    response_class=Response,
    responses=problems(*TOLD_TO_A_RUNNING_ONE),
    openapi_extra=json_body(requests.Terminal),
)
async def resize_execution(request: Request, sandbox_id: str, execution_id: str) -> Response:
    """The programs on the terminal get SIGWINCH."""
    execution = context_of(request).sandboxes.execution(sandbox_id, execution_id)
    asked = await read_json(request, requests.Terminal)
    await execution.resize(Terminal(asked.rows, asked.cols))
    return Response(status_code=204)
