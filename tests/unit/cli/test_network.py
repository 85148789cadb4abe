"""`bulkhead network`, the options that give a sandbox a network, and what is said about what was refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from app.cli.bodies import sandbox_body
from app.cli.network import LINES, advice
from app.cli.parser import parse
from app.core.network_rules import parse_rule
from tests.unit.cli.fake_service import BASE, SANDBOX, Answer, FakeService, answer, fake_service, problem
from tests.unit.cli.screen import screen
from tests.unit.cli.test_run import EXECUTIONS, STREAM, WHOLE_LIFE, ending
from tests.unit.cli.typed import bulkhead

NETWORK = f"GET {BASE}/network"
PROXY = ["--network", "proxy", "--allow", "a.test:443"]


def event(name: str | None = "a.test", reason: str | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "at": "2030-01-02T03:04:05.678901Z",
        "kind": "connection",
        "execution_id": None,
        "name": name,
        "address": "203.0.113.7",
        "port": 443,
        "method": None,
        "path": None,
        "verdict": "allowed" if reason is None else "refused",
        "rule": None if reason else "*.test:443",
        "reason": reason,
        "bytes_sent": 812,
        "bytes_received": 40_213,
        "duration_seconds": 0.2,
        **changes,
    }


def page(*events: dict[str, Any]) -> Answer:
    return answer(200, {"items": list(events), "next_cursor": None, "dropped": 0})


def stream(*events: tuple[str, Any]) -> Answer:
    blocks = [f"event: {kind}\nid: {n}\ndata: {json.dumps(data)}\n\n" for n, (kind, data) in enumerate(events)]
    return 200, {"Content-Type": "text/event-stream"}, (":\n\n" + "".join(blocks)).encode()


# --- what is asked for


def network_of(*words: str) -> Any:
    return sandbox_body(parse(["create", *words])).get("policy", {}).get("network")


def test_rules_are_passed_on_as_they_were_typed() -> None:
    raw = ["--allow-raw", "db.test:5432", "--allow-raw", "203.0.113.0/24:22", "--allow-raw", "[2001:db8::1]:22"]
    assert network_of("--network", "proxy", "--allow", "a.test:443", "--allow", "*.b.test:80", *raw) == {
        "mode": "proxy",
        "allow": [
            "a.test:443",
            "*.b.test:80",
            {"host": "db.test", "ports": [5432], "raw": True},
            {"host": "203.0.113.0/24", "ports": [22], "raw": True},
            {"host": "2001:db8::1", "ports": [22], "raw": True},
        ],
    }
    assert network_of("--network", "proxy") == {"mode": "proxy"}
    assert network_of() is None


@pytest.mark.parametrize(
    ("rule", "requests"),
    [
        ("a.test:443", {}),
        ("a.test:443 GET,POST", {"methods": ["GET", "POST"]}),
        ("a.test:443 /v1/** /v2", {"paths": ["/v1/**", "/v2"]}),
        (" a.test:443  GET  /a,b ", {"methods": ["GET"], "paths": ["/a,b"]}),
    ],
)
def test_a_rule_for_requests_has_methods_and_paths(rule: str, requests: dict[str, Any]) -> None:
    others = ["--allow-raw", "db.test:5432", "--allow", "c.test:443"]
    found = network_of("--network", "proxy", *others, "--allow-http", rule, "--allow-http", "*.b.test:80 PUT /x")
    assert found["allow"] == [
        "c.test:443",
        {"host": "a.test", "ports": [443], "http": [requests]},
        {"host": "*.b.test", "ports": [80], "http": [{"methods": ["PUT"], "paths": ["/x"]}]},
        {"host": "db.test", "ports": [5432], "raw": True},
    ]
    for each in found["allow"]:
        parse_rule(each)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow-http", "a.test:443"], "--allow-http needs --network proxy"),
        (["--network", "direct", "--allow-http", "a.test:443"], "--allow-http needs --network proxy"),
        *(
            (["--network", "proxy", "--allow-http", rule], f"--allow-http '{rule}': write 'HOST:PORT METHODS PATH'")
            for rule in (
                "",
                "a.test",
                "a.test GET /",
                ":443",
                "https://a.test:443",
                "a.test:443/v1",
                "a.test:443 GET PUT",
            )
        ),
        (["--allow", "a.test:443"], "--allow needs --network proxy (or direct)"),
        (["--network", "none", "--allow", "a.test:443"], "--allow needs --network proxy (or direct)"),
        (["--network", "direct", "--allow-raw", "a.test:1"], "--allow-raw needs --network proxy"),
        (["--network", "proxy", "--allow", "203.0.113.7:443"], "--allow 203.0.113.7:443: addresses need --allow-raw"),
        (["--network", "proxy", "--allow", "10.0.0.0/8:443"], "--allow 10.0.0.0/8:443: addresses need --allow-raw"),
        (["--network", "proxy", "--allow", "[2001:db8::1]:443"], "addresses need --allow-raw"),
        (["--network", "proxy", "--allow", "https://www.example.org/x"], "write HOST:PORT, without http:// and"),
        (["--network", "proxy", "--allow-raw", "a.test"], "--allow-raw a.test: write HOST:PORT"),
        (["--network", "proxy", "--allow-raw", ":1"], "--allow-raw :1: write HOST:PORT"),
        (["--network", "proxy", "--allow-raw", "a.test:x"], "--allow-raw a.test:x: write HOST:PORT"),
    ],
)
async def test_what_does_not_fit_together_is_refused_before_anything_is_sent(words: list[str], said: str) -> None:
    async with fake_service() as service:
        ended = await bulkhead(service.url, "run", *words, "cmd")
    assert (ended.status, service.asked()) == (125, [])
    assert said in ended.stderr


# --- what is told at the end


async def after(service: FakeService, *words: str) -> list[str]:
    ended = await bulkhead(service.url, *words)
    assert ended.status == 0
    return ended.stderr.splitlines()


async def test_run_says_what_was_refused_and_which_option_would_permit_it() -> None:
    async with fake_service(ending()) as service:
        service.answers[NETWORK] = page(
            event("b.test", "name", port=None, address=None),
            event("b.test", "name", port=None, address=None),
            event("c.test", "rule", port=8443),
            event(None, "rule", port=22),
            event(None, "rule", address="2001:db8::1", port=22),
            event("db.test", "protocol", port=5432),
            event("inside.test", "private"),
            event("d.test", "a_word_of_tomorrow"),
        )
        said = await after(service, "run", *PROXY, "cmd")
        asked = service.asked()
    assert said == [
        "bulkhead: refused: b.test: no rule permits the name"
        " (--allow b.test:443, or another port: a look-up has no port)",
        "bulkhead: refused: c.test:8443: no rule permits this host at this port (--allow c.test:8443)",
        "bulkhead: refused: 203.0.113.7:22: no rule permits this host at this port (--allow-raw 203.0.113.7:22)",
        "bulkhead: refused: [2001:db8::1]:22: no rule permits this host at this port (--allow-raw [2001:db8::1]:22)",
        "bulkhead: refused: db.test:5432: the connection is neither TLS nor HTTP, and the rule is not raw"
        " (--allow-raw db.test:5432)",
        "bulkhead: refused: inside.test:443 at 203.0.113.7: the address is a private one."
        " The operator can permit its network: BULKHEAD_EGRESS__PERMIT_NETS",
        "bulkhead: refused: d.test:443: a_word_of_tomorrow",
    ]
    assert asked == [*WHOLE_LIFE[:-1], NETWORK, WHOLE_LIFE[-1]]
    assert service.requests[3].query["verdict"] == "refused"


def refused_request(path: str, method: str = "POST", reason: str = "http_path") -> dict[str, Any]:
    return event("api.test", reason, kind="request", method=method, path=path)


async def test_run_says_which_requests_were_refused_and_which_option_would_permit_them() -> None:
    async with fake_service(ending()) as service:
        service.answers[NETWORK] = page(
            refused_request("/v1/a%20b", "GET"),
            refused_request("/v1/x"),
            refused_request("/v1/x"),
            refused_request("/v1/y", "DELETE", "http_method"),
            refused_request("/z", reason="secret_host"),
        )
        said = await after(service, "run", *PROXY, "cmd")
    path, method = "no rule permits the path, or", "no rule permits the method, or it is one that is never passed on"
    assert said == [
        f"bulkhead: refused: api.test:443 GET /v1/a%20b: {path} servers may read it in more than one way",
        f"bulkhead: refused: api.test:443 POST /v1/x: {path} servers may read it in more than one way"
        " (--allow-http 'api.test:443 POST /v1/x')",
        f"bulkhead: refused: api.test:443 DELETE /v1/y: {method} (--allow-http 'api.test:443 DELETE /v1/y')",
        "bulkhead: refused: api.test:443: the request carries the placeholder of a secret that is for another host",
    ]


@pytest.mark.parametrize(
    "asked",
    [
        refused_request("/a/../b"),
        refused_request("/a/%2e%2e/b"),
        refused_request("/a%zz"),
        refused_request("/a*"),
        refused_request("/it's"),
        refused_request("/\xe9"),
        refused_request("/%e9"),
        refused_request("/" + "a" * 255),
        refused_request("/a", "TRACE", "http_method"),
        refused_request("/a", "get", "http_method"),
        event("api.test", "http_path", kind="request"),
        {name: value for name, value in refused_request("/a").items() if name not in {"method", "path"}},
    ],
)
def test_there_is_no_option_for_what_no_rule_can_permit_alone(asked: dict[str, Any]) -> None:
    assert "--allow" not in advice([asked], SANDBOX)[0]


async def test_run_without_a_proxy_asks_for_nothing_more() -> None:
    async with fake_service(ending()) as service:
        assert await after(service, "run", "cmd") == []
        assert service.asked() == WHOLE_LIFE


async def test_exec_tells_what_was_refused_since_it_began() -> None:
    async with fake_service(ending()) as service:
        begun = {"id": "exe_1", "sandbox_id": SANDBOX, "state": "running", "started_at": "2030-01-02T03:04:05Z"}
        service.answers[f"POST {EXECUTIONS}"] = answer(201, begun)
        service.answers[NETWORK] = page(
            event("before.test", "name", at="2030-01-02T03:04:04.999999Z"), event("b.test", "name")
        )
        said = await after(service, "exec", SANDBOX, "cmd")
    assert said == ["bulkhead: refused: b.test:443: no rule permits the name (--allow b.test:443)"]


async def test_a_service_that_does_not_tell_changes_nothing() -> None:
    async with fake_service(ending()) as service:
        service.answers[NETWORK] = problem(500, "internal_error", "no")
        assert await after(service, "exec", SANDBOX, "cmd") == []
        assert await after(service, "run", *PROXY, "cmd") == []


async def test_a_thousand_refused_names_are_few_lines() -> None:
    async with fake_service(ending()) as service:
        service.answers[NETWORK] = page(*(event(f"n{n}.test", "name") for n in range(1000)))
        said = await after(service, "run", *PROXY, "cmd")
    assert len(said) == LINES + 1
    assert said[-1] == f"bulkhead: refused: {1000 - LINES} more; to list them: bulkhead network --refused {SANDBOX}"


async def test_json_has_what_was_refused_and_stderr_nothing() -> None:
    async with fake_service(ending()) as service:
        service.answers[NETWORK] = page(event("b.test", "name"))
        ended = await bulkhead(service.url, "run", *PROXY, "--json", "cmd")
        without = await bulkhead(service.url, "run", "--json", "cmd")
    assert (ended.status, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["network"] == {"refused": [event("b.test", "name")]}
    assert "network" not in json.loads(without.stdout)


async def test_attach_to_what_others_started_tells_nothing_of_it() -> None:
    async with fake_service(ending()) as service:
        running = {
            "id": "exe_1",
            "tty": False,
            "state": "running",
            "command": ["cmd"],
            "output": {"stdout": {"bytes": 0}, "stderr": {"bytes": 0}},
        }
        service.answers[f"GET {EXECUTIONS}/exe_1"] = answer(200, running)
        await bulkhead(service.url, "attach", SANDBOX, "exe_1")
        assert service.asked() == [f"GET {EXECUTIONS}/exe_1", f"GET {STREAM}"]


# --- bulkhead network


async def test_events_are_a_table() -> None:
    async with fake_service() as service:
        service.answers[NETWORK] = page(
            event(), event("b.test\x1b[2J", "name", port=None, bytes_sent=0), refused_request("/x")
        )
        shown = await bulkhead(service.url, "network", SANDBOX)
        told = await bulkhead(service.url, "network", SANDBOX, "--refused", "--json")
    assert shown.stdout.decode().splitlines() == [
        "AT                    VERDICT  SENT       RECEIVED  REASON     HOST",
        "2030-01-02T03:04:05Z  allowed  812 bytes  39 KiB               a.test:443",
        "2030-01-02T03:04:05Z  refused  0 bytes    39 KiB    name       b.test\\x1b[2J",
        "2030-01-02T03:04:05Z  refused  812 bytes  39 KiB    http_path  api.test:443 POST /x",
    ]
    assert json.loads(told.stdout)[0]["name"] == "a.test"
    assert [request.query.get("verdict") for request in service.requests] == [None, "refused"]


async def test_a_long_host_makes_no_row_but_its_own_longer_on_a_terminal() -> None:
    """Of 80 columns. The last one is the host's, so the terminal wraps that row alone, and nothing is cut off."""
    long = f"{'a' * 60}.test"
    async with fake_service() as service, screen() as terminal:
        service.answers[NETWORK] = page(event(), event(long, "name", bytes_sent=0), event("z.test"))
        terminal.resize(24, 80)
        process = await terminal.begin(service.url, "network", SANDBOX, env={"TERM": "xterm", "COLUMNS": "80"})
        assert await process.wait() == 0
        await terminal.until(b"z.test:443")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in terminal.shown.decode().splitlines()]
    assert [line.split()[-1] for line in lines] == ["HOST", "a.test:443", f"{long}:443", "z.test:443"]
    assert [len(line) <= 80 for line in lines] == [True, True, False, True]


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        ("none", [], "has no network (--network proxy --allow HOST:PORT gives one)"),
        ("direct", [], "is direct: its connections are not known here"),
        ("proxy", [], "has used no network so far"),
        ("proxy", ["--refused"], "has been refused nothing so far"),
    ],
)
async def test_who_asks_about_no_events_is_told_why(mode: str, options: list[str], said: str) -> None:
    async with fake_service() as service:
        service.answers[NETWORK] = page()
        service.answers[f"GET {BASE}"] = answer(200, {"id": SANDBOX, "policy": {"network": {"mode": mode}}})
        shown = await bulkhead(service.url, "network", SANDBOX, *options)
        listed = await bulkhead(service.url, "network", SANDBOX, *options, "--json")
    assert (shown.status, shown.stdout, listed.stdout) == (0, b"", b"[]\n")
    assert SANDBOX in shown.stderr and shown.stderr.endswith(f"{said}\n")


