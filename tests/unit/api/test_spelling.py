"""What is spelled otherwise than it must be is told in words: nobody has to read a pattern."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api.service import Service

FILE = {"path": "a", "content": ""}


@pytest.mark.parametrize(
    ("path", "body", "pointer", "words"),
    [
        ("/sandboxes", {"id": "A b"}, "/id", "must be 1 to 63 of a-z"),
        ("/run", {"command": ["a"], "files": [FILE | {"mode": "8"}]}, "/files/0/mode", "must be three octal digits"),
        (
            "/run",
            {"command": ["a"], "files": [FILE | {"mode": "644\n"}]},
            "/files/0/mode",
            "must be three octal digits",
        ),
        (
            "/run",
            {"command": ["a"], "files": [FILE | {"mode": 755}]},
            "/files/0/mode",
            'must be a string such as "0755"',
        ),
        ("/sandboxes", {"labels": {"a:b": "1"}}, "/labels/a:b", "must be 1 to 63 of letters, digits and . _ / -"),
        ("/sandboxes", {"labels": {"a": "\x07"}}, "/labels/a", "must have no control characters"),
        ("/sandboxes", {"env": ["A=1"]}, "/env", 'must be an object such as {"A": "1"}'),
        ("/sandboxes", {"labels": "a=1"}, "/labels", 'must be an object such as {"A": "1"}'),
        ("/stream-tickets", {"path": "/x"}, "/path", "must be the path of a stream"),
    ],
)
async def test_spelling_of_a_field_is_told_in_words(path: str, body: dict[str, Any], pointer: str, words: str) -> None:
    async with Service().client() as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert error["detail"].startswith(words)
    assert "^" not in error["detail"]


@pytest.mark.parametrize(
    ("signal", "words"),
    [(2, 'must be a string such as "SIGINT"'), ("NOPE", "is not the name of a signal, such as SIGINT")],
)
async def test_signal_of_another_form_is_shown_one(signal: Any, words: str) -> None:
    async with Service().client() as client:
        await client.post("/sandboxes", json={"id": "demo"})
        await client.post("/sandboxes/demo/executions", json={"id": "one", "command": ["cat"], "stdin": "open"})
        answer = await client.post("/sandboxes/demo/executions/one/signal", json={"signal": signal})
    assert answer.json()["errors"] == [{"pointer": "/signal", "detail": words}]


@pytest.mark.parametrize("mode", ["999", "01777", "", "644%0a"])
async def test_spelling_of_a_mode_in_the_query_is_told_in_words(mode: str) -> None:
    async with Service().client() as client:
        sandbox = (await client.post("/sandboxes", json={})).json()["id"]
        answer = await client.put(f"/sandboxes/{sandbox}/files?path=a&mode={mode}", content=b"")
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error == {"pointer": "query/mode", "detail": "must be three octal digits, such as 644 or 0644"}
