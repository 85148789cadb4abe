"""The outermost layer of the API: request ids, the checks of who may call, the access log, and unexpected errors."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.context import Journal, Shares, Visitor
from app.api.http.disconnect import ClientDisconnected
from app.api.http.open_paths import OPEN_PATHS, OPEN_PREFIX
from app.api.http.paced import Paced
from app.api.http.problems import problem_of
from app.api.http.tickets import Tickets
from app.core.budget import Budget
from app.core.connections import ConnectionEntry, canonical, network_of
from app.core.errors import CapacityExceeded, Forbidden, Refused, Unauthenticated
from app.core.fair_queue import FairQueue
from app.core.models import new_id

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_HOST_PATHS = frozenset({"/healthz", "/readyz"})  # a load balancer asks by address
CLIENT_DISCONNECTED = 499  # nobody sees it: the log's word for a client that disconnected
UVLOOP_CLOSED = "the handler is closed"  # how it says that a connection is gone
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@?#]+)(?::([0-9]{1,5}))?")
_WEB_SCHEME = {"ws": "http", "wss": "https"}


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may call. Hosts have a port or allow any port. Origins are `scheme://host[:port]`. Keys are SHA-256 in hex.
    Without keys everybody may call who passes the two other checks."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    key_hashes: tuple[str, ...] = ()

    def check(self, scope: Scope, tickets: Tickets) -> Visitor:
        """Returns who sent the request. Raises Forbidden or Unauthenticated."""
        path: str = scope["path"]
        spent = tickets.spend(scope)  # before anything is refused: a ticket that was seen is of no use any more
        host = _only(scope, b"host")
        foreign = False
        try:
            self._check_host(host)
        except Forbidden:
            if path not in ANY_HOST_PATHS:
                raise
            foreign = True
        self._check_origin(scope, host)
        if spent:
            ticket = tickets.check(spent, scope)
            return Visitor(ticket.client, view_only=not ticket.stdin)
        if self.key_hashes and path not in OPEN_PATHS and not path.startswith(OPEN_PREFIX):
            return Visitor(self._check_key(scope))
        return Visitor(stranger=bool(self.key_hashes), foreign=foreign)

    def _check_host(self, host: str | None) -> None:
        found = _HOST.fullmatch(host.lower()) if host else None
        if found is None:
            raise Forbidden("the request has no valid Host header")
        if found[1] not in LOOPBACK_NAMES and found[1] not in self.hosts and found[0] not in self.hosts:
            raise Forbidden(
                f"the host {found[1][:128]!r} is not allowed; the operator can add it to BULKHEAD_ALLOWED_HOSTS"
            )

    def _check_origin(self, scope: Scope, host: str | None) -> None:
        origins = _values(scope, b"origin")
        if not origins:
            return
        own = f"{_WEB_SCHEME.get(scope['scheme'], scope['scheme'])}://{(host or '').lower()}"
        if len(origins) > 1 or (origins[0].lower() != own and origins[0].lower() not in self.origins):
            raise Forbidden(
                "the Origin of the request is not allowed; the operator can add it to BULKHEAD_ALLOWED_ORIGINS"
            )

    def _check_key(self, scope: Scope) -> str:
        """Checks the key and returns its hash."""
        scheme, _, token = (_only(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("send a key in the header Authorization: Bearer <key>")
        given = hashlib.sha256(token.strip().encode("latin-1")).hexdigest()
        known = False
        for key_hash in self.key_hashes:  # against all of them, so that time tells nothing about which one is near
            known |= hmac.compare_digest(given, key_hash)
        if not known:
            raise Unauthenticated("the key is not known here")
        return given


def _values(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _only(scope: Scope, name: bytes) -> str | None:
    """The value of a header. None when it is absent or occurs twice, as proxies disagree on which one counts."""
    values = _values(scope, name)
    return values[0] if len(values) == 1 else None


def _choose_id(scope: Scope) -> str:
    asked = _only(scope, b"x-request-id")
    return asked if asked is not None and _REQUEST_ID.fullmatch(asked) else new_id("req_")


class AccessMiddleware:
    """Checks each request before it reaches the routes. It is pure ASGI, as the framework's middleware class would put
    a task and a queue around every request."""

    def __init__(
        self, app: ASGIApp, access_policy: AccessPolicy, tickets: Tickets, journal: Journal, shares: Shares
    ) -> None:
        self._app = app
        self._access_policy = access_policy
        self._tickets = tickets
        self._journal = journal
        self._shares = shares
        self._queue = FairQueue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        visit = _Visit(_choose_id(scope), send)
        scope.setdefault("state", {})["request_id"] = visit.request_id
        address = _settle_address(scope)
        try:
            await self._serve(scope, receive, visit)
        except ClientDisconnected:
            visit.status = CLIENT_DISCONNECTED
        finally:
            self._journal.request(
                request_id=visit.request_id,
                method=scope.get("method", "WEBSOCKET"),
                path=scope["path"],
                status=visit.status or CLIENT_DISCONNECTED,
                seconds=time.perf_counter() - began,
                client=address,
                key=scope["state"].get("visitor", Visitor()).client,
            )

    async def _serve(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        async def refuse(error: Refused) -> None:
            self._journal.refused(error)
            await problem_of(error).response(visit.request_id)(scope, receive, visit.send)

        try:
            try:
                holder, answers = self._receive(scope, visit)
            except Refused:
                await self._queue.enter(_address(scope))  # a refusal costs time too: it begins in turn as well
                raise
            # Whoever asks for health waits for nobody's requests but those of his kind.
            await self._queue.enter(scope["path"] if scope["path"] in ANY_HOST_PATHS else holder)
            await self._app(scope, receive, Paced(visit.send, answers, holder, refuse, self._shares.pieces).send)
        except Refused as error:
            await refuse(error)
        except ClientDisconnected:
            raise
        except Exception as error:  # the last place: nothing of it may reach the client
            self._journal.failure(request_id=visit.request_id, error=error)
            if visit.status:
                raise
            await problem_of(error).response(visit.request_id)(scope, receive, visit.send)

    def _receive(self, scope: Scope, visit: _Visit) -> tuple[Hashable, Budget]:
        """Decides whose connection it is, and whose share its answer counts for. Raises Refused."""
        try:
            visitor = self._access_policy.check(scope, self._tickets)
        except Refused:
            self._assign(scope, visit, self._shares.strangers, _address(scope))
            raise
        scope["state"]["visitor"] = visitor
        if visitor.stranger:
            holder = self._assign(scope, visit, self._shares.strangers, _address(scope))
            return holder, self._shares.strangers_answers
        return self._assign(scope, visit, self._shares.connections, visitor.client), self._shares.answers

    def _assign(self, scope: Scope, visit: _Visit, budget: Budget, holder: Hashable) -> Hashable:
        """Raises CapacityExceeded. Then the connection ends with the answer. A health check is not refused for this, as
        a load balancer must not take a service for dead because others have all connections."""
        entry: ConnectionEntry | None = scope["state"].get("connection")
        if entry is not None:
            try:
                entry.belongs_to(budget, holder)
            except CapacityExceeded:
                visit.close_after()
                if scope["path"] not in ANY_HOST_PATHS:
                    raise
        return holder


def _settle_address(scope: Scope) -> str | None:
    """Sets the address of the client. It is that of the peer if a trusted proxy does not send an address."""
    if scope.get("client") is None:
        return None
    said, port = scope["client"]
    try:
        address = canonical(said)
    except ValueError:
        entry: ConnectionEntry | None = scope["state"].get("connection")
        address = "" if entry is None else entry.address
    scope["client"] = address, port
    return address


def _address(scope: Scope) -> str:
    return network_of((scope.get("client") or ("",))[0])


class _Visit:
    """One request: its id, and its status when it is answered."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.status = 0
        self._send = send
        # What a sandbox printed is never to be taken for a page; answers are about a moment.
        self._headers = [
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]

    def close_after(self) -> None:
        self._headers.append((b"connection", b"close"))

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in {"http.response.start", "websocket.http.response.start", "websocket.accept"}:
            self.status = message.get("status", 101)
            headers = [*message.get("headers", ()), *self._headers]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        try:
            await self._send(message)
        except OSError as error:
            raise ClientDisconnected from error
        except RuntimeError as error:
            if UVLOOP_CLOSED not in str(error):
                raise
            raise ClientDisconnected from error
