"""An egress process that is not there: for tests that hold the sockets of a sandbox themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.backends.egress_link import EgressLink, ProgramSockets
from app.core.network_log import NetworkLog
from app.core.network_rules import NetworkRule
from app.core.secrets import Secret
from app.egress.protocol import KeyPair


class EgressDouble(EgressLink):
    """Takes every sandbox, and does nothing for it."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), lambda *_: None)

    async def open(
        self,
        runtime: str,
        sandbox_id: str,
        rules: Sequence[NetworkRule],
        sockets: ProgramSockets | None,
        log: NetworkLog,
        secrets: Sequence[Secret] = (),
        authority: KeyPair | None = None,
        credential: str = "",
        client: str = "",
    ) -> None:
        assert sockets is not None
        assert [*sockets.listeners] == sorted({port for rule in rules for port in rule.ports})
