"""The bytes of DNS messages (RFC 1035), as far as two things need them: answering a program's question for an address,
and asking for the addresses of a host.

A library for all of DNS builds an object for each record and took most of the time of a connection by name: 0.8 ms of
processor time for the two questions of one, against 0.1 here. Tests compare both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from app.core.hosts import IPAddress


class InvalidDns(Exception):
    """The bytes are no DNS message, or not one of the kind that was to be read."""


class RecordType(IntEnum):
    A = 1
    CNAME = 5
    AAAA = 28
    OPT = 41


class Rcode(IntEnum):
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


INTERNET = 1  # the class
QUERY = 0  # the opcode
PAYLOAD = 1232  # bytes of an answer that pass without fragments: about 70 addresses
ALIASES = 16  # that are followed, one after another

_HEAD = struct.Struct("!HHHHHH")  # id, flags, and how many questions, answers, authorities and additional records
_KIND = struct.Struct("!HH")  # type and class
_RECORD = struct.Struct("!HHIH")  # type, class, seconds to live, bytes of data
_IS_ANSWER, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0100, 0x0080
_OPCODE_SHIFT, _OPCODE, _RCODE = 11, 0xF, 0xF  # of the flags
_LONGEST_NAME, _LONGEST_LABEL = 255, 63  # bytes: RFC 1035, 2.3.4
_POINTER = 0xC0
_QUESTION_NAME = struct.pack("!H", _POINTER << 8 | _HEAD.size)  # a pointer to the name of the question
_EXTENSIONS = b"\0" + struct.pack("!HHIH", RecordType.OPT, PAYLOAD, 0, 0)  # RFC 6891
_SIZES: dict[int, int] = {RecordType.A: 4, RecordType.AAAA: 16}  # bytes of an address
_PLAIN = re.compile(rb"[a-z0-9_-]*")


# --- a program's question, and the answer to it


@dataclass(frozen=True, slots=True)
class Question:
    """`name` is in lower case without a dot at its end; "" where there is not exactly one question. `refusal` is what
    the answer must say if it is no question for records of the Internet, and NOERROR otherwise."""

    name: str
    kind: int
    refusal: Rcode
    packet: bytes
    end: int  # of the question in the packet
    has_extensions: bool


def read_question(packet: bytes) -> Question:
    """Raises InvalidDns, also for an answer. What follows the question is not read, but for its beginning."""
    if len(packet) < _HEAD.size:
        raise InvalidDns("no head")
    _, flags, questions, answers, authorities, additional = _HEAD.unpack_from(packet)
    if flags & _IS_ANSWER:
        raise InvalidDns("an answer")
    if flags >> _OPCODE_SHIFT & _OPCODE != QUERY:
        return Question("", 0, Rcode.NOTIMP, packet, _HEAD.size, False)
    if questions != 1:
        return Question("", 0, Rcode.FORMERR, packet, _HEAD.size, False)
    name, end = _labels(packet, _HEAD.size)
    if len(packet) < end + _KIND.size:
        raise InvalidDns("it ends in the question")
    kind, of_class = _KIND.unpack_from(packet, end)
    end += _KIND.size
    has_extensions = not answers and not authorities and additional > 0 and packet[end : end + 3] == _EXTENSIONS[:3]
    refusal = Rcode.NOERROR if of_class == INTERNET else Rcode.REFUSED
    return Question(_text(name), kind, refusal, packet, end, has_extensions)


def answer_to(question: Question, rcode: Rcode, address: IPv4Address | None = None, ttl: int = 0) -> bytes:
    """With this address, for `ttl` seconds, or without a record."""
    number, flags, *_ = _HEAD.unpack_from(question.packet)
    kept = flags & (_OPCODE << _OPCODE_SHIFT | _RECURSION_DESIRED)
    flags = _IS_ANSWER | _RECURSION_AVAILABLE | kept | rcode
    asked = question.packet[_HEAD.size : question.end]
    record = b"" if address is None else _QUESTION_NAME + _RECORD.pack(RecordType.A, INTERNET, ttl, 4) + address.packed
    extensions = _EXTENSIONS if question.has_extensions else b""
    return _HEAD.pack(number, flags, bool(asked), bool(record), 0, bool(extensions)) + asked + record + extensions


# --- our own question, and what a server answers


def question_for(number: bytes, name: str, kind: int, *, with_extensions: bool) -> bytes:
    """`number` is two bytes that nobody can guess who does not see the question. `name` is a host name in its normal
    form."""
    labels = b"".join(bytes((len(label),)) + label for label in name.encode("ascii").split(b"."))
    head = _HEAD.pack(0, _RECURSION_DESIRED, 1, 0, 0, with_extensions)
    return number + head[2:] + labels + b"\0" + _KIND.pack(kind, INTERNET) + (_EXTENSIONS if with_extensions else b"")


def is_answer_to(packet: bytes, question: bytes) -> bool:
    """Whether a packet says that it answers a question of `question_for`. A server that does not understand it may
    leave it out."""
    if len(packet) < _HEAD.size or packet[:2] != question[:2]:
        return False
    _, flags, questions, *_ = _HEAD.unpack_from(packet)
    if not flags & _IS_ANSWER or flags >> _OPCODE_SHIFT & _OPCODE != QUERY:
        return False
    end = question.index(b"\0", _HEAD.size) + 1 + _KIND.size
    if questions == 0:
        return flags & _RCODE in (Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED)
    return questions == 1 and packet[_HEAD.size : end].lower() == question[_HEAD.size : end].lower()


def addresses_in(packet: bytes) -> list[IPAddress]:
    """The addresses of an answer of `is_answer_to`, at the end of the question's aliases. Empty if there are none.
    Raises InvalidDns when the server has failed."""
    _, flags, questions, answers, *_ = _HEAD.unpack_from(packet)
    if questions != 1 or flags & _RCODE not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        raise InvalidDns("the server has failed")
    name, at = _labels(packet, _HEAD.size)
    if len(packet) < at + _KIND.size:
        raise InvalidDns("it ends in the question")
    kind, _ = _KIND.unpack_from(packet, at)
    found: dict[bytes, list[IPAddress]] = {}
    aliases: dict[bytes, bytes] = {}
    for owner, data, of_kind in _records(packet, at + _KIND.size, answers):
        if of_kind == RecordType.CNAME:
            aliases[owner] = _labels(packet, data)[0]
        elif of_kind == kind:
            found.setdefault(owner, []).append(_address(packet, data, kind))
    for _ in range(ALIASES):
        if name in found:
            return found[name]
        if name not in aliases:
            return []
        name = aliases[name]
    raise InvalidDns("too many aliases")


def _records(packet: bytes, at: int, count: int) -> Iterator[tuple[bytes, int, int]]:
    """Owner, where the data begins, and type of each address and alias. Raises InvalidDns."""
    for _ in range(count):
        owner, at = _labels(packet, at)
        if len(packet) < at + _RECORD.size:
            raise InvalidDns("it ends in a record")
        kind, of_class, _, size = _RECORD.unpack_from(packet, at)
        at += _RECORD.size
        if len(packet) < at + size:
            raise InvalidDns("it ends in a record")
        if of_class == INTERNET and (kind == RecordType.CNAME or size == _SIZES.get(kind)):
            yield owner, at, kind
        at += size


def _address(packet: bytes, at: int, kind: int) -> IPAddress:
    data = packet[at : at + _SIZES[kind]]
    return IPv4Address(data) if kind == RecordType.A else IPv6Address(data)


# --- names


def _labels(packet: bytes, at: int) -> tuple[bytes, int]:
    """A name as its labels with their lengths, in lower case and without pointers, and where it ends in the packet.
    Raises InvalidDns."""
    labels: list[bytes] = []
    size, end, before = 1, 0, at
    try:
        while length := packet[at]:
            if length >= _POINTER:
                end = end or at + 2
                at = (length & ~_POINTER) << 8 | packet[at + 1]
                if at >= before:  # each leads further to the front, so there is an end
                    raise InvalidDns("a pointer to what follows")
                before = at
                continue
            if length > _LONGEST_LABEL:
                raise InvalidDns("a label of another kind")
            labels.append(packet[at : at + 1 + length])
            at += 1 + length
            size += 1 + length
            if size > _LONGEST_NAME:
                raise InvalidDns("a name that is too long")
    except IndexError:
        raise InvalidDns("it ends in a name") from None
    # A length is no capital letter: that would be 65 or more.
    return b"".join(labels).lower(), end or at + 1


def _text(labels: bytes) -> str:
    """As zone files write it: RFC 1035, 5.1. So a dot within a label is not the one between two."""
    parts, at = [], 0
    while at < len(labels):
        end = at + 1 + labels[at]
        parts.append(_label_text(labels[at + 1 : end]))
        at = end
    return ".".join(parts)


def _label_text(label: bytes) -> str:
    if _PLAIN.fullmatch(label):
        return label.decode("ascii")
    return "".join(
        f"\\{byte:03d}" if not 0x20 < byte < 0x7F else f"\\{byte:c}" if byte in b'".;()@$\\' else chr(byte)
        for byte in label
    )
