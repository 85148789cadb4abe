"""The certificates that programs of a sandbox get from the egress process."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from app.egress.authority import Authority, new_authority
from app.egress.protocol import MAX_PACKET, KeyPair, KnownAuthority, decode_order, encode

NAME = "index.example.org"


def shake_hands(folder: Path, trusted: KeyPair, leaf: KeyPair, name: str = NAME) -> ssl.SSLObject:
    """A strict client and a server. Raises ssl.SSLCertVerificationError."""
    file = folder / "leaf.pem"
    file.write_text(leaf.certificate + leaf.key)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(file)
    here = ssl.create_default_context(cadata=trusted.certificate)
    here.verify_flags |= ssl.VERIFY_X509_STRICT
    to_there, to_here = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = here.wrap_bio(to_here, to_there, server_hostname=name)
    server = there.wrap_bio(to_there, to_here, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client


@pytest.mark.parametrize("name", [NAME, "a" * 60 + "." + "b" * 60 + ".example.org", "xn--mnchen-3ya.example", "a_b.c"])
def test_strict_client_trusts_the_certificate_of_a_host(tmp_path: Path, name: str) -> None:
    authority = new_authority()
    client = shake_hands(tmp_path, authority, Authority(authority).leaf(name), name)
    assert (client.getpeercert() or {})["subjectAltName"] == (("DNS", name),)


def test_certificate_is_for_one_name_and_one_authority(tmp_path: Path) -> None:
    mine, other = new_authority(), new_authority()
    leaf = Authority(mine).leaf(NAME)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, other, leaf)
    for name in ("example.org", f"x.{NAME}", "other.example.org"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(tmp_path, mine, leaf, name)


def test_certificate_of_a_host_signs_no_other(tmp_path: Path) -> None:
    mine = new_authority()
    leaf = Authority(mine).leaf(NAME)
    forged = Authority(leaf).leaf("other.example.org")
    chain = KeyPair(forged.certificate + leaf.certificate, forged.key)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, mine, chain, "other.example.org")


def test_authority_arrives_whole_at_the_egress_process(tmp_path: Path) -> None:
    order = KnownAuthority("sbx_1", new_authority())
    packet = encode(order)
    arrived = decode_order(packet)
    assert arrived == order
    assert len(packet) < MAX_PACKET / 16
    shake_hands(tmp_path, order.authority, Authority(order.authority).leaf(NAME))


def test_what_is_no_authority_is_refused() -> None:
    one, other = new_authority(), new_authority()
    for pair in (KeyPair(one.certificate, other.key), KeyPair("pem", one.key), KeyPair(one.certificate, "pem")):
        with pytest.raises(ValueError, match=r".+"):
            Authority(pair)


def test_no_text_shows_the_key() -> None:
    pair = new_authority()
    assert pair.key[30:60] not in repr(pair)
