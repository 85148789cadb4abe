"""Secrets: what they may be, and what shows of them."""

from __future__ import annotations

import copy
import re
import traceback
from dataclasses import replace

import pytest

from app.core.commands import secret_bytes, spec_bytes, with_environment
from app.core.models import Command
from app.core.network_rules import parse_rule
from app.core.operator_secrets import OperatorSecret, OperatorSecrets
from app.core.secrets import VALUE_BYTES, Secret, SecretValue, check_rules, is_variable, new_placeholder, secret_hosts
from tests.unit.core.support import SPEC

CANARY = "canary-7f3a"
READ = {"host": "api.test", "ports": [443], "http": [{}]}


def test_a_value_shows_itself_to_nobody_who_does_not_ask() -> None:
    value = SecretValue(CANARY)
    secret = Secret("TOKEN", ("api.test",), value, placeholder=new_placeholder(value))
    operators = OperatorSecret(value, ("api.test",))
    spec = replace(SPEC, secrets=(secret,))
    shown = [repr(value), str(value), f"{value}", f"{secret!r} {operators!r} {spec!r}"]
    try:
        raise RuntimeError(value, secret)
    except RuntimeError:
        shown.append(traceback.format_exc())
    assert not any(CANARY in text for text in shown)
    assert value.reveal() == CANARY


def test_values_are_equal_by_what_they_are() -> None:
    assert SecretValue("a") == SecretValue("a") != SecretValue("b")
    assert SecretValue("a") != "a"
    assert len({SecretValue("a"), SecretValue("a"), SecretValue("b")}) == 2
    assert copy.deepcopy(SecretValue("a")) == SecretValue("a")


@pytest.mark.parametrize("text", ["a", "Zürich", "a b", "~" * VALUE_BYTES, "=:/+,;\"'\\"])
def test_what_fits_into_a_header_can_be_a_value(text: str) -> None:
    assert SecretValue(text).reveal() == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must have 1 to 8192 bytes"),
        ("~" * (VALUE_BYTES + 1), "must have 1 to 8192 bytes"),
        ("ü" * (VALUE_BYTES // 2 + 1), "must have 1 to 8192 bytes"),
        ("can\ud800ary", "half of a surrogate pair"),
        *((f"can{bad}ary", "control characters") for bad in "\r\n\0\t\x1b\x7f"),
        (" canary", "white space"),
        ("canary ", "white space"),
        ("canary\n", "control characters"),
    ],
)
def test_what_does_not_fit_is_refused_without_being_shown(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        SecretValue(text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["TOKEN", "_a1", "a" * 128])
def test_names_of_variables(name: str) -> None:
    assert is_variable(name)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A B", "Ä", "A\n", "a" * 129])
def test_what_is_no_name_of_a_variable(name: str) -> None:
    assert not is_variable(name)


def test_hosts_are_names_in_their_normal_form() -> None:
    assert secret_hosts(["API.test.", "api.test", "b.test"]) == ("api.test", "b.test")


@pytest.mark.parametrize(
    "hosts", [[], ["*"], ["*.test"], ["192.0.2.1"], ["10.0.0.0/8"], ["a b"], [f"h{n}.test" for n in range(17)]]
)
def test_a_secret_is_for_few_exact_names(hosts: list[str]) -> None:
    with pytest.raises(ValueError, match="host"):
        secret_hosts(hosts)


@pytest.mark.parametrize(("size", "length"), [(1, 48), (48, 48), (49, 64), (100, 128), (8192, 8192)])
def test_a_placeholder_is_as_long_as_a_secret_of_its_class(size: int, length: int) -> None:
    found = new_placeholder(SecretValue("x" * size))
    assert len(found) == length
    assert re.fullmatch(r"bulkhead_secret_[0-9a-f]{32,}", found)
    assert found != new_placeholder(SecretValue("x" * size))


def test_programs_find_placeholders_in_their_environment() -> None:
    secret = Secret("TOKEN", ("api.test",), SecretValue(CANARY), placeholder="bulkhead_secret_0")
    spec = replace(SPEC, env={"A": "1"}, secrets=(secret,))
    assert with_environment(Command(("env",)), spec).env == {"A": "1", "TOKEN": "bulkhead_secret_0"}
    assert with_environment(Command(("env",), {"TOKEN": "2"}), spec).env["TOKEN"] == "2"


def test_a_secret_counts_until_the_end_and_its_hosts_after_it() -> None:
    value = SecretValue("v" * 100)
    secret = Secret("TOKEN", ("api.test",), value, placeholder=new_placeholder(value))
    spec, after = replace(SPEC, secrets=(secret,)), replace(SPEC, secrets=(secret.after_end(),))
    assert secret_bytes(spec) == 100 + 128
    assert spec_bytes(spec) - spec_bytes(after) == 228
    assert spec_bytes(after) > spec_bytes(SPEC)
    assert after.secrets == (Secret("TOKEN", ("api.test",)),)


# --- its rules


def test_a_host_that_is_read_over_tls_can_have_a_secret() -> None:
    check_rules(Secret("TOKEN", ("api.test",)), [parse_rule(READ), parse_rule("other.test:443")])
    check_rules(Secret("TOKEN", ("api.test",)), [parse_rule({**READ, "host": "*.test", "ports": [80, 8443]})])


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([], "api.test needs a rule with `http`"),
        (["other.test:443"], "api.test needs a rule with `http`"),
        ([{**READ, "ports": [80]}], "api.test needs a rule with `http`"),
        (["api.test:443"], "the rule api.test:443 lets bytes to api.test pass unread"),
        ([READ, "*.test:443"], r"the rule \*.test:443 lets bytes to api.test pass unread"),
        ([READ, {"host": "*", "ports": [1], "raw": True}], r"the rule \*:1 raw lets bytes to api.test pass unread"),
    ],
)
def test_a_host_that_is_not_read_can_have_none(rules: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_rules(Secret("TOKEN", ("api.test",)), map(parse_rule, rules))


# --- the operator's


def test_the_operators_secret_is_what_it_is_now() -> None:
    operators = OperatorSecrets({"llm": OperatorSecret(SecretValue("one"), ("a.test", "b.test"))})
    heard: list[int] = []
    operators.listen(lambda: heard.append(1))
    secret = Secret("TOKEN", ("a.test", "b.test"), source="llm")
    assert operators.in_force(secret) == (SecretValue("one"), ("a.test", "b.test"))
    operators.replace({"llm": OperatorSecret(SecretValue("two"), ("b.test", "c.test"))})
    assert operators.in_force(secret) == (SecretValue("two"), ("b.test",))
    operators.replace({"llm": OperatorSecret(SecretValue("two"), ("c.test",))})
    assert operators.in_force(secret) is None
    operators.replace({})
    assert (operators.in_force(secret), operators.names) == (None, ())
    assert heard == [1, 1, 1]


def test_a_clients_own_secret_stays_what_it_is() -> None:
    secret = Secret("TOKEN", ("a.test",), SecretValue("own"))
    assert OperatorSecrets().in_force(secret) == (SecretValue("own"), ("a.test",))
    assert OperatorSecrets().in_force(secret.after_end()) is None
