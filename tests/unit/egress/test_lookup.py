"""Real names: what servers answer, and what those answer who only say that they are servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from itertools import pairwise

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from app.egress.lookup import Lookup, NoAddress, _answer
from app.egress.reasons import Reason
from app.egress.times import Times
from tests.processor_time import slowness
from tests.unit.egress.support import HOST, NAME, Site, echo, site

Change = Callable[[dns.message.Message], list[bytes]]


async def found(change: Change, *, kinds: str = HOST, times: Times = Times(server=0.1)) -> list[str]:  # noqa: B008
    async with site(echo) as at:
        at.dns.addresses[NAME] = kinds.split()
        at.dns.change = change
        return await asked(at, times)


async def asked(at: Site, times: Times) -> list[str]:
    lookup = Lookup((ip_address(at.dns_at[0]), at.dns_at[1]), times)
    return [str(address) for address in await lookup.addresses(at.network.turns, NAME)]


def plainly(answer: dns.message.Message) -> list[bytes]:
    return [answer.to_wire()]


async def test_both_kinds_of_address_are_found_and_the_older_goes_first() -> None:
    addresses = await found(plainly, kinds="2001:db8::1 192.0.2.1 192.0.2.2")
    assert (sorted(addresses[:2]), addresses[2:]) == (["192.0.2.1", "192.0.2.2"], ["2001:db8::1"])


async def test_alias_is_followed_to_its_address_and_no_other_record_is_taken() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        if not answer.answer:
            return [answer.to_wire()]
        answer.answer = [
            dns.rrset.from_text(f"{NAME}.", 60, "IN", "CNAME", "other.example."),
            dns.rrset.from_text("nobody.example.", 60, "IN", "A", "192.0.2.66"),
            dns.rrset.from_text("other.example.", 60, "IN", "A", "192.0.2.7"),
        ]
        return [answer.to_wire()]

    assert await found(change) == ["192.0.2.7"]


async def test_endless_aliases_are_none() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        names = [f"{NAME}.", *(f"{n}.example." for n in range(30)), f"{NAME}."]
        answer.answer = [dns.rrset.from_text(name, 60, "IN", "CNAME", alias) for name, alias in pairwise(names)]
        return [answer.to_wire()]

    with pytest.raises(NoAddress):
        await found(change)


async def test_answer_of_another_question_is_not_taken() -> None:
    """Another number, another name, no answer at all, nonsense. The right one follows."""

    def change(answer: dns.message.Message) -> list[bytes]:
        right = answer.to_wire()
        number = bytes((right[0] ^ 1, right[1]))
        no_answer = right[:2] + bytes((right[2] & 0x7F,)) + right[3:]
        return [number + right[2:], right.replace(b"index", b"xedni"), no_answer, b"", b"\xff" * 40, right]

    assert await found(change) == [HOST]


async def test_server_that_does_not_know_of_extensions_is_asked_without() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        if answer.edns >= 0:
            answer.answer.clear()
            answer.set_rcode(dns.rcode.FORMERR)
            answer.use_edns(False)
        return [answer.to_wire()]

    assert await found(change) == [HOST]


async def test_cut_answer_is_used_as_far_as_it_goes() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        answer.flags |= dns.flags.TC
        return [answer.to_wire()]

    assert await found(change) == [HOST]


async def test_server_that_answers_for_one_kind_only_is_enough() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        return [answer.to_wire()] if answer.answer else []

    assert await found(change) == [HOST]


@pytest.mark.parametrize(
    ("rcode", "reason"),
    [
        (dns.rcode.NXDOMAIN, Reason.NOT_FOUND),
        (dns.rcode.SERVFAIL, Reason.RESOLVER),
        (dns.rcode.REFUSED, Reason.RESOLVER),
    ],
)
async def test_failure_is_told(rcode: dns.rcode.Rcode, reason: Reason) -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        answer.answer.clear()
        answer.set_rcode(rcode)
        return [answer.to_wire()]

    with pytest.raises(NoAddress) as caught:
        await found(change)
    assert caught.value.reason is reason


async def test_server_that_is_not_there_is_told_at_once() -> None:
    async with site(echo) as at:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((HOST, 0))
            at.dns_at = free.getsockname()
        with pytest.raises(NoAddress) as caught:
            await asked(at, Times(server=1000, resolve=1000))
        assert caught.value.reason is Reason.RESOLVER


async def test_same_answer_is_asked_for_anew_and_read_once() -> None:
    async with site(echo) as at:
        _answer.cache_clear()
        for address, read in (("192.0.2.31", 2), ("192.0.2.31", 2), ("192.0.2.32", 3)):
            at.dns.addresses[NAME] = [address]
            assert await asked(at, Times()) == [address]
            assert _answer.cache_info().misses == read
        assert at.dns.asked[NAME] == 6


async def test_answer_with_as_many_records_as_fit_takes_no_more_than_a_slice() -> None:
    def change(answer: dns.message.Message) -> list[bytes]:
        name = answer.question[0].name
        answer.answer = [dns.rrset.from_text(name, 60, "IN", "A", *(f"192.0.2.{n}" for n in range(70)))]
        return [answer.to_wire()]

    began = time.thread_time()
    assert len(await found(change)) == 70
    assert (time.thread_time() - began) / slowness() < 1
