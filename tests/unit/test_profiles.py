from __future__ import annotations

from pathlib import Path

import pytest

from app.core.policy import DEFAULT_PROFILES, Filesystem
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
