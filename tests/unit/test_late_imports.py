"""The gateway's interpreter may lie where only root can read it: after root is given up an import would fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.contract.boxlite_kind import BoxliteRuntime
from tests.runtimes.places import double_program

SCRIPT = """
import http.client, sys, threading
from pathlib import Path
from app.backends.boxlite.backend import BoxliteBackend
from app.backends.process.backend import ProcessBackend
from app.serving.gateway import bind, build
from app.core.policy import DEFAULT_PROFILES
from app.settings import load_settings
from app.spill import SpillFolder
from app.telemetry import Telemetry

here = {"url": sys.argv[2], "api_key": sys.argv[3], "default_image": "i", "images": {"i": {"reference": "i:1"}}}
settings = load_settings(port=0, data=Path(sys.argv[1]), boxlite=here)
backends = [ProcessBackend(None), BoxliteBackend(settings.boxlite, "0123456789ab")]
server = build(settings, Telemetry(), {}, DEFAULT_PROFILES, SpillFolder(Path(sys.argv[1]), 1 << 20), backends)
before = set(sys.modules)
boxes = []

def call(port, method, path, body=None, headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status

def drive(port):
    json = {"content-type": "application/json"}
    for path in ("/docs", "/openapi.json", "/metrics", "/readyz", "/runtimes", "/problems/not_found", "/nowhere"):
        call(port, "GET", path)
    call(port, "POST", "/sandboxes", b'{"labels": {"a": "b"}}', json)
    call(port, "POST", "/sandboxes", b'{"unknown": 1}', json)
    call(port, "POST", "/sandboxes", b"{", json)
    call(port, "POST", "/sandboxes", b"{}", {"content-type": "text/plain"})
    call(port, "GET", "/sandboxes?limit=x&cursor=y")
    box = b'{"runtime": "boxlite", "id": "box"}'
    boxes.append(call(port, "POST", "/sandboxes", box, json))
    for command in (b'{"command": ["true"]}', b'{"command": ["no-such"]}', b'{"command": ["cat"], "stdin": "open"}'):
        boxes.append(call(port, "POST", "/sandboxes/box/executions", command, json))
    boxes.append(call(port, "DELETE", "/sandboxes/box"))
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    call(port, "GET", "/sandboxes/a/executions/b/stream", None, upgrade)
    server.should_exit = True

startup = server.startup
async def announced(sockets=None):
    await startup(sockets)
    threading.Thread(target=drive, args=(sockets[0].getsockname()[1],)).start()
server.startup = announced
client = {"http.client", "email.parser", "email.feedparser"}
server.run([bind("127.0.0.1", 0)])
print(boxes)
print(sorted(set(sys.modules) - before - client))
"""


def test_nothing_is_imported_after_the_server_is_built(tmp_path: Path) -> None:

    BoxliteRuntime().check()
    with double_program() as url:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path), url, "test-key"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[201, 201, 201, 201, 204]", "[]"]
