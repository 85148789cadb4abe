"""Rules of `proxy`: what can be written, what they match, and that a narrower rule never permits more."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core import hosts
from app.core.http_rules import HttpRule
from app.core.network_rules import NetworkRule, covers, parse_rule, paths_of, ports_of, rule_for, rules_for


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("index.example.org:443", NetworkRule("index.example.org", (443,))),
        (" Index.EXAMPLE.org.:443 ", NetworkRule("index.example.org", (443,))),
        ("*.example.net:8443", NetworkRule("*.example.net", (8443,))),
        ("*:80", NetworkRule("*", (80,))),
        ("db:5432", NetworkRule("db", (5432,))),
        ("xn--mnchen-3ya.example:443", NetworkRule("xn--mnchen-3ya.example", (443,))),
        ({"host": "a.test", "ports": [8443, 443, 443]}, NetworkRule("a.test", (443, 8443))),
        ({"host": "a.test", "ports": [1], "raw": True}, NetworkRule("a.test", (1,), raw=True)),
        ({"host": "203.0.113.0/24", "ports": [5432], "raw": True}, NetworkRule("203.0.113.0/24", (5432,), True)),
        ({"host": "203.0.113.9/32", "ports": [65535], "raw": True}, NetworkRule("203.0.113.9", (65535,), True)),
        ({"host": "2001:DB8::1", "ports": [22], "raw": True}, NetworkRule("2001:db8::1", (22,), True)),
        ({"host": "::ffff:203.0.113.0/120", "ports": [22], "raw": True}, NetworkRule("203.0.113.0/24", (22,), True)),
    ],
)
def test_a_rule_has_one_normal_form(value: Any, rule: NetworkRule) -> None:
    assert parse_rule(value) == rule
    assert parse_rule(rule.as_dict()) == rule


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"host": "10.0.0.1/8", "ports": [22], "raw": True}, "write 10.0.0.0/8, or 10.0.0.1 alone"),
        ({"host": "2001:db8::7/64", "ports": [22], "raw": True}, "write 2001:db8::/64, or 2001:db8::7 alone"),
        ({"host": "::ffff:10.0.0.1/104", "ports": [22], "raw": True}, "write 10.0.0.0/8, or"),
        ("example.org", "has no port"),
        ("", "has no port"),
        (":443", "not a host name"),
        ("example.org:", "not a port"),
        ("example.org:https", "not a port"),
        ("example.org:٤٤٣", "not a port"),
        ("example.org:0", "not a port from 1"),
        ("example.org:65536", "not a port from 1"),
        ("example.org:99999999999999999999", "not a port"),
        ("example.org:53", "names are answered inside"),
        ("localhost:80", "the sandbox itself"),
        ("a.LOCALHOST.:80", "the sandbox itself"),
        ("203.0.113.9:443", "written as an object"),
        ("203.0.113.0/24:443", "written as an object"),
        ("203.0.113.9", "written as an object"),
        ("[2001:db8::1]:443", "written as an object"),
        ("2001:db8::1", "written as an object"),
        ("127.1:443", "not a host name"),
        ("0x7f000001:443", "not a host name"),
        ("2130706433:443", "not a host name"),
        ("127.0.0.0x1:443", "not a host name"),
        ("a..b:443", "not a host name"),
        ("a.b..:443", "not a host name"),
        ("*.*.b:443", "not a host name"),
        ("a.*:443", "not a host name"),
        ("*b.test:443", "not a host name"),
        ("-a.test:443", "not a host name"),
        ("a b.test:443", "not a host name"),
        ("https://a.test:443", "written as an object"),
        (f"{'a' * 64}.test:443", "not a host name"),
        (f"{'a.' * 126}test:443", "not a host name"),
        (f"{'a.' * 9000}test:443", "longer than a host name"),
        ("münchen.example:443", "written in its xn-- form"),
        ({}, "host is missing"),
        ({"host": 1, "ports": [1]}, "host is missing"),
        ({"host": "a.test"}, "ports must be a list"),
        ({"host": "a.test", "ports": []}, "ports must be a list"),
        ({"host": "a.test", "ports": "443"}, "ports must be a list"),
        ({"host": "a.test", "ports": [*range(1, 18)]}, "1 to 16 ports"),
        ({"host": "a.test", "ports": [True]}, "not a port"),
        ({"host": "a.test", "ports": [443.0]}, "not a port"),
        ({"host": "a.test", "ports": [443], "raw": 1}, "raw must be"),
        ({"host": "a.test", "ports": [443], "https": []}, "https is not a field"),
        ({"host": "a.test", "ports": [443], "http": []}, "1 to 8 objects"),
        ({"host": "a.test", "ports": [443], "http": {}}, "1 to 8 objects"),
        ({"host": "a.test", "ports": [443], "http": [{}] * 9}, "1 to 8 objects"),
        ({"host": "a.test", "ports": [443], "http": [{}], "raw": True}, "exclude each other"),
        ({"host": "203.0.113.9", "ports": [443], "http": [{}]}, "no http"),
        ({"host": "203.0.113.9", "ports": [443], "http": [{}], "raw": True}, "no http"),
        ({"host": "203.0.113.9", "ports": [443]}, '"raw": true'),
        ({"host": "203.0.113.0/24", "ports": [443], "raw": False}, '"raw": true'),
        ({"host": "fe80::1%eth0", "ports": [443], "raw": True}, "not a host name"),
        ({"host": "203.0.113.0/33", "ports": [443], "raw": True}, "not a host name"),
    ],
)
def test_what_is_no_rule_is_refused_with_a_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        parse_rule(value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("host", "name", "matches"),
    [
        ("example.org", "example.org", True),
        ("example.org", "EXAMPLE.org.", True),
        ("example.org", "a.example.org", False),
        ("example.org", "example.org.evil.test", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "xexample.org", False),
        ("*", "anything.at.all", True),
        ("*", "db", True),
        ("*", "203.0.113.9", False),
        ("*", "2001:db8::1", False),
        ("*", "127.1", False),
        ("*", "a..b", False),
        ("*", "*", False),
        ("*", "", False),
        ("*.example.org", "*.example.org", False),
        ("203.0.113.0/24", "203.0.113.9", True),
        ("203.0.113.0/24", "::ffff:203.0.113.9", True),
        ("203.0.113.0/24", "203.0.114.9", False),
        ("203.0.113.0/24", "a.test", False),
        ("203.0.113.9", "203.0.113.9", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("::/0", "203.0.113.9", False),
        ("2001:db8::/32", "2001:DB8:0::1", True),
    ],
)
def test_a_rule_matches_its_host_only(host: str, name: str, matches: bool) -> None:
    raw = hosts.net_of(host) is not None
    assert NetworkRule(host, (443,), raw).matches(name) is matches


def test_a_rule_is_for_its_ports_and_a_raw_one_comes_first() -> None:
    plain, raw = NetworkRule("a.test", (80, 443)), NetworkRule("*.test", (443,), raw=True)
    assert rule_for([plain, raw], "a.test", 80) is plain
    assert rule_for([plain, raw], "a.test", 443) is raw
    assert rule_for([plain, raw], "a.test", 8080) is None
    assert rule_for([plain], "b.test", 80) is None
    assert ports_of([plain, raw]) == (80, 443)


def test_rules_only_add() -> None:
    one, other = (NetworkRule("a.test", (443,), http=(HttpRule(("GET",), (path,)),)) for path in ("/a", "/b"))
    unread, raw = NetworkRule("*.test", (443,)), NetworkRule("a.test", (443,), raw=True)
    assert rules_for([one, other], "a.test", 443) == (one, other)
    assert rules_for([one, unread, other], "a.test", 443) == (unread,)
    assert rules_for([one, unread, raw, other], "a.test", 443) == (raw,)
    assert rules_for([one, unread, raw, other], "a.test", 80) == ()
    assert paths_of([one, other, unread]) == 2


def test_rules_cover_another_one_together() -> None:
    wide = [parse_rule("*:80"), parse_rule("*:443")]
    assert covers(wide, NetworkRule("a.test", (80, 443)))
    assert covers(wide, NetworkRule("*", (80, 443)))
    assert not covers(wide, NetworkRule("a.test", (80, 8080)))
    assert not covers(wide, NetworkRule("a.test", (80,), raw=True))
    assert not covers(wide, NetworkRule("203.0.113.9", (80,), raw=True))
    assert not covers([], NetworkRule("a.test", (80,)))


def test_requests_are_covered_where_the_host_is() -> None:
    get, post = (NetworkRule("a.test", (80, 443), http=(HttpRule((method,)),)) for method in ("GET", "POST"))
    both = NetworkRule("a.test", (443,), http=(HttpRule(("GET", "POST"), ("/v1/x",)),))
    unread = parse_rule("a.test:443")
    raw = NetworkRule("a.test", (443,), raw=True)
    assert covers([get, post], both)
    assert not covers([get], both)
    assert not covers([get, post], unread)
    assert not covers([get, post], raw)
    assert covers([unread], both)
    assert covers([raw], both)
    assert not covers([both], get)
    assert not covers([NetworkRule("a.test", (80,), http=(HttpRule(),)), both], get)


def test_rules_are_shown_to_people() -> None:
    assert str(parse_rule({"host": "*.example.net", "ports": [8443, 443]})) == "*.example.net:443,8443"
    assert str(parse_rule({"host": "2001:db8::/32", "ports": [22], "raw": True})) == "[2001:db8::/32]:22 raw"
    http = [{"methods": ["POST", "GET"], "paths": ["/v1/**"]}, {"methods": ["PUT"]}, {"paths": ["/a", "/b"]}, {}]
    shown = "a.test:443 http GET,POST /v1/** or PUT or * /a,/b or *"
    assert str(parse_rule({"host": "a.test", "ports": [443], "http": http})) == shown


label = st.sampled_from(["a", "b", "example", "org", "xn--a", "_x"])
names = st.lists(label, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "test"]))
addresses = st.sampled_from(["203.0.113.0", "203.0.113.255", "203.0.114.1", "2001:db8::", "2001:db8:1::"])
nets = st.builds(lambda a, n: str(ip_network(f"{a}/{n}", strict=False)), addresses, st.integers(0, 32))
patterns = names | names.map("*.".__add__) | st.just("*") | nets
ports = st.lists(st.sampled_from([22, 80, 443, 5432]), min_size=1, max_size=3)


def build(host: str, ports: list[int], raw: bool) -> NetworkRule:
    return parse_rule({"host": host, "ports": ports, "raw": raw or hosts.net_of(host) is not None})


rules = st.builds(build, patterns, ports, st.booleans())


@given(st.lists(rules, max_size=3), rules, names | addresses, st.sampled_from([22, 80, 443, 5432]))
@example([NetworkRule("*.a.test", (22,))], NetworkRule("a.test", (22,)), "a.test", 22)
def test_a_covered_rule_permits_nothing_more(
    wide: list[NetworkRule], narrow: NetworkRule, name: str, port: int
) -> None:
    if not covers(wide, narrow) or rule_for([narrow], name, port) is None:
        return
    found = rule_for(wide, name, port)
    assert found is not None
    assert found.raw or not narrow.raw


@given(rules)
def test_a_rule_covers_itself_and_survives_its_dict(rule: NetworkRule) -> None:
    assert covers([rule], rule)
    assert parse_rule(rule.as_dict()) == rule


@given(st.text(max_size=12) | st.from_regex(r"[a-z0-9.:*/\[\]%-]{0,20}", fullmatch=True), st.integers(1, 70000))
def test_any_text_is_a_rule_or_refused(text: str, port: int) -> None:
    try:
        rule = parse_rule(f"{text}:{port}")
    except ValueError:
        return
    assert not rule.is_net
    assert rule.ports == (port,)
    assert rule.host.isascii()
    assert parse_rule(f"{rule.host}:{port}") == rule


@given(st.ip_addresses(), names)
def test_no_name_matches_an_address_and_no_net_a_name(address: Any, name: str) -> None:
    assert not NetworkRule("*", (443,)).matches(str(address))
    assert not NetworkRule(str(address), (443,), raw=True).matches(name)
    assert NetworkRule(str(ip_address(str(address))), (443,), raw=True).matches(str(address))
