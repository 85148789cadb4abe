"""A page in a real browser, which can send no header: it opens streams with tickets, from an origin that is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.settings import Settings
from tests.require import require
from tests.unit.api.service import Service

KEY = "bh_" + "k" * 43
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-breakpad", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",  # nothing leaves this machine
)

PAGE = """<!doctype html><meta charset="utf-8"><title>test</title><pre id="screen"></pre><script>
const given = GIVEN, screen = document.getElementById("screen");

const type = (ticket) => new Promise((done) => {
  const socket = new WebSocket(`ws://${given.service}${given.path}?stdin=true&ticket=${ticket}`);
  let opened = false;
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    opened = true;
    socket.send(new TextEncoder().encode("typed in the page\\n"));
    socket.send('{"type":"stdin_eof"}');
  };
  socket.onmessage = ({data}) => {
    if (data instanceof ArrayBuffer) screen.append(new TextDecoder().decode(data.slice(1)));
    else if (JSON.parse(data).type === "exit") screen.append(`exit ${JSON.parse(data).exit_code}\\n`);
  };
  socket.onclose = ({code}) => done({opened, code});
});

const listen = (ticket) => new Promise((done) => {
  const source = new EventSource(`http://${given.service}${given.path}?ticket=${ticket}`), seen = [];
  for (const kind of ["start", "output", "exit"])
    source.addEventListener(kind, ({data, lastEventId}) => {
      seen.push([kind, lastEventId]);
      if (kind === "output") screen.append(atob(JSON.parse(data).base64));
      if (kind === "exit") { source.close(); done(seen); }
    });
  source.onerror = () => { source.close(); done("refused"); };
});

(async () => {
  const report = {socket: [], events: []};
  for (let n = 0; n < 2; n++) report.socket.push(await type(given.tickets[0]));
  for (let n = 0; n < 2; n++) report.events.push(await listen(given.tickets[1]));
  report.shown = screen.innerText;
  await fetch("/report", {method: "POST", body: JSON.stringify(report)});
})();
</script>"""


class Site:
    """A web server of somebody else: one page, and a place where it reports what it saw."""

    def __init__(self) -> None:
        self.page = ""
        self._report: dict[str, Any] = {}
        self._reported = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self.path == "/" else 404, site.page.encode())

            def do_POST(self) -> None:
                site._report = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._answer(200, b"")
                site._reported.set()

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not on the terminal of the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        serving = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield
        finally:
            self._server.shutdown()
            serving.join()
            self._server.server_close()

    async def report(self, seconds: float) -> dict[str, Any]:
        assert await asyncio.to_thread(self._reported.wait, seconds), "the page did not report"
        return self._report


@contextlib.contextmanager
def browser(url: str) -> Iterator[None]:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [BROWSER, *OPTIONS, f"--user-data-dir={home}/data", url],
            env={**os.environ, "HOME": home},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield
        except AssertionError as error:
            said.seek(0)
            error.add_note(said.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def seen_from(host: str) -> tuple[dict[str, Any], Service]:
    """What the page reports when the browser has it from `host`. The one who serves it has a key, the page has none."""
    require("chromium", BROWSER is not None, "there is no chromium")
    site = Site()
    settings = Settings(allowed_origins=(f"http://127.0.0.1:{site.port}",))
    service = Service(settings=settings, key_hashes=(hashlib.sha256(KEY.encode()).hexdigest(),))
    async with service.served() as live:
        live.client.headers["authorization"] = f"Bearer {KEY}"
        path = await live.start("cat", stdin="open") + "/stream"
        tickets = [
            (await live.client.post("/stream-tickets", json={"path": path, "stdin": stdin})).json()["ticket"]
            for stdin in (True, False)
        ]
        given = {"service": f"127.0.0.1:{live.port}", "path": path, "tickets": tickets}
        site.page = PAGE.replace("GIVEN", json.dumps(given))
        with site.served(), browser(f"http://{host}:{site.port}/"):
            return await site.report(60), service


async def test_a_page_opens_a_stream_and_events_with_tickets_and_each_only_once() -> None:
    report, service = await seen_from("127.0.0.1")
    assert report == {
        "socket": [{"opened": True, "code": 1000}, {"opened": False, "code": 1006}],
        "events": [[["start", "0-0"], ["output", "18-0"], ["exit", "18-0"]], "refused"],
        "shown": "typed in the page\nexit 0\ntyped in the page\n",
    }
    assert statuses(service) == [101, 401, 200, 401]


async def test_a_page_of_another_origin_opens_nothing_also_with_tickets() -> None:
    report, service = await seen_from("localhost")
    refused = {"opened": False, "code": 1006}
    assert report == {"socket": [refused, refused], "events": ["refused", "refused"], "shown": ""}
    assert statuses(service) == [403, 403, 403, 403]


def statuses(service: Service) -> list[int]:
    return [line["status"] for line in service.logged if line.get("path", "").endswith("/stream")]
