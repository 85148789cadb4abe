"""The pages for people: the front page, and what each type of problem means."""

from __future__ import annotations

import html
import json
import re

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse
from starlette.routing import Route

from app import __version__
from app.api.http.open_paths import FRONT, INDEX
from app.api.http.problem_types import PROBLEMS, ProblemType
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import example_of, problems
from app.core.errors import NotFound

router = APIRouter(tags=["service"], route_class=StrictRoute)

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { line-height: 1.2 } h2 { font-size: 1.1rem; margin-top: 2rem }
pre { padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; background: rgb(128 128 128 / .15) }
code, pre { font: 14px/1.5 ui-monospace, monospace }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .8rem .3rem 0;
vertical-align: top; border-bottom: 1px solid rgb(128 128 128 / .3); overflow-wrap: anywhere }
@media (max-width: 36rem) { td, th { display: block; border: 0; padding: .1rem 0 } th { display: none }
tr { display: block; padding: .5rem 0; border-bottom: 1px solid rgb(128 128 128 / .3) } }
"""

_LINKS = (
    ("/docs", "The API, to read and to try"),
    ("/openapi.json", "The API as an OpenAPI document, for generators of clients"),
    (INDEX, "Every type of problem, and what helps"),
    ("/runtimes", "The runtimes, what they can do and their limits"),
    ("/readyz", "Whether the service can make sandboxes"),
    ("/metrics", "Metrics for Prometheus"),
)


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<link rel=icon href=/docs/favicon.png><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{body}</html>",
        status,
    )


def _with_code(text: str) -> str:
    """Names are between backticks in these sentences."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


# --- the front page


async def _front(request: Request) -> Response:
    url = html.escape(str(request.base_url).rstrip("/"))
    commands = (
        ("Run one command in a sandbox of its own", f"export BULKHEAD_CLIENT_URL={url}\nbulkhead run -- echo hello"),
        (
            "The same by HTTP",
            f"curl -s {url}/run -H 'Content-Type: application/json' \\\n"
            """     -d '{"command": ["echo", "hello"]}'""",
        ),
        (
            "Keep a sandbox, and run several commands in it",
            "sandbox=$(bulkhead create)\nbulkhead exec $sandbox -- sh -c 'echo hello > note'\n"
            "bulkhead exec $sandbox -- cat note\nbulkhead rm $sandbox",
        ),
    )
    links = "".join(f"<tr><td><a href={path}>{path}</a><td>{sentence}" for path, sentence in _LINKS)
    blocks = "".join(f"<h2>{title}</h2><pre>{text}</pre>" for title, text in commands)
    return _page(
        "Bulkhead",
        f"<p>This service runs code that nobody trusts, and streams its output live. Version {__version__}.</p>"
        f"<table>{links}</table>{blocks}<p>If the service has API keys, send one with every command: "
        "<code>export BULKHEAD_CLIENT_KEY=…</code> for <code>bulkhead</code>, the header "
        "<code>Authorization: Bearer …</code> for <code>curl</code>.</p>",
    )


# --- problems


async def _index(_: Request) -> Response:
    rows = "".join(
        f"<tr><td><a href={INDEX}/{kind.slug}><code>{kind.slug}</code></a><td>{kind.status}"
        f"<td>{html.escape(kind.title)}"
        for kind in sorted(PROBLEMS.values(), key=lambda kind: (kind.status, kind.slug))
    )
    return _page(
        "Problems",
        "<p>An answer that is an error has one of these types. Its body is JSON, as RFC 9457 describes it.</p>"
        f"<table><tr><th>Type<th>Status<th>Title{rows}</table>",
    )


@router.get(
    "/problems/{slug}",
    operation_id="explain_problem",
    summary="Explain a type of problem, for people",
    response_class=HTMLResponse,
    responses=problems("not_found"),
)
async def explain_problem(request: Request, slug: str) -> Response:
    kind = PROBLEMS.get(slug)
    if kind is None and "text/html" in request.headers.get("accept", ""):
        return _page("There is no such type of problem", f"<p><a href={INDEX}>All types of problems</a></p>", 404)
    if kind is None:
        raise NotFound("problem type", slug[:64])
    return _page(kind.title, _explanation(kind))


def _explanation(kind: ProblemType) -> str:
    example = example_of(kind)
    rows = "".join(
        f"<tr><td><code>{member.name}</code><td>{_with_code(member.json_type)}<td>{_with_code(member.meaning)}"
        f"<td><code>{html.escape(_json(example[member.name]))}</code>"
        for member in kind.members
    )
    table = f"<h2>Extra fields</h2><table><tr><th>Name<th>Type<th>Meaning<th>Example{rows}</table>"
    return (
        f"<p><code>{kind.slug}</code>, status {kind.status}</p><p>{_with_code(kind.meaning)}</p>"
        + (table if rows else "")
        + f"<h2>Example</h2><pre>{html.escape(_json(example, indent=2))}</pre>"
        + f"<p><a href={INDEX}>All types of problems</a></p>"
    )


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


routes = [
    Route(FRONT, _front, include_in_schema=False),
    Route(INDEX, _index, include_in_schema=False),
]
