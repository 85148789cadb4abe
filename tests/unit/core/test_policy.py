from __future__ import annotations

import posixpath
import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidRequest, PolicyTooBroad
from app.core.network_rules import NetworkRule, parse_rule
from app.core.policy import (
    EgressPolicy,
    Filesystem,
    FilesystemRequest,
    Network,
    Policy,
    check_path,
    narrow,
    narrow_network,
)

part = st.sampled_from(["usr", "usr2", "etc", "tmp", "workspace", "a", "..", ".", "", "us", "usr "])
path = st.builds(
    lambda parts, lead: lead + "/".join(parts), st.lists(part, max_size=4), st.sampled_from(["/", "", "//"])
)
clean = st.builds(
    lambda parts: "/" + "/".join(parts), st.lists(st.sampled_from(["usr", "usr2", "etc", "tmp", "a"]), max_size=3)
)
profiles = st.builds(
    lambda ro, rw: Policy(filesystem=Filesystem(tuple(ro), tuple(rw))),
    st.lists(clean, max_size=3),
    st.lists(clean, max_size=3),
)
wanted = st.one_of(st.none(), st.lists(st.one_of(path, clean), max_size=4))


def contains(roots: tuple[str, ...], path: str) -> bool:
    """Slowly and by components, unlike the code under test."""
    parts = [p for p in path.split("/") if p]
    return any(parts[: len(r)] == r for r in ([p for p in root.split("/") if p] for root in roots))


@given(profiles, wanted, wanted)
def test_narrowed_policy_is_always_inside_the_profile(
    profile: Policy, read_only: list[str] | None, read_write: list[str] | None
) -> None:
    allowed = profile.filesystem
    try:
        result = narrow(profile, FilesystemRequest(read_only, read_write)).filesystem
    except PolicyTooBroad as refusal:
        asked = (read_only if refusal.pointer.endswith("read_only") else read_write) or []
        roots = allowed.read_write + (allowed.read_only if refusal.pointer.endswith("read_only") else ())
        assert any(not contains(roots, name) for name in asked)
        return
    except InvalidRequest:
        assert any(
            {".", ".."} & set(p.split("/")) or not p.startswith("/") for p in [*(read_only or []), *(read_write or [])]
        )
        return
    for name in result.read_write:
        assert contains(allowed.read_write, name)
    for name in result.read_only:
        assert contains(allowed.read_only + allowed.read_write, name)
    for name in (*result.read_only, *result.read_write):
        assert name == posixpath.normpath(name)
        assert name.startswith("/")
        assert not name.startswith("//")
    if read_only is None:
        assert result.read_only == allowed.read_only
    else:
        assert {tuple(p for p in n.split("/") if p) for n in read_only} == {
            tuple(p for p in n.split("/") if p) for n in result.read_only
        }


def test_narrowing_changes_nothing_but_the_files() -> None:
    profile = Policy(profile="loopback", loopback_tcp=True)
    assert narrow(profile, None) is profile
    assert narrow(profile, FilesystemRequest()) == profile
    narrowed = narrow(profile, FilesystemRequest(read_write=[]))
    assert (narrowed.profile, narrowed.loopback_tcp, narrowed.filesystem.read_write) == ("loopback", True, ())


def test_name_that_only_begins_like_an_allowed_one_is_outside() -> None:
    with pytest.raises(PolicyTooBroad) as refusal:
        narrow(Policy(), FilesystemRequest(read_only=["/usrlocal"]))
    assert refusal.value.pointer == "/policy/filesystem/read_only"
    assert "/usr" in refusal.value.ceiling


def test_read_only_path_cannot_be_asked_for_as_writable_but_the_reverse_may() -> None:
    with pytest.raises(PolicyTooBroad):
        narrow(Policy(), FilesystemRequest(read_write=["/usr"]))
    assert narrow(Policy(), FilesystemRequest(read_only=["/workspace"])).filesystem.read_only == ("/workspace",)


