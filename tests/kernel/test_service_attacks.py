"""Attacks on the service itself (section E of the list): who may come in, how much one client can cost the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.kernel import host, raw
from tests.kernel.talk import Running, start
from tests.service import Service

KEY = "canary-key-7f3a9c51e2d84b06"
SECRET = "canary-value-5b1d0e77aa"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("keyed"), {"BULKHEAD_API_KEYS": json.dumps([KEY])}) as service:
        yield service


def call(service: Service, method: str, path: str, body: object = None) -> tuple[int, Any]:
    return service.call(method, path, body, {"authorization": f"Bearer {KEY}"})


def refused(running: Running, query: str = "", **headers: str) -> int:
    with pytest.raises(InvalidStatus) as error, running.stream(query, additional_headers=headers):
        pass
    return int(error.value.response.status_code)


# --- 54: who may open a stream


def test_a_stream_needs_the_key_in_its_header(keyed: Service) -> None:
    sandbox = call(keyed, "POST", "/sandboxes", {})[1]["id"]
    path = f"/sandboxes/{sandbox}/executions"
    running = Running(keyed, f"{path}/{call(keyed, 'POST', path, {'command': ['sleep', '1000']})[1]['id']}")
    good = {"Authorization": f"Bearer {KEY}"}
    assert refused(running) == 401
    assert refused(running, f"?token={KEY}") == 401
    assert refused(running, f"?ticket={KEY}&access_token={KEY}") == 401
    assert refused(running, Authorization="Bearer wrong") == 401
    assert refused(running, Authorization=f"Basic {KEY}") == 401
    assert refused(running, Origin="http://evil.example", **good) == 403
    assert refused(running, Origin="null", **good) == 403
    with running.stream(additional_headers=good) as viewer:
        assert viewer.step()
    call(keyed, "DELETE", f"/sandboxes/{sandbox}")
    assert not [line for line in keyed.log if KEY in line or "token" in line], "a query string is not logged"


def test_a_web_page_cannot_drive_a_keyless_service(service: Service) -> None:
    for header in ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        assert service.call("POST", "/sandboxes", {}, header)[0] == 403
        assert service.call("GET", "/sandboxes", None, header)[0] == 403


# --- 59: secrets and their neighbours


def test_no_secret_shows_up_anywhere(keyed: Service) -> None:
    sandbox = call(keyed, "POST", "/sandboxes", {"env": {"TOKEN": SECRET}})[1]["id"]
    other = call(keyed, "POST", "/sandboxes", {})[1]["id"]
    shown = [json.dumps(call(keyed, "GET", path)[1], default=str) for path in (
        f"/sandboxes/{sandbox}", "/sandboxes", "/runtimes", "/readyz", "/openapi.json", "/metrics", "/nowhere"
    )]  # fmt: skip
    wrong: list[dict[str, object]] = [
        {"command": []},
        {"command": ["true"], "env": {"A=B": SECRET}},
        {"command": ["true"], "env": {"X": 1}},
    ]
    shown += [json.dumps(call(keyed, "POST", f"/sandboxes/{sandbox}/executions", body)[1]) for body in wrong]
    look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | tr '\\0' '\\n'; true"
    for where in (sandbox, other):
        path = f"/sandboxes/{where}/executions"
        answer = call(keyed, "POST", path, {"command": ["sh", "-c", look]})[1]
        execution = f"{path}/{answer['id']}"
        assert call(keyed, "GET", f"{execution}?wait_seconds=60")[1]["exit"]["code"] == 0
        text = str(call(keyed, "GET", f"{execution}/output")[1])
        assert ("TOKEN=" + SECRET in text) is (where == sandbox), "its own environment, and nobody else's"
        shown += [json.dumps(answer), text.replace("TOKEN=" + SECRET, "")]
    everything = "\n".join([*shown, *keyed.log])
    assert KEY not in everything
    assert SECRET not in everything
    assert str(keyed.process.pid) not in "".join(shown[-1:]), "no process of the host is listed"
    for name in (sandbox, other):
        call(keyed, "DELETE", f"/sandboxes/{name}")


# --- 57, 58: names that mean something to somebody else


def test_programs_of_the_sandbox_are_never_used_by_the_service(service: Service, sandbox: str) -> None:
    plant = "for n in ip mount tar sh python3 env; do printf '#!/bin/sh\\necho planted' > $n; chmod 755 $n; done"
    assert service.run(sandbox, "/bin/sh", "-c", plant)["exit"]["code"] == 0
    env = {
        "PATH": "/workspace",
        "LD_PRELOAD": "/workspace/x.so",
        "PYTHONPATH": "/workspace",
        "BASH_ENV": "/workspace/sh",
    }
    assert service.run(sandbox, "tar", env=env)["stdout"] == "planted\n", "that is for the client's own PATH to say"
    other = service.create(env=env)
    assert service.run(other, "/usr/bin/true", workdir="/tmp")["exit"]["code"] == 0
    assert service.call("DELETE", f"/sandboxes/{other}")[0] == 204
    assert host.state_of(service.children()["launcher"]) != "Z"


CONTROL = 'x\r\nSet-Cookie: a=b\r\n\r\n<script>\x1b[2J\x07\u202e\u2028{"level":"error"}'


def test_control_characters_in_names_are_escaped(service: Service, sandbox: str) -> None:
    lines = len(service.log)
    running = start(service, sandbox, "echo", CONTROL, env={"V": CONTROL}, workdir="/workspace")
    assert running.exit()["code"] == 0
    assert running.out() == CONTROL.encode() + b"\n", "the program gets exactly what was said"
    missing = start(service, sandbox, CONTROL).exit()
    assert missing["reason"] == "start_failed"
    assert not any(ord(c) < 32 or c in "\x7f\u202e\u2028" for c in missing["detail"])
    named = service.create()
    for path in (
        "/sandboxes/%0d%0aSet-Cookie:%20a=b",
        "/%1b%5b2J%0a%7b%22level%22%3a1%7d",
        f"/sandboxes/{named}/%E2%80%AE",
    ):
        connection = raw.open_socket(service)
        connection.sendall(raw.head(service, "GET", path, "Connection: close"))
        answer = b"".join(iter(lambda c=connection: c.recv(65_536), b""))  # type: ignore[misc]
        connection.close()
        head = answer.partition(b"\r\n\r\n")[0]
        assert b" 404 " in head.splitlines()[0]
        assert b"set-cookie" not in head.lower()
    assert service.call("DELETE", f"/sandboxes/{named}")[0] == 204
    host.until(lambda: any("202" in line for line in service.log[lines:]), "the last one is logged")
    for line in service.log[lines:]:
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["event"] == "request"
