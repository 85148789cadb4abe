"""Routes of sandboxes: create, list, show, change, destroy."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.context import ApplicationContext, context_of, visitor_of, waiting_request
from app.api.http.bodies import read_json
from app.api.http.disconnect import ClientDisconnected, until_disconnect
from app.api.http.paging import PageQuery, page
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import created, json_body, problems
from app.api.schemas import answers, requests
from app.api.schemas.specs import changed_rules, lifetime, sandbox_spec, ttl_of
from app.api.schemas.views import Body, json_page, json_response, sandbox_body
from app.core.errors import DiskFull, InvalidRequest
from app.core.models import SandboxState
from app.core.sandboxes import Sandbox

OF_A_CREATE = (
    "invalid_request",
    "unknown_runtime",
    "runtime_not_enabled",
    "unknown_image",
    "unknown_profile",
    "policy_too_broad",
    "limit_too_high",
    "policy_not_supported",
    "capability_missing",
    "unsupported_media_type",
    "payload_too_large",
    "bound_exceeded",
    "capacity_exceeded",
    "service_stopping",
    "disk_full",
    "launch_failed",
    "runtime_failed",
    "backend_error",
    "backend_unavailable",
    "isolation_unavailable",
    "backend_timeout",
)

# A new sandbox has no files that could be deleted.
AT_A_CREATE = {"disk_full": DiskFull(1024**3, "it needs 1175093248 bytes, and 805306368 are left above the reserve")}

router = APIRouter(tags=["sandboxes"], route_class=StrictRoute)


class CreateQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait_seconds: Annotated[
        float, Field(ge=0, le=300, description="how long to hold the answer until the sandbox runs, in seconds")
    ] = 60


class SandboxQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait_seconds: Annotated[
        float,
        Field(ge=0, le=300, description="how long to hold the answer while the sandbox is `creating`, in seconds"),
    ] = 0


class SandboxListQuery(PageQuery):
    state: SandboxState | None = None
    runtime: str | None = None
    label: list[Annotated[str, Field(json_schema_extra={"pattern": "^[^:]+:"})]] = Field(
        [], description="key:value; if repeated, all must match"
    )


def body_of(sandbox: Sandbox, context: ApplicationContext) -> Body:
    # By its name in the spec, which is canonical; a runtime that was switched off meanwhile cannot be.
    return sandbox_body(sandbox, context.registry.get(sandbox.spec.runtime).info.capabilities)


@router.post(
    "/sandboxes",
    operation_id="create_sandbox",
    summary="Create a sandbox",
    status_code=201,
    response_model=answers.Sandbox,
    responses={
        200: {"model": answers.Sandbox, "description": "a sandbox with this id and the same body exists; this is it"},
        201: created("sandbox"),
        **problems(*OF_A_CREATE, "conflict", examples=AT_A_CREATE),
    },
    openapi_extra=json_body(requests.CreateSandbox),
)
async def create_sandbox(request: Request, query: Annotated[CreateQuery, Query()]) -> Response:
    """Creates a sandbox and holds the answer until it runs. If the boot fails meanwhile, the answer is a problem and
    nothing of the sandbox is left. A client that disconnects while it waits finds its sandbox again by an `id` of its
    own choice or an Idempotency-Key. Without either the sandbox is destroyed."""
    context = context_of(request)
    asked = await read_json(request, requests.CreateSandbox)
    client = visitor_of(request).client
    with waiting_request(request):
        sandbox, new = context.sandboxes.create(await sandbox_spec(asked, context, asked.id), asked.id, client)
        try:
            await until_disconnect(request.receive, context.sandboxes.wait_created(sandbox, query.wait_seconds))
        except ClientDisconnected:
            await sandbox.abandon()
            raise
    return json_response(
        body_of(sandbox, context), 201 if new else 200, {"location": f"/sandboxes/{sandbox.id}"} if new else None
    )


@router.get(
    "/sandboxes",
    operation_id="list_sandboxes",
    summary="List sandboxes",
    response_model=answers.SandboxList,
    responses=problems("invalid_request", "unknown_runtime", "runtime_not_enabled"),
)
async def list_sandboxes(request: Request, query: Annotated[SandboxListQuery, Query()]) -> Response:
    """Oldest first. Destroyed sandboxes are listed too while their record is kept."""
    context = context_of(request)
    runtime = None if query.runtime is None else context.registry.canonical(query.runtime)
    labels = [_label(text) for text in query.label]

    def wanted(sandbox: Sandbox) -> bool:
        return (
            (query.state is None or sandbox.state is query.state)
            and (runtime is None or sandbox.spec.runtime == runtime)
            and all(sandbox.labels.get(key) == value for key, value in labels)
        )

    items, next_cursor = await page(context.sandboxes, query, wanted)
    return await json_page((body_of(sandbox, context) for sandbox in items), next_cursor)


def _label(text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not colon or not key:
        meant = text[:64].replace("=", ":", 1)
        raise InvalidRequest.at(
            "query/label", f"must be key:value, such as {meant if '=' in text[1:64] else 'team:ci'}"
        )
    return key, value


@router.get(
    "/sandboxes/{sandbox_id}",
    operation_id="get_sandbox",
    summary="Show a sandbox",
    response_model=answers.Sandbox,
    responses=problems("invalid_request", "not_found", "capacity_exceeded"),
)
async def get_sandbox(request: Request, sandbox_id: str, query: Annotated[SandboxQuery, Query()]) -> Response:
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    if query.wait_seconds and sandbox.state is SandboxState.CREATING:
        with waiting_request(request):
            await until_disconnect(request.receive, sandbox.wait(query.wait_seconds))
    return json_response(body_of(sandbox, context))


@router.patch(
    "/sandboxes/{sandbox_id}",
    operation_id="update_sandbox",
    summary="Change the lifetime, idle time, labels or network rules of a sandbox",
    response_model=answers.Sandbox,
    responses=problems(
        "invalid_request",
        "policy_too_broad",
        "limit_too_high",
        "capability_missing",
        "not_found",
        "wrong_state",
        "conflict",
        "unsupported_media_type",
        "payload_too_large",
        "capacity_exceeded",
        "unsupported_by_runtime",
        "runtime_failed",
        "backend_error",
        "backend_unavailable",
        "backend_timeout",
    ),
    openapi_extra=json_body(requests.UpdateSandbox),
)
async def update_sandbox(request: Request, sandbox_id: str) -> Response:
    """Changes what the body names, all of it or nothing. When the answer comes, no connection of the sandbox is open
    that its new network rules do not permit."""
    context = context_of(request)
    sandbox = context.sandboxes.use(sandbox_id)
    asked = await read_json(request, requests.UpdateSandbox)
    given = asked.model_fields_set
    ttl_seconds = ttl_of(asked.ttl_seconds, context) if "ttl_seconds" in given else None
    idle_seconds = lifetime("idle_seconds", asked.idle_seconds, context)
    sandbox.check_update(asked.idle_counts)
    if "policy" in given:
        await sandbox.change_network(changed_rules(asked.policy, sandbox, context))
    sandbox.update(
        ttl_seconds=ttl_seconds,
        idle_seconds=idle_seconds,
        set_idle="idle_seconds" in given,
        idle_counts=asked.idle_counts,
        labels=asked.labels if "labels" in given else None,
    )
    return json_response(body_of(sandbox, context))


@router.delete(
    "/sandboxes/{sandbox_id}",
    operation_id="delete_sandbox",
    summary="Destroy a sandbox",
    status_code=204,
    response_class=Response,
    responses=problems("not_found", "runtime_failed", "backend_error", "backend_unavailable", "backend_timeout"),
)
async def delete_sandbox(request: Request, sandbox_id: str) -> Response:
    """When the answer comes, no process of the sandbox exists. Repeatable while the record is kept."""
    context = context_of(request)
    await context.sandboxes.get(sandbox_id).destroy()
    return Response(status_code=204)
