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


@pytest.mark.parametrize("mode", ["999", "01777", "", "644%0a"])
async def test_spelling_of_a_mode_in_the_query_is_told_in_words(mode: str) -> None:
    async with Service().client() as client:
        sandbox = (await client.post("/sandboxes", json={})).json()["id"]
        answer = await client.put(f"/sandboxes/{sandbox}/files?path=a&mode={mode}", content=b"")
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error == {"pointer": "query/mode", "detail": "must be three octal digits, such as 644 or 0644"}