async def test_who_follows_gets_lines_until_the_sandbox_ends() -> None:
    async with fake_service() as service:
        found = stream(("network", event()), ("gap", {"dropped": 3}), ("network", event("b.test", "name")), ("end", {}))
        service.answers[NETWORK] = found
        lines = await bulkhead(service.url, "network", SANDBOX, "-f")
        objects = await bulkhead(service.url, "network", SANDBOX, "-f", "--json")
    assert lines.stdout.decode().splitlines() == [
        "03:04:05  allowed  a.test:443  812 bytes sent, 39 KiB received",
        "03:04:05  refused  b.test:443  812 bytes sent, 39 KiB received  name",
    ]
    assert lines.stderr == "bulkhead: 3 events are no longer kept\n"
    assert [json.loads(line)["name"] for line in objects.stdout.splitlines()] == ["a.test", "b.test"]
    assert (lines.status, objects.status) == (0, 0)


async def test_events_that_were_cut_go_on_behind_the_last_one() -> None:
    class Cutting(FakeService):
        async def _answer(self, request: Any) -> Answer:
            last = request.headers.get("last-event-id")
            return stream(("network", event("a.test"))) if last is None else stream(("end", {}))

    async with fake_service(kind=Cutting) as service:
        ended = await bulkhead(service.url, "network", SANDBOX, "-f")
    assert (ended.status, len(ended.stdout.splitlines())) == (0, 1)
    assert [request.headers.get("last-event-id") for request in service.requests] == [None, "0"]


