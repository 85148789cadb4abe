"""Answers the DNS questions of one sandbox. It asks nobody, so a question carries no data out.

An allowed name has one address of its own, and no records of any other type. Every other name does not exist.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from app.core.hosts import is_name
from app.egress.dns_wire import InvalidDns, Question, Rcode, RecordType, answer_to, read_question
from app.egress.names import NamesFull, NameTable
from app.egress.reasons import Reason

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
        self._endpoint, self._names, self._is_allowed = endpoint, names, is_allowed
        self._announce, self._refused = announce, refused

    def serve_one(self) -> None:
        """Reads one question and answers it. What is no question is dropped."""
        try:
            data, sender = self._endpoint.recvfrom(MOST)
            question = read_question(data)
        except (OSError, InvalidDns):
            return
        if question.refusal is not Rcode.NOERROR:
            self._send(answer_to(question, question.refusal), sender)
        else:
            self._answer(question, sender)

    def _answer(self, question: Question, sender: Any) -> None:
        name = question.name
        known = self._names.address_of(name)
        if known is None and not (is_name(name) and self._is_allowed(name)):
            self._refused(name, Reason.NAME)
            self._send(answer_to(question, Rcode.NXDOMAIN), sender)
        elif question.kind != RecordType.A:
            self._send(answer_to(question, Rcode.NOERROR), sender)
        elif known is not None:
            self._send(answer_to(question, Rcode.NOERROR, known, TTL), sender)
        else:
            self._answer_new(question, sender)

    def _answer_new(self, question: Question, sender: Any) -> None:
        """Gives the name an address."""
        try:
            address = self._names.give(question.name)
        except NamesFull:
            self._refused(question.name, Reason.NAMES)
            self._send(answer_to(question, Rcode.SERVFAIL), sender)
            return
        answer = answer_to(question, Rcode.NOERROR, address, TTL)
        self._announce(question.name, address, lambda: self._send(answer, sender))

    def _send(self, answer: bytes, to: Any) -> None:
        with contextlib.suppress(OSError):  # a program that does not read asks again
            self._endpoint.sendto(answer, to)
