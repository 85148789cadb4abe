"""The service itself: runtimes, health, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.context import ApplicationContext, context_of, request_id_of, visitor_of
from app.api.http.problems import problem_of
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.api.schemas import answers
from app.api.schemas.views import Body, json_response
from app.core.backend import Backend, RuntimeInfo
from app.core.errors import BackendUnavailable, BulkheadError, Refused
from app.core.limits import LIMITS, lower
from app.core.registry import AUTO

router = APIRouter(tags=["service"], route_class=StrictRoute)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/runtimes",
    operation_id="list_runtimes",
    summary="List the runtimes and what they can do",
    response_model=answers.RuntimeList,
    responses=problems(),
)
async def list_runtimes(request: Request) -> Response:
    context = context_of(request)
    answers = await context.readiness.all()
    return json_response({"items": [_runtime(b, answers[b.info.name], context) for b in context.registry]})


def _runtime(backend: Backend, answer: BulkheadError | None, context: ApplicationContext) -> Body:
    info, own = backend.info, backend.info.command_limits
    limits: Body = {}
    for name, limit in lower(context.ranges, info.ceilings).items():
        row = LIMITS[name]
        if row.is_enforced(info.capabilities):
            limits[name] = {"default": row.number(limit.default), "ceiling": row.number(limit.ceiling)}
    for name in ("argument_bytes", "arguments", "variables", "total_bytes"):
        limits[name] = {"default": None, "ceiling": getattr(own, name)}
    return {
        "name": info.name,
        "aliases": sorted(info.aliases),
        "enabled": context.registry.enabled(info.name),
        "available": answer is None,
        "reason": _reason(info, answer),
        "version": info.version,
        "tier": info.tier,
        "capabilities": sorted(info.capabilities),
        "limits": limits,
    }


def _reason(info: RuntimeInfo, answer: BulkheadError | None) -> str | None:
    """Why a runtime does not work, or what it cannot do although it works."""
    return info.limitation or None if answer is None else str(answer)


@router.get(
    "/healthz",
    operation_id="check_alive",
    summary="Ask whether the service is alive",
    response_model=answers.Health,
    responses=problems(),
)
async def check_alive() -> Response:
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    operation_id="check_ready",
    summary="Ask whether the default runtime works",
    response_model=answers.Ready,
    responses=problems("backend_unavailable", "isolation_unavailable"),
)
async def check_ready(request: Request) -> Response:
    """A runtime is ready if it works and has the operator's default storage. With the default `auto` one such runtime
    is enough. The service asks the runtimes at most once a second. If it is not ready, the problem also has the member
    `runtimes`."""
    context = context_of(request)
    answers = await context.readiness.for_defaults()
    runtimes: list[Body] = [
        {"name": name, "ready": answers[name] is None, "reason": _reason(backend.info, answers[name])}
        for backend in context.registry
        if context.registry.enabled(name := backend.info.name)
    ]
    try:
        default = context.registry.default
        error = _none_works(runtimes) if default == AUTO else answers[default]
    except Refused as refused:  # the operator switched the default off, and nothing else
        default, error = "", BackendUnavailable("", str(refused))
    if visitor_of(request).foreign:
        return _ready_or_not(request, error)
    if error is None:
        return json_response({"default": default, "runtimes": runtimes})
    return problem_of(error).response(request_id_of(request), runtimes=runtimes)


def _ready_or_not(request: Request, error: BulkheadError | None) -> Response:
    """The least that a load balancer needs. A foreign web page gets no more than this."""
    if error is None:
        return json_response({"default": "", "runtimes": []})
    return problem_of(BackendUnavailable("", "the service is not ready")).response(request_id_of(request), runtimes=[])


def _none_works(runtimes: list[Body]) -> BulkheadError | None:
    """With the default `auto` one runtime that works is enough."""
    if any(runtime["ready"] for runtime in runtimes):
        return None
    reasons = "; ".join(f"{runtime['name']}: {runtime['reason']}" for runtime in runtimes)
    return BackendUnavailable(AUTO, f"no runtime works: {reasons or 'none is enabled'}")


@router.get(
    "/metrics",
    operation_id="read_metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
)
async def read_metrics(request: Request) -> Response:
    context = context_of(request)
    await context.readiness.all()
    return Response(context.metrics(), headers={"content-type": METRICS_TYPE})
