"""Makes the application from settings, the core and the API. `serving/gateway.py` serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api.application import Application, install
from app.api.context import ApplicationContext, RequestTimeouts, Shares, TransferBounds
from app.api.http.access import AccessPolicy
from app.api.http.idempotency import Recorded
from app.api.http.readiness import Readiness
from app.api.http.tickets import Tickets
from app.core.idempotency import IdempotencyStore
from app.core.limits import MIB
from app.core.operator_secrets import OperatorSecrets
from app.core.policy import DEFAULT_PROFILES, Policy
from app.core.registry import Registry
from app.core.sandboxes import Sandboxes
from app.settings import Settings
from app.telemetry import Telemetry


def create_app(
    settings: Settings,
    sandboxes: Sandboxes,
    registry: Registry,
    *,
    telemetry: Telemetry,
    key_hashes: Sequence[str] = (),
    profiles: Mapping[str, Policy] = DEFAULT_PROFILES,
    timeouts: RequestTimeouts | None = None,
    secrets: OperatorSecrets | None = None,
) -> Application:
    """`key_hashes` are SHA-256 in hex, of the keys of the settings and of the key file. Without any, no key is needed.
    At the end of its lifespan the application cancels the work for idempotency keys, destroys every sandbox, and then
    closes the backends.
    """

    shared = len(key_hashes) > 1
    readiness = Readiness(registry, telemetry.runtime_ready, storage=settings.storage)
    answers: IdempotencyStore[Recorded] = IdempotencyStore(settings.idempotency.kept_answers(), shared=shared)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            for backend in registry:
                if registry.enabled(backend.info.name):
                    backend.open()
            asking = asyncio.create_task(readiness.note_all())  # the log says which work, and why another does not
            yield
            asking.cancel()
        finally:
            await answers.aclose()
            await sandboxes.aclose()
            for backend in registry:
                await backend.aclose()

    app = Application(
        title="Bulkhead",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # api/routes/docs_page.py has both, and its /docs needs no internet
        docs_url=None,
        redoc_url=None,
        # An OTEL_ variable of the host must not send requests elsewhere, and nobody asks at each request who listens.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,
    )
    telemetry.watch(sandboxes)
    transfers = settings.transfers
    shares = Shares.of(
        sandboxes.capacity, shared=shared, answers_mib=transfers.answers_mib, bodies_mib=transfers.bodies_mib
    )
    context = ApplicationContext(
        sandboxes=sandboxes,
        registry=registry,
        readiness=readiness,
        ranges=settings.limit_ranges(),
        storage=settings.storage,
        profiles=profiles,
        ttl_ceiling_seconds=settings.ttl_ceiling_seconds,
        journal=telemetry,
        metrics=telemetry.render,
        streamed=telemetry.streamed,
        shares=shares,
        tickets=Tickets(shares.tickets),
        egress=settings.egress.policy(),
        secrets=secrets or OperatorSecrets(),
        timeouts=timeouts or RequestTimeouts(),
        transfers=TransferBounds(transfers.ceiling_mib * MIB, transfers.stall_seconds),
    )
    access_policy = AccessPolicy(
        frozenset(settings.allowed_hosts), frozenset(settings.allowed_origins), tuple(key_hashes)
    )
    install(app, context, access_policy, answers)
    return app
