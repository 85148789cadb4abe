"""Names: what is answered, what the gateway is told, and that nobody else is asked."""

from __future__ import annotations

import asyncio
import socket
import unittest.mock
from ipaddress import IPv4Address
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import hypothesis
import hypothesis.strategies
import pytest

from app.egress.names import NameTable
from app.egress.network import QUESTIONS_AT_ONCE, QUESTIONS_PER_SECOND
from app.egress.protocol import ADDRESSES, MAX_NAMES
from app.egress.reasons import Reason
from app.egress.resolver import REMEMBERED, Resolver
from tests.unit.egress.support import GIVEN, NAME, Site, echo, site

WILD = [{"host": NAME}, {"host": "*.example.net"}]


class Program(asyncio.DatagramProtocol):
    """Asks questions as a program does."""

    def __init__(self) -> None:
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: Any = None
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, _: object) -> None:
        self._answers.put_nowait(data)
        self.answered += 1

    @classmethod
    async def of(cls, at: Site) -> Program:
        transport, program = await asyncio.get_running_loop().create_datagram_endpoint(cls, remote_addr=at.resolver)
        at.opened.append(transport)
        return program

    async def ask(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        question = dns.message.make_query(name, kind, **options)
        answer = dns.message.from_wire(await self.send(question.to_wire()))
        assert answer.id == question.id
        assert answer.question == question.question
        return answer

    async def send(self, data: bytes) -> bytes:
        self.transport.sendto(data)
        return await asyncio.wait_for(self._answers.get(), 60)


def address_in(answer: dns.message.Message) -> str:
    assert answer.rcode() == dns.rcode.NOERROR
    [records] = answer.answer
    [record] = records
    return str(record)


async def test_allowed_name_has_one_address_for_good() -> None:
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        assert address_in(await program.ask(NAME)) == GIVEN
        first = address_in(await program.ask("a.example.net"))
        second = address_in(await program.ask("b.a.example.net"))
        assert IPv4Address(first) in ADDRESSES
        assert first != second
        assert address_in(await program.ask("A.Example.NET.")) == first
        assert at.gateway.names == {"a.example.net": first, "b.a.example.net": second}
        assert at.dns.asked == {}


async def test_gateway_is_told_before_the_program() -> None:
    async with site(echo, rules=WILD) as at:
        at.gateway.holds_names_back = True
        program = await Program.of(at)
        answer = asyncio.ensure_future(program.ask("a.example.net"))
        assert address_in(await program.ask(NAME)) == GIVEN  # the later question is answered first
        assert not answer.done()
        [told] = at.gateway.held_back
        told()
        assert address_in(await answer) == at.gateway.names["a.example.net"]


async def test_answer_about_a_known_name_is_remembered_and_keeps_the_id_of_its_question() -> None:
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        first = await program.ask(NAME)
        with unittest.mock.patch("app.egress.resolver.dns.message.make_response", side_effect=AssertionError):
            second = await program.ask(NAME)
        assert (second.answer, second.flags, second.id == first.id) == (first.answer, first.flags, False)
        assert not (await program.ask(NAME, "AAAA")).answer, "another question has another answer"


def test_remembered_answers_are_bounded() -> None:
    names = [f"{n}.example.net" for n in range(3 * REMEMBERED)]
    table = NameTable({name: str(ADDRESSES[n + 1]) for n, name in enumerate(names)})
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        right.bind((GIVEN, 0))
        left.connect(right.getsockname())
        resolver = Resolver(right, table, lambda _: True, lambda *_: None, lambda *_: None)
        for name in names:
            left.send(dns.message.make_query(name, "A").to_wire())
            resolver.serve_one()
            assert address_in(dns.message.from_wire(left.recv(512))) == str(table.address_of(name))
        assert len(resolver._remembered) == REMEMBERED


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "MX", "HTTPS", "SRV", "NS", "ANY", "TYPE65280"])
async def test_allowed_name_has_no_other_records(kind: str) -> None:
    async with site(echo) as at:
        answer = await (await Program.of(at)).ask(NAME, kind)
        assert (answer.rcode(), answer.answer, answer.authority) == (dns.rcode.NOERROR, [], [])


