"""The agent's tool sends a step again over a connection that breaks: the step is done once, and not tried for ever."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.docs.blocks import blocks_of
from tests.docs.test_documents import DOCS

DONE = {
    "exit": {"reason": "exited", "code": 0},
    "stdout": "7\n",
    "stderr": "",
    "encoding": "utf-8",
    "collected": [
        {"path": "a", "content_base64": "YQ=="},
        {"path": "b", "error": "nothing in the sandbox matches it"},
    ],
}
GONE = {"type": "/problems/wrong_state", "detail": "the sandbox is destroyed"}
CUT = None


class Told:
    """The tool of the tutorial, with a service that answers to runs what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, dict[str, Any]] | None) -> None:
        (block,) = [b for b in blocks_of(DOCS / "tutorials/agent.md") if b.file == "code_tool.py"]
        names: dict[str, Any] = {"__name__": "code_tool"}
        exec(compile(block.text, "code_tool.py", "exec"), names)
        self.runs: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.answers = list(answers)
        monkeypatch.setattr("time.sleep", self.pauses.append)
        client = httpx.Client
        monkeypatch.setattr(
            httpx, "Client", lambda **given: client(**given, transport=httpx.MockTransport(self._answer))
        )
        self.tool = names["CodeTool"]("test")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"items": []})
        if request.url.path == "/sandboxes":
            return httpx.Response(201, json={"id": f"box{len(self.runs)}"})
        self.runs.append(request)
        answer = self.answers.pop(0) if self.answers else CUT
        if answer is CUT:
            raise httpx.ReadError("cut")
        return httpx.Response(answer[0], json=answer[1])


def test_step_is_sent_again_with_its_key_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, CUT, CUT, (200, DONE))
    assert told.tool.run("print(7)", collect=("a", "b")) == "stdout:\n7\nThe program ended with exit code 0."
    assert told.tool.files == {"a": b"a"}
    assert len({(r.headers["idempotency-key"], r.content, r.url.path) for r in told.runs}) == 1
    assert [len(told.runs), json.loads(told.runs[0].content)["collect"]] == [3, ["a", "b"]]
    told.answers = [(200, DONE)]
    told.tool.run("print(7)")
    assert told.runs[3].headers["idempotency-key"] != told.runs[0].headers["idempotency-key"]


def test_service_that_cannot_be_reached_is_given_up_after_pauses_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    with pytest.raises(ConnectionError, match="/sandboxes/box0/run"):
        told.tool.run("print(7)")
    assert len(told.runs) == len(told.pauses) == 6
    assert told.pauses == sorted(set(told.pauses))
    assert 6 < sum(told.pauses) < 7


def test_sandbox_that_has_ended_is_replaced_and_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, (409, GONE), (200, DONE))
    assert "There is a new, empty one." in told.tool.run("print(7)")
    told.tool.run("print(7)")
    assert [r.url.path for r in told.runs] == ["/sandboxes/box0/run", "/sandboxes/box1/run"]
