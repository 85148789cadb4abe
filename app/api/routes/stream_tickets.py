"""The route that gives out stream tickets. The guard takes them."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from app.api.context import edge_of, visitor_of
from app.api.http.bodies import read_json
from app.api.http.strict_route import StrictRoute
from app.api.http.tickets import LIFE_SECONDS
from app.api.openapi.documents import json_body, problems
from app.api.schemas import answers, requests
from app.api.schemas.views import json_response
from app.core.models import now

router = APIRouter(tags=["executions"], route_class=StrictRoute)


@router.post(
    "/stream-tickets",
    operation_id="create_stream_ticket",
    summary="A right to open one stream once, without a header",
    status_code=201,
    response_model=answers.StreamTicket,
    responses=problems("invalid_request", "unsupported_media_type", "payload_too_large", "capacity_exceeded"),
    openapi_extra=json_body(requests.CreateStreamTicket),
)
async def create_stream_ticket(request: Request) -> Response:
    """For 30 seconds and one use, whatever comes of it, as `?ticket=` of the stream. It stands in for a key, not for an
    allowed origin. Nobody looks whether the execution exists. Without `stdin` it opens a stream that only looks on: its
    signals and sizes are refused too."""
    asked = await read_json(request, requests.CreateStreamTicket)
    expires_at = now() + timedelta(seconds=LIFE_SECONDS)
    ticket = edge_of(request).tickets.issue(asked.path, asked.stdin, visitor_of(request).client)
    return json_response({"ticket": ticket, "expires_at": expires_at}, 201)
