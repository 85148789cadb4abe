"""TLS with the real host of a rule. Its certificate must be valid, for its name, and from somebody whom the operator
trusts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from app.core.hosts import IPAddress
from app.egress.dialling import NotDialled
from app.egress.reasons import Reason
from app.egress.tls_stream import TlsStream, strictly
from app.egress.turns import SandboxTurns


def trusting(ca_file: str) -> ssl.SSLContext:
    """`ca_file` has the certificates of the authorities that may vouch for hosts, as PEM; "": those of the system,
    which take 20 ms. Raises ValueError when they cannot be read."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"the certificates in {ca_file} cannot be read: {error.strerror or error}") from error
    strictly(context)
    return context


class UpstreamTls:
    """`seconds`: for a handshake."""

    def __init__(self, context: ssl.SSLContext, seconds: float) -> None:
        self._context, self._seconds = context, seconds

    async def begin(
        self,
        turns: SandboxTurns,
        connection: socket.socket,
        name: str,
        address: IPAddress | None,
        count: Callable[[int], None],
    ) -> TlsStream:
        """Returns when the host has proved to be the one of this name. Raises NotDialled."""
        stream = TlsStream(turns, connection, self._context, count, server_name=name)
        try:
            async with asyncio.timeout(self._seconds):
                await stream.shake_hands()
        except ssl.SSLCertVerificationError as error:
            raise NotDialled(Reason.CERTIFICATE, address, error.verify_message) from error
        except TimeoutError as error:
            raise NotDialled(Reason.TIMEOUT, address) from error
        except OSError as error:
            raise NotDialled(Reason.UPSTREAM_TLS, address) from error
        return stream