async def test_a_sandbox_that_is_not_there_is_told() -> None:
    async with fake_service() as service:
        for words in (["network", "x"], ["network", "x", "-f"]):
            ended = await bulkhead(service.url, *words)
            assert (ended.status, ended.stdout) == (125, b"")
            assert ended.stderr == "bulkhead: not found: there is nothing at this path\n"


async def test_a_service_that_ends_the_events_again_and_again_is_given_up() -> None:
    async with fake_service() as service:
        service.answers[NETWORK] = stream()
        ended = await bulkhead(service.url, "network", SANDBOX, "-f")
    assert ended.status == 125
    assert ended.stderr.endswith("was cut (it ended too early)\n")
    assert len(service.requests) == 4


async def test_a_problem_among_the_events_is_told() -> None:
    async with fake_service() as service:
        service.answers[NETWORK] = stream(("problem", {"type": "problem", "problem": {"detail": "it broke"}}))
        ended = await bulkhead(service.url, "network", SANDBOX, "-f")
    assert (ended.status, ended.stderr) == (125, "bulkhead: it broke\n")


# --- other rules


SHOWN = {"id": SANDBOX, "secrets": {"TOKEN": {"hosts": ["api.test"], "from": None}}}


def rules(*allow: dict[str, Any]) -> Answer:
    return answer(200, {"id": SANDBOX, "policy": {"network": {"mode": "proxy", "allow": list(allow)}}})


