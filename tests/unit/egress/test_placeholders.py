"""Secrets in requests: where they are put, and where a placeholder is refused."""

from __future__ import annotations

from base64 import b64decode, b64encode

import h11
import pytest

from app.egress.placeholders import HEAD, Placeholders, SecretRefused
from app.egress.protocol import NetworkSecret
from app.egress.reasons import Reason, sentence

ONE, TWO = "bulkhead_secret_" + "1" * 32, "bulkhead_secret_" + "2" * 32
CANARY = "canary-7f3a"
SECRETS = (
    NetworkSecret("ONE", ONE, CANARY, ("api.test", "both.test")),
    NetworkSecret("TWO", TWO, "Zürich", ("other.test", "both.test")),
)


def put(
    *fields: tuple[str, str], host: str = "api.test", target: str = "/", tls: bool = True
) -> list[tuple[bytes, bytes]]:
    request = h11.Request(method="POST", target=target, headers=[("Host", host), *fields])
    changed = Placeholders(SECRETS).put(request, host, verified_tls=tls)
    assert (changed.method, changed.target) == (request.method, request.target)
    host_field, *others = changed.headers.raw_items()
    assert host_field == (b"Host", host.encode())
    return others


def refused(*fields: tuple[str, str], host: str = "api.test", target: str = "/", tls: bool = True) -> Reason:
    with pytest.raises(SecretRefused) as caught:
        put(*fields, host=host, target=target, tls=tls)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.reason


def basic(text: str, word: str = "Basic") -> str:
    return f"{word} {b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (ONE, CANARY),
        (f"Bearer {ONE}", f"Bearer {CANARY}"),
        (f"{ONE},{ONE}; x={ONE}", f"{CANARY},{CANARY}; x={CANARY}"),
        (f"a{ONE}b", f"a{CANARY}b"),
    ],
)
def test_a_secret_stands_in_the_value_of_any_header(value: str, found: str) -> None:
    assert put(("Authorization", value), ("X-Other", "1"), ("x-key", value)) == [
        (b"Authorization", found.encode()),
        (b"X-Other", b"1"),
        (b"x-key", found.encode()),
    ]


@pytest.mark.parametrize("word", ["Basic", "basic", "BASIC"])
@pytest.mark.parametrize("form", ["me:{}", "{}:", "{}:x-oauth", "a:b{}c"])
def test_a_secret_stands_inside_basic_credentials(word: str, form: str) -> None:
    [(_, value)] = put(("Authorization", basic(form.format(ONE), word)))
    assert value.startswith(word.encode() + b" ")
    assert b64decode(value[6:], validate=True).decode() == form.format(CANARY)


def test_basic_credentials_without_padding_are_read_too() -> None:
    text = basic(f"a:{ONE}")
    assert text.endswith("=")
    [(_, value)] = put(("Authorization", text.rstrip("=")))
    assert b64decode(value[6:], validate=True).decode() == f"a:{CANARY}"


@pytest.mark.parametrize("value", [basic("me:password"), "Basic", "Basic !!", "Basic YQ==YQ==", "Basic", "Basics YQ=="])
def test_other_credentials_pass_as_they_are(value: str) -> None:
    assert put(("Authorization", value)) == [(b"Authorization", value.encode())]


def test_a_value_outside_ascii_goes_as_utf8() -> None:
    assert put(("X-Key", TWO), host="other.test") == [(b"X-Key", "Zürich".encode())]


def test_each_secret_goes_to_its_own_hosts() -> None:
    assert put(("A", ONE), ("B", TWO), host="both.test") == [(b"A", CANARY.encode()), (b"B", "Zürich".encode())]


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    ("host", "placeholder"), [("other.test", ONE), ("evil.test", ONE), ("evil.test", TWO), ("sub.api.test", ONE)]
)
def test_a_placeholder_on_its_way_to_another_host_is_refused(host: str, placeholder: str, tls: bool) -> None:
    assert refused(("Authorization", f"Bearer {placeholder}"), host=host, tls=tls) is Reason.SECRET_HOST
    assert refused(("Authorization", basic(f"me:{placeholder}")), host=host, tls=tls) is Reason.SECRET_HOST
    assert refused((f"X-{placeholder}", "1"), host=host, tls=tls) is Reason.SECRET_HOST
    assert refused(target=f"/{placeholder}", host=host, tls=tls) is Reason.SECRET_HOST
    assert refused(target=f"/?key={placeholder}", host=host, tls=tls) is Reason.SECRET_HOST


