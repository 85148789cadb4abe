"""The option --secret: what goes into the request, and that no message shows what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli import UsageError
from app.cli.bodies import sandbox_body
from app.cli.parser import parse
from app.core.network_rules import parse_rule
from app.core.secrets import Secret, check_rules


def body_of(*options: str) -> dict[str, Any]:
    return sandbox_body(parse(["run", "--network", "proxy", *options, "--", "true"]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("canary-7f3a\n")
    return path


def read(host: str, *ports: int) -> dict[str, Any]:
    return {"host": host, "ports": list(ports), "http": [{}]}


def test_a_value_comes_from_a_file_without_its_line_end(file: Path) -> None:
    body = body_of("--secret", f"TOKEN=@{file}:api.test,b.test")
    assert body["secrets"] == {"TOKEN": {"value": "canary-7f3a", "hosts": ["api.test", "b.test"]}}
    assert body["policy"]["network"]["allow"] == [read("api.test", 443), read("b.test", 443)]


def test_one_of_the_operators_is_named(file: Path) -> None:
    body = body_of("--secret", "LLM_KEY:api.test", "--secret", f"TOKEN=@{file}:b.test")
    assert body["secrets"] == {
        "LLM_KEY": {"from": "LLM_KEY", "hosts": ["api.test"]},
        "TOKEN": {"value": "canary-7f3a", "hosts": ["b.test"]},
    }


def test_rules_for_its_hosts_have_requests_read_and_others_stay(file: Path) -> None:
    allow = ["--allow", "API.test:443", "--allow", "api.test:8443", "--allow", "c.test:443", "--allow-raw", "d.test:22"]
    body = body_of(*allow, "--secret", f"TOKEN=@{file}:api.test")
    assert body["policy"]["network"]["allow"] == [
        read("API.test", 443),
        read("api.test", 8443),
        "c.test:443",
        {"host": "d.test", "ports": [22], "raw": True},
        read("api.test", 443),
    ]


@pytest.mark.parametrize(
    ("rule", "is_enough"),
    [
        ("api.test:443 POST /v1/chat", True),
        ("*.TEST:8443 POST /v1/chat", True),
        ("api.test:80 POST /v1/chat", False),
        ("b.test:443 POST /v1/chat", False),
    ],
)
def test_a_rule_with_requests_of_its_host_says_which_it_is_for(file: Path, rule: str, is_enough: bool) -> None:
    """Otherwise all requests to the host are permitted."""
    body = body_of("--allow-http", rule, "--secret", f"TOKEN=@{file}:api.test")
    of_rule, *others = body["policy"]["network"]["allow"]
    assert of_rule["http"] == [{"methods": ["POST"], "paths": ["/v1/chat"]}]
    assert others == ([] if is_enough else [read("api.test", 443)])
    check_rules(Secret("TOKEN", ("api.test",)), list(map(parse_rule, [of_rule, *others])))


def test_one_that_is_given_twice_is_refused(file: Path) -> None:
    twice = ["--secret", f"TOKEN=@{file}:a.test", "--secret", f"TOKEN=@{file}:b.test"]
    with pytest.raises(UsageError, match="--secret: a NAME is given twice; several hosts are HOST,HOST"):
        body_of(*twice)


@pytest.mark.parametrize("wide", ["*", "*.test", "*.TEST.", "api.test."])
def test_a_rule_that_fits_a_host_of_a_secret_has_requests_read(file: Path, wide: str) -> None:
    """The service refuses one that lets them pass unread."""
    allow = ["--allow", f"{wide}:8443", "--allow", "*.other:443"]
    body = body_of(*allow, "--secret", f"TOKEN=@{file}:api.test")
    rules = body["policy"]["network"]["allow"]
    assert rules == [read(wide, 8443), "*.other:443", read("api.test", 443)]
    check_rules(Secret("TOKEN", ("api.test",)), list(map(parse_rule, rules)))


def test_a_file_may_be_a_pipe(file: Path) -> None:
    with file.open() as opened:
        body = body_of("--secret", f"TOKEN=@/dev/fd/{opened.fileno()}:api.test")
    assert body["secrets"]["TOKEN"]["value"] == "canary-7f3a"


@pytest.mark.parametrize(
    "text",
    ["TOKEN=canary:api.test", "TOKEN=@canary", "=@canary:api.test", "canary", ":api.test", "TOKEN=@f:", "T=@f:a,"],
)
def test_what_is_no_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(UsageError, match="write NAME=@FILE:HOST, or NAME:HOST for one of the operator's") as caught:
        body_of("--secret", text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "No such file"), (b"canary\xff", "is not UTF-8"), (b"c" * 70_000, "has more than")]
)
def test_a_file_that_cannot_be_a_value_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{path} .*{sentence}") as caught:
        body_of("--secret", f"TOKEN=@{path}:api.test")
    assert "canary" not in str(caught.value)


def test_it_needs_the_mode_proxy(file: Path) -> None:
    with pytest.raises(UsageError, match="--secret needs --network proxy"):
        sandbox_body(parse(["create", "--secret", f"TOKEN=@{file}:api.test"]))


def test_without_it_a_request_has_no_secrets() -> None:
    assert "secrets" not in body_of("--allow", "a.test:443")
