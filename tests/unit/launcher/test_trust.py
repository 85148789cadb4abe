"""The trust stores of the host are found, and those of a sandbox are what programs can read."""

from __future__ import annotations

import _sha1  # type: ignore[import-not-found]
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.egress.authority import new_authority
from app.launcher.sandbox import trust

ONE, OTHER = (new_authority().certificate.encode() for _ in range(2))


def entries_of(store: bytes) -> list[tuple[str, bytes]]:
    """Alias and certificate of each entry of a Java key store, after its digest was checked with the usual password."""
    digest = hashlib.sha1("changeit".encode("utf-16-be") + b"Mighty Aphrodite" + store[:-20], usedforsecurity=False)
    assert digest.digest() == store[-20:]
    magic, version, count = struct.unpack_from(">III", store)
    assert (magic, version) == (0xFEEDFEED, 2)
    entries, at = [], 12
    for _ in range(count):
        kind, length = struct.unpack_from(">IH", store, at)
        alias = store[at + 6 : at + 6 + length].decode()
        at += 6 + length + 8  # and the date
        assert store[at : at + 7] == b"\0\5X.509"
        size = struct.unpack_from(">I", store, at + 7)[0]
        assert kind == 2
        entries.append((alias, store[at + 11 : at + 11 + size]))
        at += 11 + size
    assert at == len(store) - 20
    return entries


def java_store(bundle: bytes, own: bytes) -> list[tuple[str, bytes]]:
    content = trust._java_certificates(bundle)
    digest = _sha1.sha1(trust._DIGEST_HEAD + content)
    return entries_of(content + trust._end_of_java_store(digest, trust.der_of(own)))


def test_store_of_java_has_the_certificates_of_the_bundle_and_the_authority() -> None:
    own = new_authority().certificate.encode()
    bundle = b"# a comment\n" + ONE + b"\n# another\n" + OTHER.replace(b"\n", b"\r\n") + b"\nthe end"
    found = java_store(bundle, own)
    assert found == [
        ("host-0", trust.der_of(ONE)), ("host-1", trust.der_of(OTHER)), ("sandbox-authority", trust.der_of(own))
    ]  # fmt: skip


def test_certificate_that_cannot_be_decoded_is_left_out() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"
    assert [name for name, _ in java_store(broken + ONE, OTHER)] == ["host-0", "sandbox-authority"]
    assert [name for name, _ in java_store(b"", OTHER)] == ["sandbox-authority"]


def test_javas_below_the_paths_of_the_operator_are_found_each_once(tmp_path: Path) -> None:
    for home in ("lib/security", "jdk-17/lib/security", "jdk-8/jre/lib/security", "no-jdk/lib"):
        (tmp_path / home).mkdir(parents=True)
    first, second = tmp_path / "lib/security/cacerts", tmp_path / "jdk-8/jre/lib/security/cacerts"
    first.touch()
    second.touch()
    (tmp_path / "jdk-17/lib/security/cacerts").symlink_to(first)
    (tmp_path / "jdk-21").symlink_to(tmp_path / "jdk-8")
    found = trust.find_stores([str(tmp_path)]).java
    assert [path for path in found if path.startswith(str(tmp_path))] == [str(first), str(second)]


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder with a Java. Everybody may enter the one above, which does not hold for pytest's own."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        (Path(above) / "private/jdk/lib/security").mkdir(parents=True)
        (Path(above) / "private/jdk/lib/security/cacerts").touch()
        yield Path(above) / "private"


def test_folder_that_the_launcher_may_not_read_has_no_java(private: Path) -> None:
    """The launcher is root without the capability to read what others keep to themselves."""
    assert str(private / "jdk/lib/security/cacerts") in trust.find_stores([str(private)]).java
    private.chmod(0)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65_534)
        found = trust.find_stores([str(private)]).java
    finally:
        os.seteuid(before)
        private.chmod(0o755)
    assert not [path for path in found if path.startswith(str(private))]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        ONE[:-1],
        ONE + ONE,
        ONE + b"\n",
        b"\n" + ONE,
        ONE.replace(b"M", b"\xff", 1),
        ONE.replace(b"\n", b"\r\n"),
        ONE.replace(b"CERTIFICATE", b"EC PRIVATE KEY"),
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_not_one_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        trust.der_of(text)
