"""Puts secrets into requests: for a placeholder in the value of a header, on its way to a host of the secret.

A request that carries a placeholder elsewhere in its head to a host that it is not for, or in a header without TLS, is
refused. The placeholder is worth nothing there, but somebody has made a mistake, or tries something.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from collections.abc import Iterable

import h11

from app.core.secrets import PLACEHOLDER_PREFIX
from app.egress.protocol import NetworkSecret
from app.egress.reasons import Reason

HEAD = 64 * 1024  # bytes of a head with its secrets. Servers take 8 to 64 KiB
_PREFIX = PLACEHOLDER_PREFIX.encode()
_BASIC = re.compile(rb"(basic +)([A-Za-z0-9+/]+={0,2})[ \t]*", re.IGNORECASE)  # RFC 7617

Field = tuple[bytes, bytes]


class SecretRefused(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Placeholders:
    """Of one sandbox."""

    def __init__(self, secrets: Iterable[NetworkSecret]) -> None:
        self._secrets = {secret.placeholder.encode(): secret for secret in secrets}
        self._compile()

    def replace(self, secret: NetworkSecret) -> None:
        """Takes the place of the one with the same placeholder: its value or its hosts have changed."""
        self._secrets[secret.placeholder.encode()] = secret
        self._compile()

    def _compile(self) -> None:
        self._any = re.compile(b"|".join(map(re.escape, self._secrets)))

    def put(self, request: h11.Request, host: str, *, verified_tls: bool) -> h11.Request:
        """Returns the request with secrets. `host` is the name that it goes to, in its normal form. Raises
        SecretRefused."""
        if not self._secrets:
            return request
        self._check(request.target, host)
        fields = request.headers.raw_items()
        changed = [self._field(field, host, verified_tls=verified_tls) for field in fields]
        if changed == fields:
            return request
        if sum(len(name) + len(value) + 4 for name, value in changed) > HEAD:
            raise SecretRefused(Reason.SECRET_SIZE)
        return _request(request, changed)

    def _field(self, field: Field, host: str, *, verified_tls: bool) -> Field:
        name, value = field
        self._check(name, host)
        basic = _BASIC.fullmatch(value)
        credentials = _decoded(basic[2]) if basic else None
        if basic and credentials is not None and _PREFIX in credentials:
            return name, basic[1] + b64encode(self._filled(credentials, host, verified_tls=verified_tls))
        return name, self._filled(value, host, verified_tls=verified_tls)

    def _check(self, text: bytes, host: str) -> None:
        """For its own host a placeholder passes as it is, where no secret is put in."""
        for found in self._found(text):
            if host not in found.hosts:
                raise SecretRefused(Reason.SECRET_HOST)

    def _filled(self, text: bytes, host: str, *, verified_tls: bool) -> bytes:
        self._check(text, host)
        if not self._found(text):
            return text
        if not verified_tls:
            raise SecretRefused(Reason.SECRET_PLAIN)
        return self._any.sub(lambda match: self._secrets[match[0]].value.encode(), text)

    def _found(self, text: bytes) -> list[NetworkSecret]:
        return [self._secrets[placeholder] for placeholder in self._any.findall(text)] if _PREFIX in text else []


def _decoded(text: bytes) -> bytes | None:
    """Some leave the padding out."""
    bare = text.rstrip(b"=")
    try:
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except binascii.Error:
        return None


def _request(request: h11.Request, fields: list[Field]) -> h11.Request:
    try:
        return h11.Request(method=request.method, target=request.target, headers=fields)
    except h11.LocalProtocolError:  # its sentence shows the value
        raise SecretRefused(Reason.HTTP) from None