@pytest.mark.parametrize(
    "name", ["example.net", "other.example.org", "localhost", ".", "1.0.18.198.in-addr.arpa", "a b"]
)
async def test_other_name_does_not_exist_and_is_told_once(name: str) -> None:
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        for kind in ("A", "AAAA", "A"):
            assert (await program.ask(name, kind)).rcode() == dns.rcode.NXDOMAIN
        event = await at.gateway.event()
        assert (event["kind"], event["verdict"], event["reason"]) == ("name", "refused", "name")
        assert len(at.gateway.events) == 1
        assert at.gateway.names == {}


async def test_question_that_carries_data_is_asked_of_nobody() -> None:
    """Below a wildcard too: its answer is the resolver's own. The real name is asked when it is connected to."""
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        for number in range(50):
            await program.ask(f"{number}.c2VjcmV0.example.net")
            await program.ask(f"{number}.c2VjcmV0.example.com")
        assert at.dns.asked == {}
        await at.ask(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")  # a refused request asks nobody either
        assert at.dns.asked == {}


async def test_names_are_bounded() -> None:
    full = {f"{n}.example.net": str(ADDRESSES[n + 1]) for n in range(MAX_NAMES - 1)} | {NAME: GIVEN}
    async with site(echo, rules=WILD, names=full) as at:
        program = await Program.of(at)
        for _ in range(2):
            assert (await program.ask("new.example.net")).rcode() == dns.rcode.SERVFAIL
        assert address_in(await program.ask("7.example.net")) == str(ADDRESSES[8])
        assert [event["reason"] for event in at.gateway.events] == ["names"]


async def test_question_of_another_form_gets_an_error() -> None:
    async with site(echo) as at:
        program = await Program.of(at)
        assert (await program.ask(NAME, rdclass="CH")).rcode() == dns.rcode.REFUSED
        update = dns.message.make_query(NAME, "A")
        update.set_opcode(dns.opcode.STATUS)
        assert dns.message.from_wire(await program.send(update.to_wire())).rcode() == dns.rcode.NOTIMP
        none = dns.message.Message()
        assert dns.message.from_wire(await program.send(none.to_wire())).rcode() == dns.rcode.FORMERR


async def test_answer_is_small_whatever_is_offered() -> None:
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        name = f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 40}.example.net"
        padding: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType.PADDING, b"\0" * 800)]
        question = dns.message.make_query(name, "A", use_edns=0, payload=65_000, options=padding)
        assert len(await program.send(question.to_wire())) <= 512


async def test_answer_and_nonsense_get_no_answer() -> None:
    """An answer that was answered could go round for ever."""
    async with site(echo) as at:
        program = await Program.of(at)
        answer = dns.message.make_response(dns.message.make_query(NAME, "A"))
        for data in (answer.to_wire(), b"", b"x", b"\0" * 11, b"\xff" * 500):
            program.transport.sendto(data)
        assert address_in(await program.ask(NAME)) == GIVEN  # the only answer


async def test_flood_of_questions_is_answered_at_a_bounded_rate() -> None:
    async with site(echo, rules=WILD) as at:
        program = await Program.of(at)
        flood = dns.message.make_query("x.example.com", "A").to_wire()
        began = asyncio.get_running_loop().time()
        for _ in range(60):
            for _ in range(50):
                program.transport.sendto(flood)
            for _ in range(100):
                await asyncio.sleep(0)
        seconds = asyncio.get_running_loop().time() - began
        assert QUESTIONS_AT_ONCE <= program.answered <= QUESTIONS_AT_ONCE + QUESTIONS_PER_SECOND * seconds + 1
        async with asyncio.timeout(60):  # the kernel drops a question while its buffer is full
            while not dns.message.from_wire(await program.send(dns.message.make_query(NAME, "A").to_wire())).answer:
                pass


@hypothesis.given(data=hypothesis.strategies.binary(max_size=300))
def test_no_packet_breaks_the_resolver(data: bytes) -> None:
    refused: list[tuple[str, Reason]] = []
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        right.bind((GIVEN, 0))
        right.setblocking(False)
        left.connect(right.getsockname())
        resolver = Resolver(right, NameTable({}), lambda _: False, lambda *_: None, lambda *what: refused.append(what))
        left.send(data)
        resolver.serve_one()
