"""Plays a recorded conversation with the real server against the double, and compares what comes back.

Every event of a recording (a request, an attach, a frame that was sent, a client that left) happens after the double
has sent whatever the real server had sent by then. So the order is the recorded one, and nothing waits for a clock.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.boxlite.client import until
from tests.boxlite.double import Double
from tests.boxlite.recorded import SECONDS, Socket, blur

RECORDINGS = Path(__file__).with_name("recordings")
SHARED_ID, SHARED_NAME = "ZZfgEoI4ath4", "shared-workspace-1795555494"


class Replay:
    def __init__(
        self,
        double: Double,
        http: httpx.AsyncClient,
        shared: str,
        *,
        rewrite: Callable[[str], str],
        silent: frozenset[int],
        hang_up_seconds: float,
    ) -> None:
        self._double = double
        self._http = http
        self._rewrite = rewrite
        self._silent = silent
        self._hang_up_seconds = hang_up_seconds
        self._names = {SHARED_ID: shared}
        self._sockets: list[Socket] = []
        self._lost: list[asyncio.Task[Any]] = []
        self._paused = False

    async def play(self, name: str) -> None:
        steps = json.loads((RECORDINGS / f"{name}.json").read_text())
        events: list[tuple[float, Callable[[], Coroutine[Any, Any, None]]]] = []
        for number, step in enumerate(steps):
            events += self._events(number, step)
        for moment, event in sorted(events, key=lambda pair: pair[0]):
            for socket in self._sockets:
                await socket.catch_up(moment)
            await event()
        for socket in self._sockets:
            await socket.compare()
        for task in self._lost:
            with contextlib.suppress(httpx.TransportError, asyncio.CancelledError):
                await task

    def _events(self, number: int, step: dict[str, Any]) -> list[tuple[float, Callable[[], Coroutine[Any, Any, None]]]]:
        begin = step["at_ms"]
        if "websocket" in step:
            talk = step["websocket"]
            events: list[tuple[float, Callable[[], Coroutine[Any, Any, None]]]] = [
                (begin, lambda: self._attach(number, step))
            ]
            for frame in talk["sent"]:
                events.append((begin + frame["at_ms"], lambda frame=frame: self._send(step, frame)))  # type: ignore[misc]
            if "client" in talk:
                found = re.search(r"at (\d+) ms", talk["client"])
                assert found
                events.append((begin + int(found[1]), lambda: self._leave(step)))
            return events
        if "request" in step:
            return [(begin, lambda: self._request(step))]
        if "pause_s" in step:
            return [(begin, self._pause)]
        if "beside_server" in step:
            return [(begin, lambda: self._beside(step["beside_server"]["command"]))]
        return []

    def _translate(self, text: str) -> str:
        for recorded, ours in self._names.items():
            text = text.replace(recorded, ours)
        return text

    async def _request(self, step: dict[str, Any]) -> None:
        asked, recorded = step["request"], step["response"]
        headers = {**asked.get("headers", {})}
        if recorded.get("status") == 401:
            headers["authorization"] = "Bearer wrong"
        content = self._content(asked)
        if "json" in asked:
            headers.setdefault("content-type", "application/json")
        path = self._translate(asked["path"])
        if "none" in recorded:
            await self._lose(asked["method"], path, headers, content, "hung_up_after_ms" in step)
            return
        answer = await self._http.request(asked["method"], path, headers=headers, content=content)
        if self._paused and asked["method"] == "GET":
            async with asyncio.timeout(SECONDS):
                while not self._same(answer, recorded, asked):
                    await asyncio.sleep(0.02)
                    answer = await self._http.request(asked["method"], path, headers=headers, content=content)
        self._learn(recorded, answer)
        shown = self._shown(answer, asked)
        assert shown == self._expected(recorded, asked), (asked["method"], asked["path"])

    def _content(self, asked: dict[str, Any]) -> bytes | None:
        if "json" in asked:
            return self._rewrite(self._translate(json.dumps(asked["json"], ensure_ascii=False))).encode()
        if "body_base64" in asked:
            head = base64.b64decode(asked["body_base64"])
            return head.ljust(asked.get("body_cut_from_bytes", 0), b"x")
        return None

    def _learn(self, recorded: dict[str, Any], answer: httpx.Response) -> None:
        """Ids that the answer has in the place of recorded ones."""
        for key in ("box_id", "execution_id"):
            if isinstance(recorded.get("json"), dict) and key in recorded["json"] and answer.is_success:
                for length in (36, 12, 6, 4):  # also as the beginnings of ids that were used, the longest first
                    self._names[recorded["json"][key][:length]] = answer.json()[key][:length]

    def _known(self, body: Any) -> Any:
        """Without the boxes that the recording server happened to have as well."""
        if isinstance(body, dict) and "boxes" in body:
            ids = (set(self._names) | set(self._names.values())) - {SHARED_ID, self._names[SHARED_ID]}
            return {"boxes": [box for box in body["boxes"] if box["box_id"] in ids]}
        return body

    def _shown(self, answer: httpx.Response, asked: dict[str, Any]) -> Any:
        kind = answer.headers.get("content-type")
        body = blur(self._known(answer.json()) if kind == "application/json" else answer.text)
        return answer.status_code, kind, answer.headers.get("allow"), body

    def _expected(self, recorded: dict[str, Any], asked: dict[str, Any]) -> Any:
        headers = recorded.get("headers", {})
        body = json.loads(self._translate(json.dumps(self._known(recorded.get("json", recorded.get("text", ""))))))
        return recorded["status"], headers.get("content-type"), headers.get("allow"), blur(body)

    def _same(self, answer: httpx.Response, recorded: dict[str, Any], asked: dict[str, Any]) -> bool:
        return bool(self._shown(answer, asked) == self._expected(recorded, asked))

    async def _lose(self, method: str, path: str, headers: Any, content: bytes | None, hang_up: bool) -> None:
        """A request whose answer never came: the client hung up, or the server died meanwhile."""
        before = len(self._double.requests)
        task = asyncio.get_running_loop().create_task(
            self._http.request(method, path, headers=headers, content=content)
        )
        await until(lambda: len(self._double.requests) > before)
        if hang_up:
            await asyncio.sleep(self._hang_up_seconds)
            task.cancel()
        self._lost.append(task)

    async def _pause(self) -> None:
        """The real client waited for something to happen: asked again until it has."""
        self._paused = True
        for box in self._double.boxes:
            if box.run is not None:
                for execution in box.run.executions[-1:]:
                    await asyncio.wait([asyncio.ensure_future(_ended(execution.leader_ended()))], timeout=0.5)

    async def _beside(self, command: str) -> None:
        if "cgroup.kill" in command:
            found = re.search(r"grep ([A-Za-z0-9]{12})", command)
            assert found
            self._double.kill_box(self._names[found[1]])
        elif "$(pidof boxlite)" in command:
            await (self._double.interrupt() if "-INT" in command else self._double.crash())
            await self._double.restart()

    async def _attach(self, number: int, step: dict[str, Any]) -> None:
        talk = step["websocket"]
        refused = talk.get("refused")
        key = "wrong" if refused and refused["status"] == 401 else self._double.key
        headers = {"authorization": f"Bearer {key}"}
        url = self._double.url.replace("http", "ws") + self._translate(talk["path"])
        try:
            socket = await connect(
                url, additional_headers=headers, proxy=None, max_size=None, open_timeout=60, ping_timeout=None
            )
        except InvalidStatus as error:
            assert refused, (talk["path"], error.response.status_code, error.response.body)
            assert error.response.status_code == refused["status"]
            expected = json.loads(self._translate(json.dumps(refused.get("json", ""))))
            assert json.loads(error.response.body or b'""') == expected
            return
        assert not refused, talk["path"]
        assert socket.response is not None
        for recorded in talk.get("headers", {}).values():
            self._names[recorded] = socket.response.headers["x-boxlite-execution-id"]
        followed = Socket(step, number in self._silent, socket)
        followed.follow()
        self._sockets.append(followed)

    def _socket(self, step: dict[str, Any]) -> Socket:
        return next(socket for socket in self._sockets if socket.step is step)

    async def _send(self, step: dict[str, Any], frame: dict[str, Any]) -> None:
        if step["websocket"].get("refused"):
            return
        message = frame["text"] if "text" in frame else base64.b64decode(frame["binary_base64"])
        with contextlib.suppress(ConnectionClosed):
            await self._socket(step).socket.send(message)

    async def _leave(self, step: dict[str, Any]) -> None:
        socket = self._socket(step)
        socket.left = True
        if step["websocket"]["client"].startswith("dropped"):
            socket.socket.transport.abort()
        await socket.socket.close()


async def _ended(wait: Coroutine[Any, Any, None]) -> None:
    await wait
