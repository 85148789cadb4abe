"""The route that gives out stream tickets. `http/access.py` accepts them."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from app.api.context import context_of, visitor_of
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
    summary="Get a ticket that opens one stream once, without a key",
    status_code=201,
    response_model=answers.StreamTicket,
    responses=problems("invalid_request", "unsupported_media_type", "payload_too_large", "capacity_exceeded"),
    openapi_extra=json_body(requests.CreateStreamTicket),
)
async def create_stream_ticket(request: Request) -> Response:
    """A ticket is valid for 30 seconds and one use, as `?ticket=` of the stream. The first use spends it, even if that
    use fails. It stands in for a key and not for an allowed origin. This request does not check whether the execution
    exists. A ticket without `stdin` opens a stream that can only read: its signals and sizes are refused."""
    asked = await read_json(request, requests.CreateStreamTicket)
    expires_at = now() + timedelta(seconds=LIFE_SECONDS)
    ticket = context_of(request).tickets.issue(asked.path, asked.stdin, visitor_of(request).client)
    return json_response({"ticket": ticket, "expires_at": expires_at}, 201)
