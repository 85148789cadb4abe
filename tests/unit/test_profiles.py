from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.core.errors import PolicyTooBroad
from app.core.network_rules import parse_rule
from app.core.policy import DEFAULT_PROFILES, EgressPolicy, Filesystem, Policy, narrow_rules
from app.settings.profiles import ProfilesError, load_profiles


def test_without_a_file_the_built_in_profiles_hold() -> None:
    assert load_profiles(None) == DEFAULT_PROFILES


def test_the_files_profiles_come_over_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text('[narrow]\nread_only = ["/usr/bin/"]\n[default]\nloopback_tcp = true\n')
    profiles = load_profiles(path)
    assert profiles["narrow"].filesystem == Filesystem(("/usr/bin",), Filesystem().read_write)
    assert profiles["narrow"].profile == "narrow"
    assert profiles["default"].loopback_tcp
    assert "loopback" in profiles


def test_a_profile_may_have_rules_for_a_network(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(
        '[web]\nnetwork.allow = ["a.test:443", {host = "*.b.test", ports = [80]}]\n[closed.network]\nallow = []'
    )
    profiles = load_profiles(path)
    assert [str(rule) for rule in profiles["web"].permitted or ()] == ["a.test:443", "*.b.test:80"]
    assert (profiles["closed"].permitted, profiles["default"].permitted) == ((), None)
    assert profiles["web"].network.mode == "none"


def test_rules_of_a_profile_are_those_of_a_request(tmp_path: Path) -> None:
    """Each form that `allow` takes there."""
    path = tmp_path / "profiles.toml"
    path.write_text(
        """
        [[api.network.allow]]
        host = "api.example.com"
        ports = [443]
        http = [{methods = ["GET", "POST"], paths = ["/v1/**"]}]
        [[api.network.allow]]
        host = "203.0.113.0/24"
        ports = [5432, 22]
        raw = true
        """
    )
    profile = load_profiles(path)["api"]
    assert profile.permitted == (
        parse_rule(
            {"host": "api.example.com", "ports": [443], "http": [{"methods": ["GET", "POST"], "paths": ["/v1/**"]}]}
        ),
        parse_rule({"host": "203.0.113.0/24", "ports": [22, 5432], "raw": True}),
    )


NARROWED = [
    ({"host": "api.example.com", "ports": [443], "http": [{"methods": ["GET"], "paths": ["/v1/models"]}]}, True),
    ({"host": "api.example.com", "ports": [443], "http": [{"methods": ["DELETE"], "paths": ["/v1/**"]}]}, False),
    ({"host": "api.example.com", "ports": [443], "http": [{"methods": ["GET"], "paths": ["/v2/**"]}]}, False),
    ({"host": "api.example.com", "ports": [443], "http": [{}]}, False),
    ({"host": "api.example.com", "ports": [443]}, False),
    ({"host": "api.example.com", "ports": [443], "raw": True}, False),
    ({"host": "203.0.113.7", "ports": [22], "raw": True}, True),
    ({"host": "203.0.112.0/23", "ports": [22], "raw": True}, False),
    ({"host": "203.0.113.7", "ports": [23], "raw": True}, False),
]


@pytest.mark.parametrize(("asked", "is_permitted"), NARROWED)
def test_client_narrows_the_rules_of_a_profile(asked: dict[str, Any], is_permitted: bool) -> None:
    everything = EgressPolicy(
        tuple(parse_rule({"host": host, "ports": [22, 23, 443], "raw": True}) for host in ("*", "0.0.0.0/0"))
    )
    http = [{"methods": ["GET", "POST"], "paths": ["/v1/**"]}]
    permitted = (
        parse_rule({"host": "api.example.com", "ports": [443], "http": http}),
        parse_rule({"host": "203.0.113.0/24", "ports": [5432, 22], "raw": True}),
    )
    profile = Policy(profile="api", permitted=permitted)
    if is_permitted:
        assert len(narrow_rules(profile, [asked], everything)) == 1
    else:
        with pytest.raises(PolicyTooBroad) as caught:
            narrow_rules(profile, [asked], everything)
        assert "is outside what the profile 'api' permits" in str(caught.value)
        assert caught.value.ceiling == ", ".join(map(str, permitted))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a", "not TOML"),
        ("[Bad]\n", "small letters"),
        ('[a]\nread_only = ["usr"]', "a/read_only/0"),
        ('[a]\nread_write = ["/usr/../etc"]', "a/read_write/0"),
        ('[a]\nread_only = "/usr"', "a.read_only: must be a list"),
        ("[a]\nloopback_tcp = 1", "a.loopback_tcp: must be true or false"),
        ("[a]\nnetwork = true", "a.network: must be an object"),
        ("[a]\nnetwork.mode = 'proxy'", "a.network."),
        ("[a]\nnetwork.allow = 'a.test:443'", "a.network.allow: must be a list"),
        ("[a]\nnetwork.allow = ['a.test:443', 'b.test']", "a/network/allow/1: b.test has no port"),
        ("[a]\nnetwork.allow = [{host = 'a.test'}]", "a/network/allow/0: ports must be a list"),
        ("[a]\nnetwork.allow = [{host = 'a.test', ports = [443], http = [{method = []}]}]", "a/network/allow/0: "),
        ("[a]\nnetwork.allow = [{host = '10.0.0.1', ports = [443]}]", "a/network/allow/0: 10.0.0.1 is not a name"),
        ("[a]\nnetwork.allow = [443]", "a/network/allow/0: 443 is neither HOST:PORT nor an object"),
        ("a = 1", "a: must be an object"),
        ("\xff", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ProfilesError, match=r"profiles\.toml") as caught:
        load_profiles(path)
    assert says in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfilesError, match="cannot be read"):
        load_profiles(tmp_path / "none.toml")