async def test_rules_are_replaced_and_those_in_force_are_shown() -> None:
    async with fake_service() as service:
        in_force = {"host": "a.test", "ports": [443], "raw": False, "http": None}, {
            "host": "2001:db8::1", "ports": [22], "raw": True, "http": None,
        }  # fmt: skip
        service.answers[f"GET {BASE}"] = answer(200, SHOWN)
        service.answers[f"PATCH {BASE}"] = rules(*in_force)
        words = ["network", SANDBOX, "--allow", "a.test:443", "--allow-raw", "[2001:db8::1]:22"]
        shown = await bulkhead(service.url, *words)
        told = await bulkhead(service.url, *words, "--json")
        service.answers[f"PATCH {BASE}"] = rules()
        nothing = await bulkhead(service.url, "network", SANDBOX, "--allow-none")
    assert shown.stdout == b"a.test:443\n[2001:db8::1]:22 raw\n"
    assert json.loads(told.stdout) == {"mode": "proxy", "allow": list(in_force)}
    assert (nothing.stdout, nothing.status) == (b"nothing is permitted\n", 0)
    assert asked(service) == [["a.test:443", {"host": "2001:db8::1", "ports": [22], "raw": True}]] * 2 + [[]]


def asked(service: FakeService) -> list[Any]:
    return [r.body["policy"]["network"]["allow"] for r in service.requests if r.method == "PATCH"]


