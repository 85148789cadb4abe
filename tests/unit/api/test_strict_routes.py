"""What a route does not declare is refused by name: parameters, parameters twice, bodies, keys twice."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from fastapi import Header, Query, Request
from pydantic import BaseModel

from app.api.http.misplaced import EXECUTION_FIELDS, RUN_FIELDS, SANDBOX_FIELDS
from app.api.http.strict_route import StrictRoute
from app.api.http.validation import OBJECTS
from app.api.schemas.requests import CreateExecution, CreateSandbox
from app.api.schemas.runs import JobFields
from app.core.capabilities import Capability
from tests.null_backend import CAPABILITIES, NullBackend
from tests.unit.api.service import Service

EXECUTIONS = "/sandboxes/demo/executions"
OF_SANDBOX = "is a limit of a new sandbox"
ROUTES_WITHOUT_A_QUERY = [
    ("POST", "/run"),
    ("POST", "/stream-tickets"),
    ("GET", "/runtimes"),
    ("GET", "/healthz"),
    ("PATCH", "/sandboxes/demo"),
    ("DELETE", "/sandboxes/demo"),
    ("POST", "/sandboxes/demo/pause"),
    ("POST", "/sandboxes/demo/resume"),
    ("DELETE", "/sandboxes/demo/executions/one"),
    ("POST", "/sandboxes/demo/executions/one/signal"),
]


async def refused(method: str, path: str, **request: Any) -> dict[str, str]:
    """The first error of the problem."""
    service = Service([NullBackend(capabilities=CAPABILITIES | {Capability.PAUSE})])
    async with service.client() as client:
        assert (await client.post("/sandboxes", json={"id": "demo"})).status_code == 201
        answer = await client.request(method, path, **request)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (422, "/problems/invalid_request"), problem
        assert len(service.backend.created) == 1
        error: dict[str, str] = problem["errors"][0]
        return error


def test_every_route_of_the_api_is_strict() -> None:
    routes = [route for route in Service().app.router.routes if hasattr(route, "operation_id")]
    assert len(routes) > 25
    assert all(isinstance(route, StrictRoute) for route in routes)


class SomeQuery(BaseModel):
    wait_seconds: float = 0


async def takes_a_header(request: Request, x_name: Annotated[str, Header()]) -> None: ...
async def takes_a_number_in_its_path(request: Request, number: int) -> None: ...
async def takes_a_query_without_a_model(request: Request, limit: int = 1) -> None: ...
async def takes_two_queries(one: Annotated[SomeQuery, Query()], two: Annotated[SomeQuery, Query()]) -> None: ...
async def takes_a_body(body: SomeQuery) -> None: ...


@pytest.mark.parametrize(
    "endpoint",
    [takes_a_header, takes_a_number_in_its_path, takes_a_query_without_a_model, takes_two_queries, takes_a_body],
)
def test_endpoint_with_a_parameter_that_nobody_would_fill_is_refused_when_it_is_declared(endpoint: Any) -> None:
    with pytest.raises(TypeError, match=endpoint.__name__):
        StrictRoute("/{number}", endpoint)


@pytest.mark.parametrize(("method", "path"), ROUTES_WITHOUT_A_QUERY)
async def test_parameter_that_a_route_does_not_have_is_refused(method: str, path: str) -> None:
    error = await refused(method, f"{path}?from=", json={} if method in {"POST", "PATCH"} else None)
    assert error == {"pointer": "query/from", "detail": "is not known here"}


@pytest.mark.parametrize("query", ["limit=1&limit=2", "state=running&state=running", "cursor=MA&limit=5&cursor=MA"])
async def test_parameter_that_is_given_twice_is_refused(query: str) -> None:
    name = query.partition("=")[0]
    assert await refused("GET", f"/sandboxes?{query}") == {"pointer": f"query/{name}", "detail": "must be given once"}


async def test_parameter_of_a_file_that_is_given_twice_is_refused() -> None:
    error = await refused("PUT", "/sandboxes/demo/files?path=a&mode=644&mode=600", content=b"x")
    assert error == {"pointer": "query/mode", "detail": "must be given once"}


async def test_label_may_be_repeated() -> None:
    async with Service().client() as client:
        assert (await client.get("/sandboxes?label=a:1&label=b:2")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sandboxes/demo/pause"), ("DELETE", "/sandboxes/demo"), ("GET", "/runtimes"), ("GET", "/sandboxes")],
)
async def test_body_that_a_route_does_not_take_is_refused(method: str, path: str) -> None:
    for request in ({"content": b"{}"}, {"content": pieces()}):
        assert await refused(method, path, **request) == {"pointer": "", "detail": "this request takes no body"}


async def pieces() -> Any:
    yield b"{}"


async def test_body_of_no_bytes_is_none() -> None:
    async with Service().client() as client:
        assert (await client.request("GET", "/runtimes", headers={"content-length": "0"})).status_code == 200


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"id": "a", "id": "b"}', "id"),
        ('{"env": {"A": "1", "A": "2"}}', "A"),
        ('{"limits": {"cpus": 1}, "limits": {"cpus": 2}}', "limits"),
        ('{"limits": {"cpus": 1, "\\u0063pus": 2}}', "cpus"),
    ],
)
async def test_key_that_is_there_twice_is_refused(body: str, key: str) -> None:
    error = await refused("POST", "/sandboxes", content=body, headers={"content-type": "application/json"})
    assert error == {"pointer": "", "detail": f"the key {key!r} occurs twice in one object"}


@pytest.mark.parametrize("text", ["x", '\\\\\\"a\\":', "{:", "\u00e9\\u003a"])
async def test_key_that_is_there_twice_in_a_large_body_is_refused_and_what_looks_like_one_is_not(text: str) -> None:
    """Its keys are counted before and after it is read."""
    headers = {"content-type": "application/json"}
    once = '"files":[{"path":"a","content":"%s"},{"path":"b:","content":"b"}]' % (text * 300_000)
    for more in (',"env":{"A":"1","A":"1"}', ',"files":[{"path":"c","content":"c"}]', ',"command":["cat"]'):
        content = f'{{"command":["cat"],{once}{more}}}'.encode()
        error = await refused("POST", "/run", content=content, headers=headers)
        assert error == {"pointer": "", "detail": "the body has a key twice in one object"}
    async with Service().client() as client:
        content = f'{{"command":["exit","0"],{once},"env":{{"A":"1","B":"1"}}}}'.encode()
        assert (await client.post("/run", content=content, headers=headers)).status_code == 200


async def test_key_that_is_there_many_times_is_refused_before_all_of_them_are_looked_at() -> None:
    body = "{" + ",".join(['"limits":{}'] * (OBJECTS + 1)) + "}"
    error = await refused("POST", "/sandboxes", content=body, headers={"content-type": "application/json"})
    assert error == {"pointer": "", "detail": "the body has a key twice in one object"}


@pytest.mark.parametrize(
    ("body", "pointer", "near"),
    [
        ({"runtme": "process"}, "/runtme", "runtime"),
        ({"limits": {"memory_mb": 64}}, "/limits/memory_mb", "memory_mib"),
        ({"policy": {"network": {"mod": "none"}}}, "/policy/network/mod", "mode"),
        ({"memory_mib": 64}, "/memory_mib", "limits.memory_mib"),
        ({"memory": 64}, "/memory", "limits.memory_mib"),
        ({"network": "none"}, "/network", "policy.network"),
        ({"ttl": 60}, "/ttl", "ttl_seconds"),
        ({"cwd": "/tmp"}, "/cwd", "workdir"),
        ({"environment": {}}, "/environment", "env"),
        ({"xyzzy": 1}, "/xyzzy", None),
        ({"x": 1}, "/x", None),
    ],
)
async def test_unknown_field_names_the_nearest_that_is_known(body: Any, pointer: str, near: str | None) -> None:
    detail = "is not known here" + (f"; did you mean {near!r}?" if near else "")
    assert await refused("POST", "/sandboxes", json=body) == {"pointer": pointer, "detail": detail}


COMMAND = {"command": ["true"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer", "home"),
    [
        ("POST", EXECUTIONS, {**COMMAND, "wait_seconds": 5}, "/wait_seconds", "goes into the query: ?wait_seconds=5"),
        ("POST", EXECUTIONS, {**COMMAND, "limits": {"output_bytes": 5}}, "/limits/output_bytes", OF_SANDBOX),
        ("POST", EXECUTIONS, {**COMMAND, "collect": ["a"]}, "/collect", "is a field of a run"),
        ("POST", "/sandboxes", {"limits": {"cpu_seconds": 3}}, "/limits/cpu_seconds", "is a limit of an execution"),
        ("POST", "/sandboxes", COMMAND, "/command", "is a field of an execution"),
        ("PATCH", "/sandboxes/demo", {"limits": {}}, "/limits", "is a field of a new sandbox"),
        ("POST", "/sandboxes/demo/run", {**COMMAND, "limits": {"cpus": 1}}, "/limits/cpus", OF_SANDBOX),
        ("POST", "/sandboxes/demo/run", {**COMMAND, "image": "a"}, "/image", "is a field of a new sandbox"),
    ],
)
async def test_field_of_another_request_is_told_where_it_belongs(
    method: str, path: str, body: Any, pointer: str, home: str
) -> None:
    error = await refused(method, path, json=body)
    assert error == {"pointer": pointer, "detail": f"is not known here; it {home}"}


@pytest.mark.parametrize("path", ["/run", "/sandboxes/demo/run"])
async def test_a_run_takes_no_id_and_no_time_to_wait(path: str) -> None:
    waits = "is not known here; a run always waits; timeout_seconds bounds it"
    error = await refused("POST", path, json={**COMMAND, "wait_seconds": 5})
    assert error == {"pointer": "/wait_seconds", "detail": waits}
    error = await refused("POST", f"{path}?wait_seconds=5", json=COMMAND)
    assert error == {"pointer": "query/wait_seconds", "detail": waits}
    error = await refused("POST", path, json={**COMMAND, "id": "one"})
    assert error == {"pointer": "/id", "detail": "is not known here; the service chooses the ids of a run"}


def test_names_of_fields_that_belong_elsewhere_are_those_of_the_schemas() -> None:
    assert CreateSandbox.model_fields.keys() == SANDBOX_FIELDS
    assert CreateExecution.model_fields.keys() - SANDBOX_FIELDS - {"limits"} == EXECUTION_FIELDS
    assert JobFields.model_fields.keys() - EXECUTION_FIELDS == RUN_FIELDS


async def test_unknown_field_of_a_file_of_a_run_names_the_nearest() -> None:
    body = {"command": ["true"], "files": [{"path": "a", "contnt": "x"}]}
    error = await refused("POST", "/run", content=json.dumps(body), headers={"content-type": "application/json"})
    assert error == {"pointer": "/files/0/contnt", "detail": "is not known here; did you mean 'content'?"}


async def test_unknown_parameter_names_the_nearest() -> None:
    error = await refused("GET", "/sandboxes?lable=a:b")
    assert error == {"pointer": "query/lable", "detail": "is not known here; did you mean 'label'?"}


async def test_empty_body_is_called_empty() -> None:
    error = await refused("POST", "/sandboxes", content=b"", headers={"content-type": "application/json"})
    assert error == {"pointer": "", "detail": "the body is empty; send a JSON object, {} for all defaults"}