@pytest.mark.parametrize(
    "bad", ["", "usr", "/usr/../etc", "/./usr", "/usr\0", "/" + "a" * 4095, "/\ud800", "/" + "ä" * 2048]
)
def test_unclean_path_is_refused_with_its_pointer(bad: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_path(bad, "/policy/x")
    assert [e.pointer for e in refusal.value.errors] == ["/policy/x"]


@pytest.mark.parametrize(("raw", "kept"), [("/", "/"), ("//", "/"), ("//usr//bin/", "/usr/bin"), ("/a b", "/a b")])
def test_clean_path_is_normalised(raw: str, kept: str) -> None:
    assert check_path(raw, "/x") == kept


# --- networks of the mode `proxy`

WEB = EgressPolicy((parse_rule("*:80"), parse_rule("*:443")))
NETS = EgressPolicy(
    tuple(parse_rule({"host": host, "ports": [5432], "raw": True}) for host in ("0.0.0.0/0", "*.db.test")),
    (ip_network("10.1.0.0/16"),),
)


def raw(host: str, port: int = 5432) -> dict[str, object]:
    return {"host": host, "ports": [port], "raw": True}


def test_rules_within_those_of_the_operator_are_taken_in_their_normal_form() -> None:
    network = narrow_network(Policy(), ["A.test:443", {"host": "b.test", "ports": [443, 80]}, "a.test:443"], WEB)
    assert (network.mode, network.allow) == ("proxy", ())
    assert [str(rule) for rule in network.rules] == ["a.test:443", "b.test:80,443"]


@pytest.mark.parametrize(
    ("asked", "operators", "pointer", "sentence"),
    [
        (
            ["a.test:80", "a.test:8080"],
            WEB,
            "/policy/network/allow/1",
            "outside what the operator permits (BULKHEAD_EGRESS__ALLOW): *:80, *:443",
        ),
        ([raw("a.test", 443)], WEB, "/policy/network/allow/0", "the operator permits no raw rules"),
        ([raw("203.0.113.1", 443)], WEB, "/policy/network/allow/0", "outside what the operator permits"),
        (
            ["a.test:443"],
            EgressPolicy(),
            "/policy/network/allow/0",
            "outside what the operator permits (BULKHEAD_EGRESS__ALLOW): nothing",
        ),
        ([raw("10.2.0.1")], NETS, "/policy/network/allow/0", "10.2.0.1 is not public (private)"),
        ([raw("127.0.0.1")], NETS, "/policy/network/allow/0", "127.0.0.1 is not public (loopback)"),
        ([raw("db.test")], NETS, "/policy/network/allow/0", "outside what the operator permits"),
    ],
)
def test_a_rule_beyond_those_of_the_operator_is_refused(
    asked: list[str], operators: EgressPolicy, pointer: str, sentence: str
) -> None:
    with pytest.raises(PolicyTooBroad, match=re.escape(sentence)) as refusal:
        narrow_network(Policy(), asked, operators)
    assert refusal.value.pointer == pointer


@pytest.mark.parametrize("host", ["10.1.2.0/24", "10.0.0.0/8", "203.0.113.9", "a.db.test"])
def test_a_network_may_be_asked_for_where_a_part_of_it_can_be_reached(host: str) -> None:
    assert [rule.host for rule in narrow_network(Policy(), [raw(host)], NETS).rules] == [host]


@pytest.mark.parametrize(
    ("http", "sentence"),
    [
        ([{"paths": [f"/{n}" for n in range(13)]}], "has 130 paths; at most 128 are possible"),
        ([{"methods": [f"M{n}" for n in range(13)]}], "has 260 methods; at most 256 are possible"),
    ],
)
def test_what_all_rules_say_of_requests_is_bounded(http: list[dict[str, list[str]]], sentence: str) -> None:
    """Rules that differ, each within its own bounds."""
    rules = [{"host": f"h{n}.test", "ports": [443], "http": http} for n in range(20 if "methods" in http[0] else 10)]
    assert len(narrow_network(Policy(), rules[:-1], WEB).rules) == len(rules) - 1
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        narrow_network(Policy(), rules, WEB)
    assert refusal.value.errors[0].pointer == "/policy/network/allow"


def test_a_profile_permits_less_than_the_operator() -> None:
    profile = Policy("web", permitted=(parse_rule("*.a.test:443"),))
    assert narrow_network(profile, ["x.a.test:443"], WEB).rules
    with pytest.raises(PolicyTooBroad, match="outside what the profile 'web' permits"):
        narrow_network(profile, ["b.test:443"], WEB)
    with pytest.raises(PolicyTooBroad, match="outside what the operator permits"):
        narrow_network(profile, ["x.a.test:443"], EgressPolicy())


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ([], "/policy/network/allow"),
        (["a.test:443", "b.test"], "/policy/network/allow/1"),
        ([{"host": "a.test", "ports": [443], "http": []}], "/policy/network/allow/0"),
        ([f"a.test:{port}" for port in range(1, 18)], "/policy/network/allow"),
    ],
)
def test_what_is_no_list_of_rules_is_refused(asked: list[str], pointer: str) -> None:
    everything = EgressPolicy(tuple(parse_rule(f"*:{port}") for port in [*range(1, 18), 443]))
    with pytest.raises(InvalidRequest) as refusal:
        narrow_network(Policy(), asked, everything)
    assert [error.pointer for error in refusal.value.errors] == [pointer]


def test_sixteen_ports_are_possible() -> None:
    everything = EgressPolicy(tuple(parse_rule(f"*:{port}") for port in range(1, 18)))
    assert len(narrow_network(Policy(), [f"a.test:{port}" for port in range(1, 17)], everything).rules) == 16


UNREAD = parse_rule("api.example.com:443")
READ = parse_rule({"host": "api.example.com", "ports": [443], "http": [{}]})


@pytest.mark.parametrize(
    ("mode", "rules", "permitted", "expected"),
    [
        ("proxy", (UNREAD,), None, False),
        ("proxy", (UNREAD,), (UNREAD,), False),
        ("proxy", (UNREAD, READ), None, True),
        ("proxy", (UNREAD,), (UNREAD, READ), True),
        ("none", (), (READ,), False),
    ],
)
def test_requests_inside_tls_may_be_read_if_a_rule_of_the_sandbox_or_the_profile_has_http(
    mode: str, rules: tuple[NetworkRule, ...], permitted: tuple[NetworkRule, ...] | None, expected: bool
) -> None:
    assert Policy(network=Network(mode, rules=rules), permitted=permitted).may_read_http is expected