async def test_requests_to_hosts_of_secrets_are_read_under_other_rules_too() -> None:
    async with fake_service() as service:
        service.answers[f"GET {BASE}"] = answer(200, SHOWN)
        service.answers[f"PATCH {BASE}"] = rules()
        some = ["--allow-http", "api.test:443 GET"]
        await bulkhead(service.url, "network", SANDBOX, "--allow", "API.test:443", "--allow", "a.test:443", *some)
    assert asked(service) == [
        [
            {"host": "API.test", "ports": [443], "http": [{}]},
            "a.test:443",
            {"host": "api.test", "ports": [443], "http": [{"methods": ["GET"]}]},
        ]
    ]


async def test_change_that_is_refused_says_why() -> None:
    async with fake_service() as service:
        service.answers[f"GET {BASE}"] = answer(200, {"id": SANDBOX})
        service.answers[f"PATCH {BASE}"] = problem(409, "conflict", "a program of the sandbox holds port 443")
        ended = await bulkhead(service.url, "network", SANDBOX, "--allow", "a.test:443")
    assert (ended.status, ended.stdout) == (125, b"")
    assert "a program of the sandbox holds port 443" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow", "https://a.test"], "write HOST:PORT, without http:// and"),
        (["--allow-raw", "a.test"], "--allow-raw a.test: write HOST:PORT"),
        (["--allow", "a.test:443", "--allow-none"], "use either --allow-none or rules"),
        (["--allow", "a.test:443", "-f"], "rules are set without --follow and --refused"),
        (["--allow-none", "--refused"], "rules are set without --follow and --refused"),
    ],
)
async def test_rules_that_do_not_fit_together_are_refused_before_anything_is_sent(words: list[str], said: str) -> None:
    async with fake_service() as service:
        ended = await bulkhead(service.url, "network", SANDBOX, *words)
    assert (ended.status, service.asked()) == (125, [])
    assert said in ended.stderr
