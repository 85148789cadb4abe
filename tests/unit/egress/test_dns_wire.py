"""The bytes of DNS messages, compared with dnspython's reading of the same bytes."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as some

from app.egress.dns_wire import (
    ALIASES,
    InvalidDns,
    Rcode,
    RecordType,
    addresses_in,
    answer_to,
    is_answer_to,
    question_for,
    read_question,
)

NAME = "index.example.org"
NUMBER = b"\x12\x34"
QUESTION = question_for(NUMBER, NAME, RecordType.A, with_extensions=True)

_names = some.lists(some.sampled_from(["a", "bc", "xn--d", "example", "x" * 63]), min_size=1, max_size=3).map(".".join)
_labels = some.lists(some.binary(min_size=1, max_size=20), min_size=1, max_size=5)
_addresses = some.lists(some.ip_addresses(v=4).map(str), min_size=1, max_size=4)


def reply(*records: dns.rrset.RRset, question: bytes = QUESTION) -> dns.message.Message:
    answer = dns.message.make_response(dns.message.from_wire(question))
    answer.answer.extend(records)
    return answer


def alias(name: str, to: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"{to}.")


def in_dnspython(packet: bytes) -> set[str]:
    answer = dns.message.from_wire(packet, ignore_trailing=True)
    assert isinstance(answer, dns.message.QueryMessage)
    return {record.address for record in answer.resolve_chaining().answer or ()}


@given(name=_names, kind=some.sampled_from([RecordType.A, RecordType.AAAA]), with_extensions=some.booleans())
def test_question_reads_as_it_was_meant(name: str, kind: RecordType, with_extensions: bool) -> None:
    question = dns.message.from_wire(question_for(NUMBER, name, kind, with_extensions=with_extensions))
    [asked] = question.question
    assert (question.id, asked.name.to_text(), int(asked.rdtype)) == (0x1234, f"{name}.", int(kind))
    assert question.flags == dns.flags.RD
    assert (question.edns, question.payload) == ((0, 1232) if with_extensions else (-1, 0))


@given(labels=_labels, kind=some.integers(0, 0xFFFF))
def test_name_of_any_bytes_is_written_as_in_a_zone_file(labels: list[bytes], kind: int) -> None:
    name = dns.name.Name([*labels, b""])
    question = read_question(dns.message.make_query(name, dns.rdatatype.RdataType.make(kind)).to_wire())
    assert (question.name, question.kind) == (name.canonicalize().to_text(omit_final_dot=True), kind)
    answer = dns.message.from_wire(answer_to(question, Rcode.NXDOMAIN))
    assert (answer.question[0].name, answer.rcode()) == (name, dns.rcode.NXDOMAIN)


@given(names=some.lists(_names, max_size=3, unique=True), found=_addresses, stray=_addresses)
def test_addresses_are_those_at_the_end_of_the_aliases(names: list[str], found: list[str], stray: list[str]) -> None:
    way = [NAME, *names]
    records = [alias(name, to) for name, to in pairwise(way)]
    records.append(dns.rrset.from_text(f"{way[-1]}.", 60, "IN", "A", *found))
    records.append(dns.rrset.from_text("stray.example.", 60, "IN", "A", *stray))
    packet = reply(*reversed(records)).to_wire()  # in no order that helps
    assert {str(address) for address in addresses_in(packet)} == in_dnspython(packet)


@given(data=some.binary(max_size=200))
def test_bytes_of_any_kind_are_an_answer_or_invalid(data: bytes) -> None:
    packet = QUESTION[:2] + b"\x81\x80\0\1\0\3\0\0\0\0" + QUESTION[12:-11] + data
    assert is_answer_to(packet, QUESTION)
    try:
        ours = {str(address) for address in addresses_in(packet)}
    except InvalidDns:
        return
    with contextlib.suppress(dns.exception.DNSException):
        assert ours == in_dnspython(packet)


@given(data=some.data())
def test_answer_with_changed_bytes_is_an_answer_or_invalid(data: some.DataObject) -> None:
    packet = bytearray(
        reply(alias(NAME, "b.example"), dns.rrset.from_text("b.example.", 0, "IN", "A", "192.0.2.1")).to_wire()
    )
    for _ in range(data.draw(some.integers(1, 4))):
        packet[data.draw(some.integers(0, len(packet) - 1))] = data.draw(some.integers(0, 255))
    cut = bytes(packet[: data.draw(some.integers(0, len(packet)))])
    if is_answer_to(cut, QUESTION):
        with contextlib.suppress(InvalidDns):
            addresses_in(cut)


@pytest.mark.parametrize(
    "name",
    [
        b"\xc0\x27",  # a pointer to itself
        b"\xc0\x29\xc0\x27",  # two that lead to each other
        b"\xc1\x00",  # beyond the end
        b"\xc0",
        b"\x40a",  # a label of a kind that was given up
        b"\x05ab",
    ],
)
def test_name_without_an_end_is_invalid(name: bytes) -> None:
    question = question_for(NUMBER, NAME, RecordType.A, with_extensions=False)
    packet = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:]
    assert len(packet) == 0x23
    with pytest.raises(InvalidDns):
        addresses_in(packet + b"\0" * 4 + name)


def test_aliases_have_an_end() -> None:
    names = [NAME, *(f"{number}.example" for number in range(ALIASES))]
    chain = [alias(name, to) for name, to in pairwise(names)]
    end = dns.rrset.from_text(f"{names[-2]}.", 60, "IN", "A", "192.0.2.1")
    assert [str(address) for address in addresses_in(reply(*chain[:-1], end).to_wire())] == ["192.0.2.1"]
    with pytest.raises(InvalidDns):
        addresses_in(reply(*chain, alias(names[-1], NAME)).to_wire())


def test_question_with_extensions_is_answered_with_them() -> None:
    for extensions in (True, False):
        question = read_question(question_for(NUMBER, NAME, RecordType.A, with_extensions=extensions))
        answer = dns.message.from_wire(answer_to(question, Rcode.NOERROR))
        assert (answer.edns >= 0) is extensions


def test_question_keeps_its_capitals_in_the_answer() -> None:
    """Some programs mix them, and take no other answer."""
    wire = QUESTION.replace(b"index", b"iNdEx")
    answer = answer_to(read_question(wire), Rcode.NOERROR)
    assert answer[12 : len(QUESTION) - 11] == wire[12:-11]
    assert is_answer_to(answer, QUESTION)