def test_one_that_is_for_another_host_is_refused_beside_one_that_is_not() -> None:
    assert refused(("A", f"{ONE} {TWO}")) is Reason.SECRET_HOST
    assert refused(("A", ONE), ("B", TWO)) is Reason.SECRET_HOST


def test_without_tls_a_placeholder_in_a_header_is_refused() -> None:
    assert refused(("Authorization", f"Bearer {ONE}"), tls=False) is Reason.SECRET_PLAIN
    assert refused(("Authorization", basic(f"me:{ONE}")), tls=False) is Reason.SECRET_PLAIN


@pytest.mark.parametrize("tls", [True, False])
def test_for_its_own_host_a_placeholder_in_the_url_passes_as_it_is(tls: bool) -> None:
    assert put(target=f"/{ONE}?key={ONE}", tls=tls) == []
    assert put((f"X-{ONE}", "1"), tls=tls) == [(f"X-{ONE}".encode(), b"1")]


@pytest.mark.parametrize("text", ["bulkhead_secret_", ONE[:-1], ONE.upper(), "bulkhead_secret_" + "3" * 32])
def test_what_only_looks_like_a_placeholder_passes(text: str) -> None:
    assert put(("A", text), host="evil.test", target=f"/{text}", tls=False) == [(b"A", text.encode())]


def test_a_head_does_not_grow_without_bound() -> None:
    long = NetworkSecret("LONG", ONE, "v" * 8192, ("api.test",))
    placeholders = Placeholders([long])

    def request(count: int) -> h11.Request:
        return h11.Request(method="GET", target="/", headers=[("Host", "api.test"), ("A", ONE * count)])

    found = placeholders.put(request(7), "api.test", verified_tls=True)
    assert len(found.headers.raw_items()[1][1]) == 7 * 8192 <= HEAD
    with pytest.raises(SecretRefused) as caught:
        placeholders.put(request(8), "api.test", verified_tls=True)
    assert caught.value.reason is Reason.SECRET_SIZE


def test_a_value_that_no_header_can_have_is_refused_and_not_shown() -> None:
    bad = NetworkSecret("BAD", ONE, f"{CANARY}\r\nX: 1", ("api.test",))
    request = h11.Request(method="GET", target="/", headers=[("Host", "api.test"), ("A", ONE)])
    with pytest.raises(SecretRefused) as caught:
        Placeholders([bad]).put(request, "api.test", verified_tls=True)
    assert caught.value.reason is Reason.HTTP
    assert caught.value.__suppress_context__


def test_a_value_is_not_looked_through_for_placeholders() -> None:
    nested = (NetworkSecret("A", ONE, TWO, ("api.test",)), NetworkSecret("B", TWO, CANARY, ("api.test",)))
    request = h11.Request(method="GET", target="/", headers=[("Host", "api.test"), ("A", ONE)])
    found = Placeholders(nested).put(request, "api.test", verified_tls=True)
    assert found.headers.raw_items()[1] == (b"A", TWO.encode())


def test_a_secret_that_changes_is_put_in_as_it_is_now_and_one_that_is_gone_nowhere() -> None:
    placeholders = Placeholders(SECRETS)
    request = h11.Request(method="GET", target="/", headers=[("Host", "api.test"), ("A", ONE)])
    placeholders.replace(NetworkSecret("ONE", ONE, "new", ("api.test",)))
    assert placeholders.put(request, "api.test", verified_tls=True).headers.raw_items()[1] == (b"A", b"new")
    placeholders.replace(NetworkSecret("ONE", ONE, "", ()))
    with pytest.raises(SecretRefused) as caught:
        placeholders.put(request, "api.test", verified_tls=True)
    assert caught.value.reason is Reason.SECRET_HOST


def test_without_secrets_nothing_is_looked_at() -> None:
    request = h11.Request(method="GET", target=f"/{ONE}", headers=[("Host", "api.test")])
    assert Placeholders(()).put(request, "api.test", verified_tls=False) is request


@pytest.mark.parametrize("reason", [Reason.SECRET_HOST, Reason.SECRET_PLAIN, Reason.SECRET_SIZE])
def test_each_refusal_has_a_sentence(reason: Reason) -> None:
    assert "secret" in sentence(reason)
