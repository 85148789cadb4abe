"""A refusal names the option that was typed, not the field of the request that became of it."""

from __future__ import annotations

from argparse import Namespace

import pytest

from app.cli.options import option_of
from app.cli.parser import parse
from tests.unit.cli.fake_service import fake_service, problem
from tests.unit.cli.typed import bulkhead

RULES = ["--network", "proxy", "--allow", "a.test:443", "--allow-raw", "192.0.2.7:22", "--allow", "b.test:80"]
READ = ["--allow-http", "c.test:443 get", "--secret", "KEY:d.test"]
EVERY = ["--env", "A/B=1", "--label", "team=x", "--requires", "files", "--requires", "pty", "--timeout", "5"]


def typed(*words: str) -> Namespace:
    return parse(["run", *words, "--", "true"])


@pytest.mark.parametrize(
    ("pointer", "option"),
    [
        ("/policy/network/allow/0", "--allow a.test:443"),
        ("/policy/network/allow/1/ports/0", "--allow b.test:80"),
        ("/policy/network/allow/2/http/0/methods/0", "--allow-http 'c.test:443 get'"),
        ("/policy/network/allow/3", "--allow-raw 192.0.2.7:22"),
        ("/policy/network/allow/4", "--secret"),
        ("/policy/network/allow", "--allow"),
        ("/policy/network/mode", "--network"),
        ("/policy/network", "--network"),
        ("/policy/profile", "--profile"),
        ("/limits/memory_mib", "--memory-mib"),
        ("/limits/cpu_seconds", "--cpu-seconds"),
        ("/env/A~1B", "--env A/B"),
        ("/labels/team", "--label team"),
        ("/requires/1", "--requires pty"),
        ("/timeout_seconds", "--timeout"),
        ("/ttl_seconds", "--ttl"),
        ("/workdir", "--workdir"),
        ("/isolation_min", "--isolation-min"),
        ("/command/0", "the command"),
        ("/command/1", "argument 1 of the command"),
        ("/command", "the command"),
    ],
)
def test_a_field_of_the_request_is_the_option_that_it_came_from(pointer: str, option: str) -> None:
    assert option_of(pointer, typed(*RULES, *READ, *EVERY)) == option


@pytest.mark.parametrize("pointer", ["", "/", "/files/0/path", "query/limit", "header/If-Match", "/limits/no_such"])
def test_what_no_option_gives_keeps_its_pointer(pointer: str) -> None:
    assert option_of(pointer, typed()) == pointer


@pytest.mark.parametrize("option", ["--allow", "--allow-http", "--allow-raw"])
def test_all_rules_together_are_the_one_option_that_was_typed(option: str) -> None:
    assert option_of("/policy/network/allow", typed("--network", "proxy", option, "a.test:443")) == option


@pytest.mark.parametrize("number", ["0", "99", "-1", "x"])
def test_a_rule_that_was_not_typed_is_the_option_alone(number: str) -> None:
    assert option_of(f"/policy/network/allow/{number}", typed("--network", "proxy")) in {"--allow", "--allow-raw"}


async def test_a_refused_create_says_the_option() -> None:
    errors = [
        {"pointer": "/policy/network/allow/0", "detail": "is not permitted"},
        {"pointer": "/limits/cpus", "detail": "must be a number"},
    ]
    refusal = problem(422, "invalid_request", "invalid request", errors=errors)
    async with fake_service() as service:
        service.answers["POST /sandboxes"] = refusal
        words = ["create", "--network", "proxy", "--allow", "a.test:443", "--cpus", "1"]
        ended = await bulkhead(service.url, *words)
    said = "invalid request: --allow a.test:443: is not permitted; --cpus: must be a number"
    assert (ended.status, ended.stderr) == (125, f"bulkhead: {said}\n")
