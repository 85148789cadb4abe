"""What network rules say about requests."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.http_rules import HttpRule, covers, parse_http_rules


@pytest.mark.parametrize(
    ("value", "rules"),
    [
        (None, ()),
        ([{}], (HttpRule(),)),
        ([{}, {}], (HttpRule(),)),
        ([{"methods": None, "paths": None}], (HttpRule(),)),
        ([{"methods": ["POST", "GET", "GET"]}], (HttpRule(("GET", "POST")),)),
        ([{"methods": ["M-SEARCH"], "paths": ["/b", "/a/**"]}], (HttpRule(("M-SEARCH",), ("/a/**", "/b")),)),
    ],
)
def test_rules_have_one_normal_form(value: Any, rules: tuple[HttpRule, ...]) -> None:
    assert parse_http_rules(value) == rules
    assert parse_http_rules([rule.as_dict() for rule in rules] or None) == rules


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("GET", "must be a list"),
        ([], "[{}] permits every request"),
        (["GET"], "not an object with methods and paths"),
        ([{"method": "GET"}], "method is not a field"),
        ([{"methods": "GET"}], "methods must be a list"),
        ([{"methods": []}], "leave it out for all methods"),
        ([{"paths": []}], "leave it out for all paths"),
        ([{"methods": [0]}], "0 in methods is not a string"),
        ([{"paths": [None]}], "None in paths is not a string"),
        ([{"methods": ["get"]}], "not a method in capital letters; write GET"),
        ([{"methods": ["G T"]}], "not a method in capital letters"),
        ([{"methods": ["*"]}], "not a method in capital letters"),
        ([{"methods": ["TRACE"]}], "never passed on"),
        ([{"methods": ["GET", "CONNECT"]}], "never passed on"),
        ([{"paths": ["v1"]}], "does not begin with /"),
        ([{"paths": [f"/{n}" for n in range(33)]}], "1 to 32 strings"),
        ([{"paths": [f"/{n}" for n in range(17)]}, {"paths": [f"/x{n}" for n in range(16)]}], "more than 32 paths"),
    ],
)
def test_what_is_no_rule_is_refused_with_a_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse_http_rules(value)


def test_methods_are_told_apart_by_their_letters_and_get_admits_head() -> None:
    rule = HttpRule(("GET", "POST"))
    assert [m for m in ("GET", "HEAD", "POST", "get", "PUT", "OPTIONS") if rule.permits_method(m)] == [
        "GET", "HEAD", "POST",
    ]  # fmt: skip
    assert not HttpRule(("HEAD",)).permits_method("GET")
    assert HttpRule().permits_method("PURGE")


def test_what_is_absent_is_not_judged() -> None:
    assert HttpRule().permits_path("/any//../thing")
    assert HttpRule(paths=("/v1/**",)).permits_path("/v1/a")
    assert not HttpRule(paths=("/v1/**",)).permits_path("/v1")


methods = st.sampled_from(["GET", "HEAD", "POST"])
paths = st.sampled_from(["/a", "/a/**", "/*", "/**", "/b"])
rules = st.lists(
    st.builds(lambda m, p: HttpRule(tuple(sorted(m)), tuple(sorted(p))), st.sets(methods), st.sets(paths)), max_size=3
)


@given(rules, rules, methods | st.just("PUT"), st.sampled_from(["/a", "/a/b", "/b", "/", "/c/d"]))
def test_covered_rules_permit_nothing_more(
    wide: list[HttpRule], narrow: list[HttpRule], method: str, path: str
) -> None:
    def permit(rules: list[HttpRule]) -> bool:
        return any(rule.permits_method(method) and rule.permits_path(path) for rule in rules)

    if covers(wide, narrow) and permit(narrow):
        assert permit(wide)


@given(rules)
def test_rules_cover_themselves(found: list[HttpRule]) -> None:
    assert covers(found, found)
