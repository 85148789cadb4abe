"""The pages for people, and HEAD, which works wherever GET does."""

from __future__ import annotations

import html
import re

import httpx
import pytest

from app.api.http.problem_types import PROBLEMS
from app.api.http.strict_route import StrictRoute
from tests.unit.api.service import Service, create, start


async def test_front_page_leads_to_everything_and_needs_no_key() -> None:
    async with Service(key_hashes=("0" * 64,)).client() as client:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        links = re.findall(r"<a href=([^>]+)>", page.text)
        assert links == ["/docs", "/openapi.json", "/problems", "/runtimes", "/readyz", "/metrics"]
        for link in links:
            assert (await client.get(link)).status_code in {200, 401}, link
        assert page.text.count("<pre>") == 3
        assert "export BULKHEAD_CLIENT_URL=http://localhost:8000" in page.text


async def test_front_page_shows_a_host_as_text() -> None:
    async with Service().client() as client:
        page = await client.get("/", headers={"host": "localhost:1<script>"})
        assert "<script" not in page.text


async def test_index_of_problems_leads_to_every_type() -> None:
    async with Service(key_hashes=("0" * 64,)).client() as client:
        page = await client.get("/problems")
        for slug, kind in PROBLEMS.items():
            assert f"<a href=/problems/{slug}>" in page.text
            assert html.escape(kind.title) in page.text
            assert "<a href=/problems>" in (await client.get(f"/problems/{slug}")).text


async def test_page_of_an_unknown_type_leads_a_browser_to_the_index() -> None:
    async with Service().client() as client:
        page = await client.get("/problems/nope", headers={"accept": "text/html,*/*"})
        assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "<a href=/problems>" in page.text
        assert (await client.get("/problems/nope")).json()["type"] == "/problems/not_found"


async def test_head_is_answered_wherever_get_is() -> None:
    service = Service()
    async with service.served() as live, httpx.AsyncClient(base_url=live.client.base_url, timeout=90) as client:
        await create(client, id="demo")
        await start(client, "demo", "cat", stdin="open", id="one")
        paths = {
            route.path.format(sandbox_id="demo", execution_id="one", slug="conflict")
            for route in service.app.router.routes
            if isinstance(route, StrictRoute) and "GET" in (route.methods or ())
        }
        assert len(paths) > 10
        for path in sorted(paths | {"/", "/docs", "/openapi.json", "/problems"}):
            query = "?path=." if path.endswith(("/files", "/directory", "/archive")) else ""
            got, head = await client.get(path + query), await client.head(path + query)
            assert head.content == b"", path
            if path.endswith("/files"):
                continue  # HEAD of a directory tells what it is; GET has no bytes for it
            assert head.status_code == got.status_code, path
            assert head.headers["content-type"] == got.headers["content-type"], path
            # A second later the metrics have changed; everything else is as long as before.
            if "content-length" in got.headers and path != "/metrics":
                assert head.headers["content-length"] == got.headers["content-length"], path


async def test_head_of_events_ends_at_once() -> None:
    service = Service()
    async with service.served() as live, httpx.AsyncClient(base_url=live.client.base_url, timeout=90) as client:
        await create(client, id="demo")
        await start(client, "demo", "cat", stdin="open", id="one")  # it runs on
        path = "/sandboxes/demo/executions/one/stream"
        head = await client.head(path, headers={"accept": "text/event-stream"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("path", ["/sandboxes/demo", "/healthz"])
async def test_method_that_is_not_allowed_names_head(path: str) -> None:
    async with Service().client() as client:
        answer = await client.put(path)
        assert (answer.status_code, answer.json()["type"]) == (405, "/problems/method_not_allowed")
        assert {"GET", "HEAD"} <= set(answer.headers["allow"].split(", "))
