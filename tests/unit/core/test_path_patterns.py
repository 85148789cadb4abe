"""Patterns of paths: what they match, what none may be, and which covers which."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.path_patterns import check_pattern, covers, matches
from tests.processor_time import cost


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/", ["/"], ["/a", "//", ""]),
        ("/v1", ["/v1"], ["/v1/", "/v1/a", "/v", "/V1", "/v11"]),
        ("/v1/", ["/v1/"], ["/v1", "/v1/a"]),
        ("/v1/**", ["/v1/", "/v1/a", "/v1/a/b", "/v1/a/"], ["/v1", "/v11", "/v11/a", "/", "/x/v1/a"]),
        ("/**", ["/", "/a", "/a/b/"], []),
        ("/v1/*", ["/v1/a", "/v1/"], ["/v1", "/v1/a/b", "/v1/a/"]),
        ("/v*/x", ["/v/x", "/v1/x", "/v1.2/x"], ["/v1", "/v1/y/x", "/a/x"]),
        ("/a*b*c", ["/abc", "/aXbYc", "/abbcc", "/abcbc"], ["/ab", "/acb", "/ab/c", "/abcd"]),
        ("/*.json", ["/.json", "/a.json"], ["/a/b.json", "/a.jsonx"]),
        ("/**/*.json", ["/a.json", "/a/b/c.json"], ["/a.xml", "/a.json/"]),
        ("/a/**/b", ["/a/b", "/a/x/b", "/a/x/y/b", "/a/b/b"], ["/a", "/b", "/a/x", "/ab", "/a/b/c"]),
        ("/**/a/**/b", ["/a/b", "/x/a/y/b", "/a/a/b/b"], ["/b/a", "/a", "/x/b"]),
        ("/**/a*/b", ["/a/b", "/a/x/ay/b", "/x/a1/c/a2/b"], ["/a/x/b"]),
        ("/a/**/b/c/**", ["/a/b/c/", "/a/b/x/b/c/d"], ["/a/b/c", "/a/b/x/c/d"]),
        ("/*/*", ["/a/b", "/a/"], ["/a", "/a/b/c"]),
        ("/caf\u00e9", ["/caf\u00e9"], ["/cafe"]),
        ("/(a|b)+[c]", ["/(a|b)+[c]"], ["/a"]),
    ],
)
def test_pattern_matches_these_paths_and_not_those(pattern: str, yes: list[str], no: list[str]) -> None:
    assert check_pattern(pattern) == pattern
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("", "does not begin with /"),
        ("v1", "does not begin with /"),
        ("*", "does not begin with /"),
        ("/a%2fb", "paths are compared decoded"),
        ("/a?b", "contains '?'"),
        ("/a#b", "contains '#'"),
        ("/a\\b", "which no path of a rule may"),
        ("/a\nb", "which no path of a rule may"),
        ("/a\0b", "which no path of a rule may"),
        ("/a\ud800", "which no path of a rule may"),
        ("/a//b", "an empty segment"),
        ("//", "an empty segment"),
        ("/a/../b", "an empty segment, . or .."),
        ("/.", "an empty segment, . or .."),
        ("/a**", "not a segment of its own"),
        ("/***", "not a segment of its own"),
        ("/a/**/**/b", "two ** that follow"),
        ("/" + "a" * 256, "more than 256 bytes"),
        ("/" + "\u00e9" * 128, "more than 256 bytes"),
        ("/a" * 33, "more than 32 segments"),
    ],
)
def test_what_is_no_pattern_is_refused_with_a_sentence(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("wide", "narrow", "is_covered"),
    [
        ("/v1/**", "/v1/a", True),
        ("/v1/**", "/v1/*", True),
        ("/v1/**", "/v1/**", True),
        ("/v1/**", "/v1/a/**/b", True),
        ("/v1/**", "/v1", False),
        ("/v1/**", "/**", False),
        ("/v1/*", "/v1/**", False),
        ("/v1/*", "/v1/a*", True),
        ("/v1/a*", "/v1/*", False),
        ("/*/b", "/**/b", False),
        ("/**/b", "/*/b", True),
        ("/**/b", "/a/**/b", True),
        ("/a/**/*/b", "/a/**/b", False),
        ("/a*/**", "/**", False),
        ("/**", "/a/**", True),
    ],
)
def test_pattern_covers_another_one(wide: str, narrow: str, is_covered: bool) -> None:
    assert covers(wide, narrow) is is_covered


segment = st.sampled_from(["a", "b", "ab", "aba", "", "*", "a*", "*b", "a*a", "**"])
patterns = st.lists(segment, min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))
paths = st.lists(st.sampled_from(["a", "b", "ab", "aba", ""]), min_size=1, max_size=6).map("/".join).map("/".__add__)


def is_pattern(text: str) -> bool:
    try:
        check_pattern(text)
    except ValueError:
        return False
    return True


def by_regex(pattern: str, path: str) -> bool:
    """The same meaning in another way, which takes steps back."""
    form = ""
    segments = pattern.split("/")[1:]
    for place, part in enumerate(segments, 1):
        if part == "**":
            form += "(?:/[^/]*)*" if place < len(segments) else "(?:/[^/]*)+"
        else:
            form += "/" + "[^/]*".join(map(re.escape, part.split("*")))
    return re.fullmatch(form, path) is not None


@given(patterns.filter(is_pattern), paths)
def test_pattern_means_what_a_regular_expression_says(pattern: str, path: str) -> None:
    assert matches(pattern, path) is by_regex(pattern, path)


@given(patterns.filter(is_pattern), patterns.filter(is_pattern), paths)
@example("/a/**", "/a/**/b", "/a/b")
def test_covered_pattern_matches_nothing_more(wide: str, narrow: str, path: str) -> None:
    if covers(wide, narrow) and matches(narrow, path):
        assert matches(wide, path)


@given(patterns.filter(is_pattern))
def test_pattern_covers_itself(pattern: str) -> None:
    assert covers(pattern, pattern)


@pytest.mark.parametrize("pattern", ["/" + "*a" * 127 + "b", "/**" + "/a" * 30 + "/b", "/**/a" * 15 + "/b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    path = "/a" * 128 if "**" in pattern else "/" + "a" * 8192
    assert cost(lambda: matches(check_pattern(pattern), path)) < 0.1  # 2 ms here; a regular expression would take years
    assert not matches(check_pattern(pattern), path)
