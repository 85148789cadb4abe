from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.limits import LIMITS, Limits
from app.core.sandboxes import Capacity
from app.egress.authority import new_authority
from app.keys import hash_of
from app.settings import (
    CapacitySettings,
    Settings,
    SettingsError,
    check_exposure,
    default_data,
    is_loopback,
    load_settings,
)
from app.settings.limits import LimitsSettings

KEY = "k" * 16


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("BULKHEAD_", "OPENSHELL_")):
            monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


def test_without_an_environment_the_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.runtime) == ("127.0.0.1", 8000, "process")
    assert settings.core_capacity() == Capacity()
    ranges = settings.limit_ranges()
    assert {name: ranges[name].default for name in LIMITS} == dataclasses.asdict(Limits())
    assert all(limit.default <= limit.ceiling for limit in ranges.values())


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]  # that it cannot be is the point


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings(port=9001).port == 9001


def test_a_part_of_a_limit_may_be_set_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_LIMITS__MEMORY_MIB__CEILING", "8192")
    monkeypatch.setenv("BULKHEAD_LIMITS__CPUS__DEFAULT", "0.5")
    ranges = load_settings().limit_ranges()
    assert (ranges["memory_mib"].default, ranges["memory_mib"].ceiling) == (512, 8192)
    assert ranges["cpus"].default == 0.5


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_RUNTIME", "")
    monkeypatch.setenv("BULKHEAD_PORT", "")
    assert (load_settings().runtime, load_settings().port) == ("process", 8000)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BULKHEAD_HOTS", "x", "BULKHEAD_HOTS is not a setting"),
        ("bulkhead_hots", "x", "bulkhead_hots is not a setting"),
        ("BULKHEAD_HOST__NAME", "x", "BULKHEAD_HOST__NAME is not a setting"),
        ("BULKHEAD_LIMITS__MEMORY__CEILING", "1", "BULKHEAD_LIMITS__MEMORY: is not a setting"),
        ("BULKHEAD_LIMITS__MEMORY_MIB__CEIL", "1", "BULKHEAD_LIMITS__MEMORY_MIB__CEIL: is not a setting"),
        ("BULKHEAD_CAPACITY__ROOMS", "1", "BULKHEAD_CAPACITY__ROOMS: is not a setting"),
        ("BULKHEAD_STORAGE", "tape", "BULKHEAD_STORAGE: must be 'memory' or 'disk'"),
        ("BULKHEAD_PORT", "http", "BULKHEAD_PORT: must be a whole number"),
        ("BULKHEAD_PORT", "70000", "BULKHEAD_PORT: must be at most 65535"),
        ("BULKHEAD_LIMITS__MEMORY_MIB__CEILING", "256", "memory_mib: the default 512 is above the ceiling 256"),
        ("BULKHEAD_LIMITS__MEMORY_MIB__DEFAULT", "1", "memory_mib: must be at least 16"),
        ("BULKHEAD_LIMITS__PROCESSES__DEFAULT", "1.5", "processes: must be whole numbers"),
        ("BULKHEAD_LIMITS__CPUS__CEILING", "inf", "BULKHEAD_LIMITS__CPUS__CEILING: must be a finite number"),
        (
            "BULKHEAD_EGRESS__ALLOW",
            '["a.test:443"',
            'BULKHEAD_EGRESS__ALLOW: is not JSON at character 14: write a list such as ["index.example.org:443", {',
        ),
        (
            "BULKHEAD_ALLOWED_HOSTS",
            "[a.test]",
            'BULKHEAD_ALLOWED_HOSTS: is not JSON at character 2: write a list such as ["a", "b"], or items with commas',
        ),
        ("BULKHEAD_EGRESS__PERMIT_NETS", "[10.0.0.0/8]", 'is not JSON at character 6: write a list such as ["10.0'),
        ("BULKHEAD_LIMITS", "x", "BULKHEAD_LIMITS: must be JSON"),
        ("BULKHEAD_BOXLITE", "x", "BULKHEAD_BOXLITE: must be JSON"),
        ("BULKHEAD_BOXLITE__IMAGES", "busybox", 'BULKHEAD_BOXLITE__IMAGES: must be JSON, such as {"NAME": …}'),
        ("BULKHEAD_API_KEYS", "x", 'BULKHEAD_API_KEYS: must be JSON, such as ["…"], with a text in quotes'),
        ("BULKHEAD_TRUSTED_PROXIES", "127.0.0.1/8", "'127.0.0.1/8' is not an address or a network such as 127.0.0.0/8"),
        ("BULKHEAD_TRUSTED_PROXIES", "proxy", "'proxy' is not an address or a network such as 10.0.0.0/8"),
        ("BULKHEAD_API_KEYS", '["short"]', "BULKHEAD_API_KEYS: key 0 must have at least 16"),
        ("BULKHEAD_API_KEYS", '["kkkkkkkkkkkkkkkk kkk"]', "no spaces"),
        ("BULKHEAD_ALLOWED_HOSTS", "http://a", "BULKHEAD_ALLOWED_HOSTS: 'http://a' is not a host name"),
        ("BULKHEAD_ALLOWED_HOSTS", '["a"', "BULKHEAD_ALLOWED_HOSTS: "),
        ("BULKHEAD_ALLOWED_ORIGINS", "a.example", "BULKHEAD_ALLOWED_ORIGINS: 'a.example' is not scheme://"),
        ("BULKHEAD_CAPACITY__SANDBOXES", "0", "BULKHEAD_CAPACITY__SANDBOXES: must be at least 1"),
        ("BULKHEAD_TTL_CEILING_SECONDS", "0", "BULKHEAD_TTL_CEILING_SECONDS: "),
        ("BULKHEAD_PROCESS__ACCEPT_MISSING", "seccomp", "BULKHEAD_PROCESS__ACCEPT_MISSING: must be 'landlock', '"),
        ("BULKHEAD_PROCESS__ROOT_PATHS", "/", "BULKHEAD_PROCESS__ROOT_PATHS: / must be an absolute directory"),
        ("BULKHEAD_PROCESS__ROOT_PATHS", "opt", "BULKHEAD_PROCESS__ROOT_PATHS: "),
        ("BULKHEAD_PROCESS__UID_BASE", "4294967290", "beyond the kernel's last uid"),
        ("BULKHEAD_PROCESS__GATEWAY_UID", "0", "BULKHEAD_PROCESS__GATEWAY_UID: "),
        ("BULKHEAD_PROCESS__GATEWAY_UID", "1900000000", "gateway_uid 1900000000 is among the uids of sandboxes"),
        ("BULKHEAD_PROCESS__LAUNCHER_SOCKET", "x.sock", "x.sock must be an absolute path"),
        ("BULKHEAD_EGRESS__ALLOW", "*", "BULKHEAD_EGRESS__ALLOW: * has no port; write HOST:PORT"),
        ("BULKHEAD_EGRESS__ALLOW", "10.0.0.0/8:443", "an address or network is written as an object"),
        ("BULKHEAD_EGRESS__ALLOW", '[{"host": "10.0.0.1", "ports": [1]}]', 'its rule must have "raw": true'),
        ("BULKHEAD_EGRESS__ALLOW", "[1]", "1 is neither HOST:PORT nor an object"),
        ("BULKHEAD_EGRESS__ALLOW", "[", "BULKHEAD_EGRESS__ALLOW: "),
        ("BULKHEAD_EGRESS__PERMIT_NETS", "10.0.0.1/8", "'10.0.0.1/8' is not an address or a network"),
        ("BULKHEAD_EGRESS__PERMIT_NETS", "[8]", "8 is not an address or a network"),
        ("BULKHEAD_EGRESS__RESOLVER", "192.0.2.53", "'192.0.2.53' is not ADDRESS:PORT"),
        ("BULKHEAD_EGRESS__RESOLVER", "192.0.2.530:53", "does not appear to be an IPv4"),
        ("BULKHEAD_EGRESS__RESOLVER", "192.0.2.53:0", "has no port from 1 to 65535"),
        ("BULKHEAD_EGRESS__CA_FILE", "ca.pem", "ca.pem must be an absolute path"),
        ("BULKHEAD_EGRESS__CA_FILE", "/nowhere/ca.pem", "/nowhere/ca.pem cannot be read: No such file"),
        ("BULKHEAD_EGRESS__CA_FILE", "/etc/passwd", "/etc/passwd has no certificates as PEM"),
        ("BULKHEAD_EGRESS__CONNECTIONS", "0", "BULKHEAD_EGRESS__CONNECTIONS: must be at least 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    assert says in refusal(monkeypatch, **{name: value})


def test_a_refusal_never_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "topsecret" not in refusal(monkeypatch, BULKHEAD_API_KEYS='["topsecret"]', BULKHEAD_PORT="x")


def test_names_of_the_client_and_the_tests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_CLIENT_URL", "http://x")
    monkeypatch.setenv("BULKHEAD_TEST_REQUIRE", "all")
    load_settings()


def test_openshell_runtime_is_an_alias_that_ours_overrules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSHELL_RUNTIME", "linux")
    assert load_settings().runtime == "linux"
    monkeypatch.setenv("BULKHEAD_RUNTIME", "process")
    assert load_settings().runtime == "process"


@pytest.mark.parametrize("value", ["a.example, B.example:80", '["a.example", "B.example:80"]'])
def test_lists_are_json_or_have_commas(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BULKHEAD_ALLOWED_HOSTS", value)
    assert load_settings().allowed_hosts == ("a.example", "b.example:80")


def test_accepted_layers_and_root_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_PROCESS__ACCEPT_MISSING", "landlock_tcp,swap_limit")
    monkeypatch.setenv("BULKHEAD_PROCESS__ROOT_PATHS", '["/opt/tools"]')
    process = load_settings().process
    assert process.accept_missing == ("landlock_tcp", "swap_limit")
    assert process.root_paths == (Path("/opt/tools"),)


def test_egress_is_web_pages_of_public_addresses_unless_the_operator_says_otherwise() -> None:
    policy = load_settings().egress.policy()
    assert [str(rule) for rule in policy.allow] == ["*:80", "*:443"]
    assert policy.permit_nets == ()


@pytest.mark.parametrize(
    "value", ["a.test:443,*.b.test:80", '["a.test:443", {"host": "*.b.test", "ports": [80]}]'], ids=["commas", "json"]
)
def test_egress_rules_are_texts_or_objects(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BULKHEAD_EGRESS__ALLOW", value)
    monkeypatch.setenv("BULKHEAD_EGRESS__PERMIT_NETS", "10.0.0.0/8,fd00::/8")
    monkeypatch.setenv("BULKHEAD_EGRESS__RESOLVER", "[2001:db8::53]:53")
    egress = load_settings().egress
    assert [str(rule) for rule in egress.allow] == ["a.test:443", "*.b.test:80"]
    assert [str(net) for net in egress.permit_nets] == ["10.0.0.0/8", "fd00::/8"]
    assert egress.resolver == "[2001:db8::53]:53"


def test_trusted_certificates_are_those_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(new_authority().certificate)
    monkeypatch.setenv("BULKHEAD_EGRESS__CA_FILE", str(file))
    assert load_settings().egress.ca_file == file


def test_egress_is_switched_off_by_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_EGRESS__ALLOW", "[]")
    assert load_settings().egress.allow == ()


def test_keys_are_secret_and_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_API_KEYS", f'["{KEY}"]')
    settings = load_settings()
    assert KEY not in repr(settings)
    assert settings.key_names() == {hash_of(KEY): "BULKHEAD_API_KEYS[0]"}


def test_capacity_settings_are_those_of_the_core() -> None:
    assert set(CapacitySettings.model_fields) == {f.name for f in dataclasses.fields(Capacity)}
    assert set(LimitsSettings.model_fields) == set(LIMITS)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("box.example", False),
        ("", False),
    ],
)
def test_an_open_address_without_a_key_is_refused_with_the_cure(host: str, loopback: bool) -> None:
    settings = Settings(host=host)
    assert is_loopback(host) is loopback
    check_exposure(settings, [hash_of(KEY)])
    if loopback:
        check_exposure(settings, [])
    else:
        with pytest.raises(SettingsError, match="bulkhead key new NAME"):
            check_exposure(settings, [])


def test_the_cure_for_an_open_address_makes_the_key_in_the_services_own_folder() -> None:
    with pytest.raises(SettingsError, match="`bulkhead key new NAME --data '/tmp/my state'`"):
        check_exposure(Settings(host="0.0.0.0", data=Path("/tmp/my state")), [])
    with pytest.raises(SettingsError, match="`bulkhead key new NAME`"):
        check_exposure(Settings(host="0.0.0.0"), [])


def test_the_data_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data() == Path("/var/lib/bulkhead")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_data() == Path("/state/bulkhead")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/user")
    assert default_data() == Path("/home/user/.local/state/bulkhead")


def test_misspelt_setting_is_answered_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULKHEAD_PROCES__GATEWAY_UID", "1")
    with pytest.raises(SettingsError, match=r"; did you mean BULKHEAD_PROCESS__GATEWAY_UID\?; docs/settings\.md"):
        load_settings()
