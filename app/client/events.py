"""Server-Sent Events, as the client reads them: an answer that was cut is asked for again, behind its last event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx

from app.client.errors import ClientError, ServiceUnreachable, problem_of, reason_of

CUTS, CUT_SECONDS = 3, 0.2  # one after the other without an event; the pause after the first


@dataclass(frozen=True, slots=True)
class ServerEvent:
    kind: str
    id: str
    data: dict[str, Any]


async def follow(
    url: str, ask: Callable[[dict[str, str]], AbstractAsyncContextManager[httpx.Response]]
) -> AsyncIterator[ServerEvent]:
    """Yields events up to the one named `end`. `ask` opens the answer, with the headers that it is given. Raises
    ServiceProblem, ServiceUnreachable, ClientError."""
    headers, cuts = {"Accept": "text/event-stream"}, 0
    while True:
        why = "it ended too early"
        try:
            async with ask(headers) as response:
                if not response.is_success:
                    raise problem_of(response.status_code, response.reason_phrase, await response.aread())
                async for event in _events(response.aiter_lines()):
                    if event.kind == "end":
                        return
                    if event.kind == "problem":
                        raise ClientError(str(event.data.get("problem", {}).get("detail", "the service failed")))
                    headers["Last-Event-ID"], cuts = event.id, 0
                    yield event
        except httpx.ConnectError as error:
            raise ServiceUnreachable(url, reason_of(error)) from error
        except httpx.TransportError as error:
            why = reason_of(error)
        cuts += 1
        if cuts > CUTS:
            raise ClientError(f"the connection to {url} was cut ({why})")
        await asyncio.sleep(cuts * CUT_SECONDS)


async def _events(lines: AsyncIterable[str]) -> AsyncIterator[ServerEvent]:
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            yield ServerEvent(fields.get("event", "message"), fields.get("id", ""), _object(fields["data"]))
        fields = {}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ClientError("the service sent an event that is not a JSON object")
    return found
