"""Answers the DNS questions of one sandbox. It asks nobody, so a question carries no data out.

An allowed name has one address of its own, and no records of any other type. Every other name does not exist.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rrset
from dns.rcode import FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, Rcode

from app.core.hosts import is_name
from app.egress.names import NamesFull, NameTable
from app.egress.reasons import Reason

REMEMBERED = 64  # answers of one sandbox, with their questions: 64 KiB at most
_SHORT = 512  # bytes of a question that is remembered
TTL = 60  # seconds. The address stays for the sandbox's life; some programs keep a name for ever if they may
MOST = 4096  # bytes of a question that are read


class Resolver:
    """`is_allowed` says whether a rule permits a name at any port. `announce` tells the gateway of a new address, and
    calls back when it was told. `refused` is called with a name and the reason."""

    def __init__(
        self,
        endpoint: socket.socket,
        names: NameTable,
        is_allowed: Callable[[str], bool],
        announce: Callable[[str, IPv4Address, Callable[[], None]], None],
        refused: Callable[[str, Reason], None],
    ) -> None:
        self.endpoint, self._names, self._is_allowed = endpoint, names, is_allowed
        self._announce, self._refused = announce, refused
        # Without their ids. A name that has an address keeps it, so its answers change with the rules only. dnspython
        # takes 0.2 ms to read a question and to write an answer.
        self._remembered: dict[bytes, bytes] = {}

    def forget_answers(self) -> None:
        """There are other rules."""
        self._remembered.clear()

    def serve_one(self) -> None:
        """Reads one question and answers it. What is no question is dropped."""
        try:
            data, sender = self.endpoint.recvfrom(MOST)
            remembered = self._remembered.get(data[2:])
            if remembered is not None:
                self.endpoint.sendto(data[:2] + remembered, sender)
                return
            question = dns.message.from_wire(data, ignore_trailing=True)
        except (OSError, dns.exception.DNSException, ValueError):
            return
        if question.flags & dns.flags.QR:
            return
        answer = dns.message.make_response(question, recursion_available=True)
        rcode = _refusal(question)
        if rcode is not NOERROR:
            answer.set_rcode(rcode)
            self._send(answer, sender)
            return
        self._answer(question.question[0], answer, data, sender)

    def _answer(self, asked: dns.rrset.RRset, answer: dns.message.Message, question: bytes, sender: Any) -> None:
        name = asked.name.to_text(omit_final_dot=True).lower()
        known = self._names.address_of(name)  # it stays the name's, also while no rule permits the name
        if not (is_name(name) and self._is_allowed(name)):
            self._refused(name, Reason.NAME)
            answer.set_rcode(NXDOMAIN)
        elif asked.rdtype == dns.rdatatype.A:
            try:
                address = known or self._names.give(name)
            except NamesFull:
                self._refused(name, Reason.NAMES)
                answer.set_rcode(SERVFAIL)
            else:
                answer.answer.append(dns.rrset.from_text(asked.name, TTL, "IN", "A", str(address)))
                if known is None:
                    self._announce(name, address, lambda: self._send(answer, sender))
                    return
        self._send(answer, sender)
        if known is not None and answer.rcode() is NOERROR:
            self._remember(question, answer)

    def _send(self, answer: dns.message.Message, to: Any) -> None:
        with contextlib.suppress(OSError, dns.exception.DNSException):  # a program that does not read asks again
            self.endpoint.sendto(answer.to_wire(), to)

    def _remember(self, question: bytes, answer: dns.message.Message) -> None:
        if len(question) > _SHORT:
            return
        if len(self._remembered) >= REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        with contextlib.suppress(dns.exception.DNSException):
            self._remembered[question[2:]] = answer.to_wire()[2:]


def _refusal(question: dns.message.Message) -> Rcode:
    if question.opcode() != dns.opcode.QUERY:
        return NOTIMP
    if len(question.question) != 1:
        return FORMERR
    return NOERROR if question.question[0].rdclass == dns.rdataclass.IN else REFUSED
