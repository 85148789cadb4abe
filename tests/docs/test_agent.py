"""The agent's tool follows a stream over cuts and gaps: every stored byte once, and not for ever."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.docs.blocks import blocks_of
from tests.docs.test_documents import DOCS

EXECUTION = "/sandboxes/s/executions/e"
END = {"type": "exit", "exit": {"reason": "exited", "code": 0}}
PROBLEM = {"type": "/problems/internal_error", "title": "The service has a fault", "status": 500}
CUT = None


def printed(offset: int, data: bytes) -> dict[str, Any]:
    return {"channel": "stdout", "offset": offset, "base64": base64.b64encode(data).decode()}


class Streams(httpx.SyncByteStream):
    def __init__(self, events: list[dict[str, Any] | None]) -> None:
        self.events = events

    def __iter__(self) -> Iterator[bytes]:
        for event in self.events:
            if event is CUT:
                raise httpx.ReadError("cut")
            yield f"data: {json.dumps(event)}\n\n".encode()


class Follower:
    """The tool of the tutorial, with a service that answers what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *streams: list[dict[str, Any] | None]) -> None:
        (block,) = [b for b in blocks_of(DOCS / "tutorials/agent.md") if b.file == "code_tool.py"]
        self.names: dict[str, Any] = {"__name__": "code_tool"}
        exec(compile(block.text, "code_tool.py", "exec"), self.names)
        self.asked: list[int] = []
        self.pauses: list[float] = []
        self.streams = list(streams)
        monkeypatch.setattr("time.sleep", self.pauses.append)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(int(request.url.params["stdout_offset"]))
        return httpx.Response(200, stream=Streams(self.streams.pop(0) if self.streams else [CUT]))

    def follow(self) -> bytes:
        tool = self.names["CodeTool"].__new__(self.names["CodeTool"])
        tool.http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(self._answer))
        with tool.http:
            output, ended = tool._follow(EXECUTION, lambda text: None)
        assert ended == END["exit"]
        return bytes(output["stdout"])


def test_follower_goes_on_behind_what_it_has_after_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = {"type": "gap", "channel": "stdout", "from": 0, "to": 100}
    follower = Follower(monkeypatch, [gap, printed(100, b"ab"), CUT], [printed(102, b"c"), END])
    assert follower.follow() == b"\n[output is missing here]\nabc"
    assert follower.asked == [0, 102]


def test_follower_goes_on_at_a_hole_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = {"type": "gap", "channel": "stdout", "from": 2, "to": None}
    follower = Follower(monkeypatch, [printed(0, b"ab"), gap, printed(2, b"c"), CUT], [END])
    assert follower.follow() == b"ab\n[output is missing here]\nc"
    assert follower.asked == [0, 3]


@pytest.mark.parametrize("stream", [[PROBLEM], [CUT], []])
def test_follower_gives_up_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch, stream: list[dict[str, Any] | None]
) -> None:
    follower = Follower(monkeypatch, *[list(stream) for _ in range(20)])
    with pytest.raises(ConnectionError, match=EXECUTION):
        follower.follow()
    assert len(follower.asked) == len(follower.pauses) == 6
    assert follower.pauses == sorted(set(follower.pauses))
    assert 12 < sum(follower.pauses) < 13


def test_follower_counts_attempts_anew_when_something_came(monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(monkeypatch, *[[printed(n, b"x"), CUT] for n in range(10)], [END])
    assert follower.follow() == b"x" * 10
