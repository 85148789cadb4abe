"""The page of the cookbook, in a real browser."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.docs.test_documents import COOKBOOK
from tests.require import require
from tests.service import Service
from tests.unit.api.test_browser import BROWSER, Site, browser

PAGE = """<!doctype html><meta charset="utf-8"><title>test</title><body><script>
const path = PATH, ticket = TICKET;
PROGRAM
stream.addEventListener("close", ({code}) => fetch("/report", {
  method: "POST", body: JSON.stringify({code, shown: document.body.lastChild.wholeText}),
}));
</script>"""


async def test_page_of_the_cookbook_shows_what_a_command_prints(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    require("chromium", BROWSER is not None, "there is no chromium")
    (program,) = re.findall(r"^```js\n(.*?)^```$", COOKBOOK.read_text(), re.MULTILINE | re.DOTALL)
    site = Site()
    origin = f"http://127.0.0.1:{site.port}"
    with Service(tmp_path / "data", {"BULKHEAD_ALLOWED_ORIGINS": json.dumps([origin])}) as service:
        sandbox = service.create()
        script = r"printf 'h\303'; sleep 0.3; printf '\244lf'"  # a character in two frames
        executions = f"/sandboxes/{sandbox}/executions"
        status, started = service.call("POST", executions, {"command": ["sh", "-c", script]})
        assert status == 201, started
        path = f"{executions}/{started['id']}/stream"
        status, answer = service.call("POST", "/stream-tickets", {"path": path})
        assert status == 201, answer
        program = program.replace("wss://bulkhead.example.org", f"ws://127.0.0.1:{service.port}")
        page = PAGE.replace("PATH", json.dumps(path)).replace("TICKET", json.dumps(answer["ticket"]))
        site.page = page.replace("PROGRAM", program)
        with site.served(), browser(origin + "/"):
            assert await site.report(60) == {"code": 1000, "shown": "hälf"}
