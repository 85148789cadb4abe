"""Secrets: requests to their hosts carry them, and nothing else has them, wherever one looks."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.host import has_in_memory, until
from tests.kernel.proxied.conftest import OPERATORS_SECRETS, Internet, Proxied
from tests.kernel.proxied.world import Authority, WebServer
from tests.service import PATIENCE, PROJECT, Service, clean_environment

CANARY = "canary-9c41e7"  # the client's own
OPERATORS = "canary-operators-5d20"
WWW, FILES = "www.example.org", "files.example.org"
READ = [{"host": host, "ports": [80, 443], "http": [{}]} for host in (WWW, FILES)]
SECRETS = {"TOKEN": {"value": CANARY, "hosts": [WWW]}, "LLM": {"from": "llm"}}
CURL = "curl -sS --max-time 100"


def secrets_file(path: Path, content: str) -> None:
    beside = path.with_name("secrets.new")
    beside.touch(mode=0o600)
    beside.write_text(content)
    beside.replace(path)


def operators(value: str) -> str:
    return OPERATORS_SECRETS.replace(OPERATORS, value)


@pytest.fixture
def file(service: Service, internet: Internet) -> Iterator[Path]:
    yield internet.secrets
    secrets_file(internet.secrets, operators(OPERATORS))
    unknown = {"secrets": {"A": {"from": "unknown"}}, "policy": {"network": {"mode": "proxy", "allow": READ}}}
    until(lambda: "known: llm" in str(service.call("POST", "/sandboxes", unknown)), "the file is read again")


@pytest.fixture
def sandbox(proxied: Proxied) -> str:
    return proxied.sandbox(*READ, secrets=SECRETS)


def sh(service: Service, sandbox: str, line: str) -> str:
    done = service.run(sandbox, "sh", "-c", line)
    assert done["exit"]["code"] == 0, done
    return str(done["stdout"])


def last_request(server: WebServer) -> tuple[str, dict[str, str]]:
    _, path, fields = server.requests[-1]
    return path, fields


def refused(proxied: Proxied, sandbox: str, host: str) -> list[tuple[str, str]]:
    return [(e["kind"], e["reason"]) for e in proxied.events(sandbox) if e["name"] == host and e["reason"]]


def test_requests_to_its_hosts_carry_a_secret(service: Service, internet: Internet, sandbox: str) -> None:
    url = f"https://{WWW}/answer"
    line = f'{CURL} -H "Authorization: Bearer $TOKEN" -H "X-Key: $LLM" -u "me:$TOKEN" {url}'
    assert sh(service, sandbox, line.replace('-u "me:$TOKEN" ', "")) == "answered\n"
    fields = last_request(internet.tls)[1]
    assert (fields["authorization"], fields["x-key"]) == (f"Bearer {CANARY}", OPERATORS)
    assert sh(service, sandbox, f'{CURL} -u "me:$TOKEN" {url}') == "answered\n"
    scheme, credentials = last_request(internet.tls)[1]["authorization"].split()
    assert (scheme, base64.b64decode(credentials)) == ("Basic", f"me:{CANARY}".encode())


def test_where_it_is_not_put_in_the_placeholder_passes_as_it_is(
    service: Service, internet: Internet, sandbox: str
) -> None:
    token = sh(service, sandbox, 'printf %s "$TOKEN"')
    assert re.fullmatch(r"bulkhead_secret_[0-9a-f]{32}", token)
    assert sh(service, sandbox, f'{CURL} "https://{WWW}/answer?key=$TOKEN"') == "answered\n"
    assert last_request(internet.tls)[0] == f"/answer?key={token}"


@pytest.mark.parametrize(
    ("line", "host", "reason"),
    [
        (f'-H "Authorization: Bearer $TOKEN" https://{FILES}/answer', FILES, "secret_host"),
        (f'-u "me:$TOKEN" https://{FILES}/answer', FILES, "secret_host"),
        (f"https://{FILES}/$TOKEN", FILES, "secret_host"),
        (f"https://{FILES}/?key=$LLM", FILES, "secret_host"),
        (f"http://{FILES}/?key=$TOKEN", FILES, "secret_host"),
        (f'-H "X-Key: $TOKEN" http://{WWW}/answer', WWW, "secret_plain"),
        (f'-u "$LLM:" http://{WWW}/answer', WWW, "secret_plain"),
    ],
)
def test_a_placeholder_on_a_wrong_way_is_refused_and_told(
    service: Service, internet: Internet, proxied: Proxied, sandbox: str, line: str, host: str, reason: str
) -> None:
    before = len(internet.tls.requests), len(internet.plain.requests)
    answer = sh(service, sandbox, f"{CURL} {line}")
    problem = json.loads(answer)
    assert (problem["status"], problem["reason"]) == (403, reason)
    assert (len(internet.tls.requests), len(internet.plain.requests)) == before
    assert ("request", reason) in refused(proxied, sandbox, host)


def test_a_host_whose_certificate_is_not_trusted_gets_nothing(
    service: Service, internet: Internet, proxied: Proxied, tmp_path: Path
) -> None:
    impostor = WebServer(internet.folder / "root", 8443, Authority(tmp_path, [WWW]).context)
    try:
        sandbox = proxied.sandbox({"host": WWW, "ports": [8443], "http": [{}]}, secrets=SECRETS)
        url = f"https://{WWW}:8443/answer"
        answer = sh(service, sandbox, f'{CURL} -H "X-Key: $TOKEN" {url}')
        assert json.loads(answer)["status"] == 502
        assert impostor.requests == []
    finally:
        impostor.close()


def test_git_clones_with_a_secret_as_its_password(service: Service, internet: Internet, proxied: Proxied) -> None:
    private = WebServer(internet.folder / "root", 8443, internet.authority.context, f"me:{CANARY}")
    try:
        sandbox = proxied.sandbox({"host": WWW, "ports": [8443], "http": [{}]}, secrets=SECRETS)
        line = f'git ls-remote "https://me:$TOKEN@{WWW}:8443/git/it.git" main'
        assert "refs/heads/main" in sh(service, sandbox, line)
        assert [fields.get("authorization") for _, _, fields in private.requests][:2] == [None, private.authorization]
    finally:
        private.close()


# --- where a value might be


def holders(pids: list[int], canary: str) -> list[int]:
    """Processes that have it in their memory."""
    return [pid for pid in pids if has_in_memory(pid, canary.encode())]


def of_uid(uid: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.stat().st_uid == uid or f"\nUid:\t{uid}\t" in (place / "status").read_text():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def test_nothing_but_gateway_and_egress_process_ever_has_a_value(
    service: Service, internet: Internet, proxied: Proxied, sandbox: str
) -> None:
    command = ["sh", "-c", f'{CURL} -H "X-Key: $TOKEN $LLM" https://{WWW}/answer; exec sleep 1000']
    status, execution = service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": command})
    path = f"/sandboxes/{sandbox}/executions/{execution['id']}"
    until(lambda: service.output(path) == b"answered\n", "the request was answered")
    assert last_request(internet.tls)[1]["x-key"] == f"{CANARY} {OPERATORS}"

    look = "env; cat /proc/*/environ /proc/*/cmdline; grep -rs c[a]nary /workspace /tmp /etc || true"
    inside = sh(service, sandbox, look)
    assert "bulkhead_secret_" in inside  # so it does show environments
    texts = [inside, *service.log, str(status), json.dumps(execution)]
    for asked in ("", "/network", "/executions", f"/executions/{execution['id']}", "/usage"):
        texts.append(json.dumps(service.call("GET", f"/sandboxes/{sandbox}{asked}")[1]))
    texts += [str(service.call("GET", asked)[1]) for asked in ("/sandboxes", "/metrics", "/readyz")]
    texts.append(str(service.call("POST", "/sandboxes", {"secrets": SECRETS})))
    texts += [file.read_bytes().decode("latin-1") for file in service.data.rglob("*") if file.is_file()]

    children = service.children()
    sandboxes = of_uid(service.call("GET", f"/sandboxes/{sandbox}")[1]["isolation"]["host_uid"])
    assert len(sandboxes) >= 2  # the worker and the command
    ours = [service.process.pid, *children.values()]
    for pid in (*ours, *sandboxes):
        texts += [Path(f"/proc/{pid}/{name}").read_bytes().decode("latin-1") for name in ("environ", "cmdline")]
    assert not [text for text in texts if "canary" in text]

    others = [children["launcher"], *sandboxes]
    for canary in (CANARY, OPERATORS):
        assert holders([children["gateway"], children["egress"]], canary)  # so it would be found
        assert holders(others, canary) == []


# --- the operator's


def test_running_sandboxes_get_what_the_operator_changes(
    service: Service, internet: Internet, sandbox: str, file: Path
) -> None:
    line = f'{CURL} -H "X-Key: $LLM" https://{WWW}/answer'

    def carried() -> str:
        answer = sh(service, sandbox, line)
        return last_request(internet.tls)[1]["x-key"] if answer == "answered\n" else str(json.loads(answer)["reason"])

    def told() -> bool:
        return any(f"the secrets file {file} is not TOML" in text for text in service.log)

    assert carried() == OPERATORS
    secrets_file(file, operators("canary-two"))
    until(lambda: carried() == "canary-two", "the new value is in force")
    secrets_file(file, operators("canary-three")[:-3])
    until(told, "the log says what is wrong")
    assert carried() == "canary-two"
    secrets_file(file, "")
    until(lambda: carried() == "secret_host", "the secret is gone")
    assert not [text for text in service.log if "canary" in text]


def test_another_egress_process_has_the_secrets_of_running_sandboxes(
    service: Service, internet: Internet, sandbox: str
) -> None:
    before = service.children()["egress"]
    os.kill(before, 9)
    line = f'{CURL} --retry 99 --retry-delay 1 --retry-connrefused --retry-all-errors -H "X-Key: $TOKEN $LLM" https://{WWW}/answer'
    assert sh(service, sandbox, line) == "answered\n"
    assert last_request(internet.tls)[1]["x-key"] == f"{CANARY} {OPERATORS}"
    assert service.children()["egress"] != before


# --- the command line


def test_the_command_line_takes_a_value_from_a_file(service: Service, internet: Internet, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{CANARY}\n")
    line = f'{CURL} -H "X-Key: $TOKEN $llm" https://{WWW}/answer'
    options = ["--network", "proxy", "--secret", f"TOKEN=@{key}:{WWW}", "--secret", f"llm:{WWW}"]
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", "run", *options, "--", "sh", "-c", line],
        cwd=PROJECT,
        env=clean_environment() | {"BULKHEAD_CLIENT_URL": service.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (0, "answered\n"), ended.stderr
    assert last_request(internet.tls)[1]["x-key"] == f"{CANARY} {OPERATORS}"
    assert "canary" not in ended.stderr
