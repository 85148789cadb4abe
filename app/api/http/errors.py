"""Errors of a request that HTTP itself finds, before the core sees the request."""

from __future__ import annotations

from collections.abc import Iterable

from app.core.errors import BulkheadError, InvalidRequest


class UnsupportedMediaType(BulkheadError):
    pass


class UpgradeRequired(BulkheadError):
    pass


class BodyTooSlow(InvalidRequest):
    """A body came too slowly. The connection must be closed, as the rest of the body would be taken for the next
    request."""


class MethodNotAllowed(BulkheadError):
    """`methods` are those that the path takes."""

    def __init__(self, methods: Iterable[str]) -> None:
        self.allow = ", ".join(sorted(methods))
        super().__init__(f"this path takes {self.allow}")


class InternalError(BulkheadError):
    """Stands for an unexpected error, whose text may hold a secret."""

    def __init__(self) -> None:
        super().__init__("the service could not do this because of a fault of its own; its log has the reason")
