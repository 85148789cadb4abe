"""Where requests go: ids in paths, the prefix of the server, and its address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from app.backends.boxlite.client import BoxliteClient
from app.backends.boxlite.connection_pool import ServerAddress
from app.backends.boxlite.server import BoxliteServer
from app.core.errors import BackendRefused, BackendUnavailable
from app.settings.boxlite import BoxliteSettings
from tests.boxlite.answering import AnsweringServer, answering, response
from tests.boxlite.double.http import Request, Response
from tests.boxlite.rig import QUICK

KEY = "secret-key-0123456789"


@asynccontextmanager
async def asked(
    answers: dict[str, Response], prefix: str | None = None, base: str = ""
) -> AsyncIterator[tuple[BoxliteServer, AnsweringServer]]:
    """`answers` by path, which a test may change; 404 for others. `base`: behind the server's address."""

    async def answer(request: Request) -> Response:
        return answers.get(request.path) or response(404)

    async with answering(answer) as listener:
        ours = BoxliteClient(listener.url + base, KEY, QUICK)
        try:
            yield BoxliteServer(ours, prefix), listener
        finally:
            await ours.aclose()


def asked_for(listener: AnsweringServer, path: str) -> int:
    return sum(request.path == path for request in listener.requests)


@pytest.mark.parametrize("base", ["", "/", "/behind/a/proxy"])
async def test_ids_are_encoded_into_one_segment_and_the_base_may_have_a_path(base: str) -> None:
    async with asked({}, "org/team", base) as (server, listener):
        for box_id in ("a/b", "a?b#c", "a%2Fb", "..a", "a b"):
            await server.find(box_id)
    start = base.rstrip("/") + "/v1/org/team/boxes/"
    wanted = [start + tail for tail in ("a%2Fb", "a%3Fb%23c", "a%252Fb", "..a", "a%20b")]
    assert [request.target for request in listener.requests] == wanted


@pytest.mark.parametrize("box_id", ["", ".", "..", "a\n", "ü", "\ud800", "a b", "x" * 257, 7, None, ["a"], {}])
async def test_an_id_that_can_be_none_is_no_box(box_id: object) -> None:
    body = {"box_id": box_id, "name": "n", "status": "running"}
    execution = {"execution_id": box_id} if box_id != "\ud800" else {}
    answers = {"/v1/boxes/x": response(200, json=body), "/v1/boxes/x/exec": response(201, json=execution)}
    async with asked(answers, "") as (server, _):
        with pytest.raises(BackendRefused, match="no box"):
            await server.find("x")
        with pytest.raises(BackendRefused, match="no execution"):
            await server.execute("x", {})


@pytest.mark.parametrize("body", [None, [], {}, {"boxes": {}}, {"boxes": [{"name": "x"}]}, {"boxes": ["x"]}])
async def test_a_list_that_is_none(body: object) -> None:
    answer = response(200, content=b"null", headers={"content-type": "application/json"})
    async with asked({"/v1/boxes": answer if body is None else response(200, json=body)}, "") as (server, _):
        with pytest.raises(BackendRefused):
            await server.boxes()


# --- the address


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "authority", "path"),
    [
        ("http://h:8100", "h", 8100, False, "h:8100", ""),
        ("http://h", "h", 80, False, "h", ""),
        ("http://h:80/", "h", 80, False, "h", ""),
        ("https://h", "h", 443, True, "h", ""),
        ("https://h:8443/a/b/", "h", 8443, True, "h:8443", "/a/b"),
        ("https://h/base/http", "h", 443, True, "h", "/base/http"),
        ("http://[::1]:8100", "::1", 8100, False, "[::1]:8100", ""),
        ("http://BÜCHER.test/ü%20", "xn--bcher-kva.test", 80, False, "xn--bcher-kva.test", "/%C3%BC%20"),
    ],
)
def test_an_address_is_read_as_its_scheme_says(
    url: str, host: str, port: int, tls: bool, authority: str, path: str
) -> None:
    assert BoxliteSettings(url=url).url == url
    assert ServerAddress.of(url) == ServerAddress(host, port, tls, authority, path)


@pytest.mark.parametrize(
    "url", ["http://h:99999", "http://h:x", "http://h:0", "http://a..b", "http://:80", "http://[x"]
)
def test_an_address_that_is_none_is_refused_as_a_setting(url: str) -> None:
    with pytest.raises(ValidationError, match="must be http://host"):
        BoxliteSettings(url=url)


# --- the prefix


ME = {"sub": "x", "principal_type": "service_account", "scopes": []}


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
async def test_the_prefix_is_asked_for_once_however_many_want_it(me: object, path: str) -> None:
    answers = {"/v1/me": response(200, json=me), path: response(200, json={"boxes": []})}
    async with asked(answers) as (server, listener):
        await asyncio.gather(*(server.boxes() for _ in range(5)))
    assert asked_for(listener, "/v1/me") == 1 and asked_for(listener, path) == 5


@pytest.mark.parametrize(
    ("bare", "prefixed", "path"),
    [(404, 200, "/v1/default/boxes"), (200, 200, "/v1/boxes"), (404, 404, "/v1/boxes")],
)
async def test_an_old_servers_prefix_counts_only_where_it_is_needed(bare: int, prefixed: int, path: str) -> None:
    answers = {
        "/v1/me": response(200, json={**ME, "prefix": "default"}),
        "/v1/boxes": response(bare, json={"boxes": []}),
        "/v1/default/boxes": response(prefixed, json={"boxes": []}),
    }
    async with asked(answers) as (server, _):
        assert await server.path("boxes") == path


async def test_a_server_without_me_has_no_prefix_and_a_given_one_is_not_asked_for() -> None:
    for prefix, path, times in ((None, "/v1/boxes", 1), ("org", "/v1/org/boxes", 0), ("", "/v1/boxes", 0)):
        async with asked({}, prefix) as (server, listener):
            assert await server.path("boxes") == path
        assert asked_for(listener, "/v1/me") == times


@pytest.mark.parametrize("prefix", ["../x", "a/../b", "a b", "a?b", "a#b", "//evil", "/a", "a/", "a%2f", "ü"])
async def test_a_prefix_that_leads_elsewhere_is_refused(prefix: str) -> None:
    async with asked({"/v1/me": response(200, json={**ME, "path_prefix": prefix})}) as (server, _):
        with pytest.raises(BackendRefused, match="prefix"):
            await server.boxes()


async def test_a_prefix_that_could_not_be_asked_for_is_asked_for_again() -> None:
    answers = {"/v1/me": response(503)}
    async with asked(answers) as (server, listener):
        with pytest.raises(BackendUnavailable):
            await server.boxes()
        answers |= {"/v1/me": response(200, json=ME), "/v1/boxes": response(200, json={"boxes": []})}
        assert await server.boxes() == [] and asked_for(listener, "/v1/me") == 2
