"""Where requests go: ids in paths, and the prefix of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import respx

from app.backends.boxlite.client import BoxliteClient
from app.backends.boxlite.server import BoxliteServer
from app.core.errors import BackendRefused, BackendUnavailable
from tests.boxlite.rig import QUICK

URL = "http://boxlite.test:8100"
KEY = "secret-key-0123456789"


def client(key: str | None = KEY, url: str = URL) -> BoxliteClient:
    return BoxliteClient(url, key, QUICK)


@pytest.mark.parametrize("base", [URL, f"{URL}/", f"{URL}/behind/a/proxy"])
@respx.mock
async def test_ids_are_encoded_into_one_segment_and_the_base_may_have_a_path(base: str) -> None:
    server = BoxliteServer(client(url=base), "org/team")
    route = respx.route().mock(return_value=httpx.Response(404))
    for box_id in ("a/b", "a?b#c", "a%2Fb", "..a", "a b"):
        await server.find(box_id)
    paths = [call.request.url.raw_path.decode() for call in route.calls]
    start = base.removeprefix(URL).rstrip("/") + "/v1/org/team/boxes/"
    assert paths == [start + tail for tail in ("a%2Fb", "a%3Fb%23c", "a%252Fb", "..a", "a%20b")]


@pytest.mark.parametrize("box_id", ["", ".", "..", "a\n", "ü", "\ud800", "a b", "x" * 257, 7, None, ["a"], {}])
@respx.mock
async def test_an_id_that_can_be_none_is_no_box(box_id: object) -> None:
    body = json.dumps({"box_id": box_id, "name": "n", "status": "running"})
    respx.route().mock(return_value=httpx.Response(200, text=body))
    server = BoxliteServer(client(), "")
    with pytest.raises(BackendRefused, match="no box"):
        await server.find("x")
    respx.route().mock(return_value=httpx.Response(201, json={"execution_id": box_id} if box_id != "\ud800" else {}))
    with pytest.raises(BackendRefused, match="no execution"):
        await server.execute("x", {})


@pytest.mark.parametrize("body", [None, [], {}, {"boxes": {}}, {"boxes": [{"name": "x"}]}, {"boxes": ["x"]}])
@respx.mock
async def test_a_list_that_is_none(body: object) -> None:
    respx.get(f"{URL}/v1/boxes").mock(return_value=httpx.Response(200, json=body))
    with pytest.raises(BackendRefused):
        await BoxliteServer(client(), "").boxes()


# --- the prefix


ME = {"sub": "x", "principal_type": "service_account", "scopes": []}


def _is(path: str, status: int = 200, **answer: Any) -> respx.Route:
    return respx.get(f"{URL}{path}").mock(return_value=httpx.Response(status, **answer))


@pytest.mark.parametrize(
    ("me", "path"),
    [
        ({**ME, "prefix": None}, "/v1/boxes"),  # serve 0.10.8
        ({**ME, "path_prefix": "org"}, "/v1/org/boxes"),
        ({**ME, "path_prefix": "org/team"}, "/v1/org/team/boxes"),
        ({**ME, "path_prefix": ""}, "/v1/boxes"),
        ({**ME, "path_prefix": None}, "/v1/boxes"),
        ({**ME, "path_prefix": 7}, "/v1/boxes"),
        ([], "/v1/boxes"),
    ],
)
@respx.mock
async def test_the_prefix_is_asked_for_once_however_many_want_it(me: object, path: str) -> None:
    asked, listed = _is("/v1/me", json=me), _is(path, json={"boxes": []})
    server = BoxliteServer(client(), None)
    await asyncio.gather(*(server.boxes() for _ in range(5)))
    assert asked.call_count == 1 and listed.call_count == 5


@pytest.mark.parametrize(
    ("bare", "prefixed", "path"),
    [(404, 200, "/v1/default/boxes"), (200, 200, "/v1/boxes"), (404, 404, "/v1/boxes")],
)
@respx.mock
async def test_an_old_servers_prefix_counts_only_where_it_is_needed(bare: int, prefixed: int, path: str) -> None:
    _is("/v1/me", json={**ME, "prefix": "default"})
    _is("/v1/boxes", bare, json={"boxes": []})
    _is("/v1/default/boxes", prefixed, json={"boxes": []})
    server = BoxliteServer(client(), None)
    assert await server.path("boxes") == path


@respx.mock
async def test_a_server_without_me_has_no_prefix_and_a_given_one_is_not_asked_for() -> None:
    me = _is("/v1/me", 404)
    assert await BoxliteServer(client(), None).path("boxes") == "/v1/boxes"
    assert await BoxliteServer(client(), "org").path("boxes") == "/v1/org/boxes"
    assert await BoxliteServer(client(), "").path("boxes") == "/v1/boxes"
    assert me.call_count == 1


@pytest.mark.parametrize("prefix", ["../x", "a/../b", "a b", "a?b", "a#b", "//evil", "/a", "a/", "a%2f", "ü"])
@respx.mock
async def test_a_prefix_that_leads_elsewhere_is_refused(prefix: str) -> None:
    _is("/v1/me", json={**ME, "path_prefix": prefix})
    with pytest.raises(BackendRefused, match="prefix"):
        await BoxliteServer(client(), None).boxes()


@respx.mock
async def test_a_prefix_that_could_not_be_asked_for_is_asked_for_again() -> None:
    me = _is("/v1/me", 503)
    server = BoxliteServer(client(), None)
    with pytest.raises(BackendUnavailable):
        await server.boxes()
    _is("/v1/me", json=ME)
    _is("/v1/boxes", json={"boxes": []})
    assert await server.boxes() == [] and me.call_count == 2
