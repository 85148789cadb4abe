"""Secrets of a sandbox: texts that the egress process puts into requests to their hosts, and that nothing inside has.

Programs find a placeholder in a variable of their environment. It is no secret, and worth nothing elsewhere.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from app.core.hosts import is_name, normal_host
from app.core.network_rules import NetworkRule
from app.core.text import byte_length

SECRETS = 16  # of one sandbox
HOSTS = 16  # of one secret
VALUE_BYTES = 8192  # half of what servers take as a whole head
PLAIN_PORT = 80  # where nobody speaks TLS
PLACEHOLDER_PREFIX = "bulkhead_secret_"
# Characters of a placeholder: the shortest that is not shorter than the value. Programs that want a key of a certain
# length find one, and nobody learns the exact length. The shortest has 128 random bits.
_LENGTHS = (48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, VALUE_BYTES)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class SecretValue:
    """A text that shows itself to `reveal` only: no repr, log line or error has it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Raises ValueError with a sentence, which does not show the text, for what cannot go into a header."""
        size = byte_length(text)
        if size is None:
            raise ValueError("must not contain half of a surrogate pair")
        if not 1 <= size <= VALUE_BYTES:
            raise ValueError(f"must have 1 to {VALUE_BYTES} bytes")
        if _CONTROL.search(text):
            raise ValueError("must not contain line ends or other control characters, as it goes into a header")
        if text != text.strip():
            raise ValueError("must not begin or end with white space")
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "SecretValue('…')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretValue) and compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True)
class Secret:
    """`hosts` are exact names. The value is the client's own `value`, or the one that the operator has under the name
    `source`. After the sandbox's end it has neither value nor placeholder."""

    variable: str
    hosts: tuple[str, ...]
    value: SecretValue | None = None
    source: str | None = None
    placeholder: str = field(default="", compare=False)  # random, so that a repeated request has another one

    def after_end(self) -> Secret:
        """What is left of it in a record."""
        return Secret(self.variable, self.hosts, source=self.source)


def is_variable(name: str) -> bool:
    return _VARIABLE.fullmatch(name) is not None


def secret_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """The names in their normal form. Raises ValueError with a sentence."""
    found = tuple(dict.fromkeys(map(normal_host, hosts)))
    for host in found:
        if not is_name(host):
            raise ValueError(f"{host} is not the name of one host: a secret goes to exact names only")
    if not 1 <= len(found) <= HOSTS:
        raise ValueError(f"must name 1 to {HOSTS} hosts")
    return found


def new_placeholder(value: SecretValue) -> str:
    """Lower case and digits, which no program changes on the way into a header or URL."""
    size = len(value.reveal().encode())
    length = next(length for length in _LENGTHS if length >= size)
    return PLACEHOLDER_PREFIX + secrets.token_hex(length // 2)[: length - len(PLACEHOLDER_PREFIX)]


def check_rules(secret: Secret, rules: Iterable[NetworkRule]) -> None:
    """Raises ValueError with a sentence for a host to which the secret could not go: it goes into requests that are
    read, over TLS."""
    rules = tuple(rules)
    for host in secret.hosts:
        check_read(host, rules)
        if not any(port != PLAIN_PORT for rule in rules if rule.matches(host) for port in rule.ports):
            example = f'{{"host": "{host}", "ports": [443], "http": [{{}}]}}'
            raise ValueError(f"{host} needs a rule with `http` in the network's `allow`, such as {example}")


def check_read(host: str, rules: Iterable[NetworkRule]) -> None:
    """Raises ValueError with a sentence when a rule lets requests to a secret's host pass unread."""
    for rule in rules:
        if rule.matches(host) and not rule.http:
            raise ValueError(
                f"the rule {rule} lets bytes to {host} pass unread, where no secret can be put in; "
                'give it "http": [{}] or another list of requests'
            )
