"""What the double answers is what the published contract of the BoxLite API says, where that document is at hand.

It is not part of this repository: BULKHEAD_TEST_BOXLITE_CONTRACT names the file. The real server breaks it in the ways
that `DEVIATIONS` lists, and so does the double.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.boxlite.client import Client, box_double

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ROOT.parent / "shared" / "data" / "box.openapi.yaml"
DEVIATIONS = {
    ("post", "/{prefix}/boxes/{box_id}/exec", 500): "a command that cannot be started",
    ("post", "/{prefix}/boxes/{box_id}/executions/{exec_id}/signal", 500): "a process that has ended",
    ("post", "/{prefix}/boxes/{box_id}/executions/{exec_id}/signal", 400): "a signal that is not allowed",
}


def contract() -> dict[str, Any]:
    path = Path(os.environ.get("BULKHEAD_TEST_BOXLITE_CONTRACT") or BESIDE)
    if not path.is_file():  # no feature of a host, so that nothing demands it
        pytest.skip("BULKHEAD_TEST_BOXLITE_CONTRACT names no file")
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def template(document: dict[str, Any], method: str, path: str) -> str:
    """The path of the contract that a request of ours goes to. This server has no prefix."""
    for pattern, operations in document["paths"].items():
        shape = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(pattern.replace("/{prefix}", "")))
        if method in operations and re.fullmatch(f"/v1{shape}", path):
            return str(pattern)
    raise AssertionError(f"{method} {path} is not in the contract")


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        part: Any = document
        for key in node["$ref"].removeprefix("#/").split("/"):
            part = part[key]
        node = part
    return node


def without_nulls(value: Any) -> Any:
    """The server writes null where the contract leaves a field out."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def faults(document: dict[str, Any], answers: list[httpx.Response]) -> Iterator[str]:
    for answer in answers:
        method, path = answer.request.method.lower(), answer.request.url.path
        pattern = template(document, method, path)
        responses = document["paths"][pattern][method]["responses"]
        if (found := responses.get(str(answer.status_code))) is None:
            if (method, pattern, answer.status_code) not in DEVIATIONS:
                yield f"{method} {path}: {answer.status_code} is not in the contract"
            continue
        schema = resolved(document, found).get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            if answer.content:
                yield f"{method} {path}: a body where the contract has none"
            continue
        checked = Draft202012Validator({**schema, "components": document["components"]})
        for error in checked.iter_errors(without_nulls(answer.json())):
            yield f"{method} {path}: {error.json_path} {error.message}"


async def test_every_answer_is_in_the_contract() -> None:
    document = contract()
    async with box_double() as double, Client(double) as client:
        answers = [await client.ask("GET", "/v1/config"), await client.ask("GET", "/v1/me")]

        async def ask(method: str, path: str, body: Any = None) -> httpx.Response:
            answers.append(await client.ask(method, path, body))
            return answers[-1]

        made = (await ask("POST", "/v1/boxes", {"name": "one", "cmd": ["sleep", "infinity"], "cpus": 2})).json()
        box = f"/v1/boxes/{made['box_id']}"
        await ask("POST", "/v1/boxes", {"name": "one"})
        await ask("POST", f"{box}/exec", {"command": "true"})
        await ask("POST", f"{box}/start")
        ran = (await ask("POST", f"{box}/exec", {"command": "sh", "args": ["-c", "exit 7"]})).json()
        execution = f"{box}/executions/{ran['execution_id']}"
        assert (await client.follow(execution)).exit_code == 7
        await ask("GET", execution)
        await ask("POST", f"{execution}/signal", {"signal": 15})
        await ask("POST", f"{execution}/signal", {"signal": 9})
        await ask("POST", f"{box}/exec", {"command": "no-such-command"})
        running = (await ask("POST", f"{box}/exec", {"command": "sleep", "args": ["60"]})).json()["execution_id"]
        for method in ("GET", "DELETE", "DELETE"):
            await ask(method, f"{box}/executions/{running}")
        for path in ("/v1/boxes", box, f"{box}/metrics", "/v1/metrics", f"{box}/snapshots", "/v1/images"):
            await ask("GET", path)
        for method, path in (("DELETE", f"{box}?force=false"), ("POST", f"{box}/stop"), ("GET", box)):
            await ask(method, path)
        for method in ("HEAD", "DELETE", "HEAD", "GET", "DELETE"):
            await ask(method, box)
    found = {answer.status_code for answer in answers}
    assert {200, 201, 204, 400, 404, 409, 500} <= found
    assert not list(faults(document, answers))
