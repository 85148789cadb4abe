"""Finds the route of a request. The framework's router asks each route in turn, and each puts an answer together: seven
routes come before that of a create."""

from __future__ import annotations

from collections import defaultdict

from fastapi import APIRouter
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from app.api.http.strict_route import StrictRoute


class Dispatch:
    """Runs the first route that has the path and the method of a request. What no route has goes to the router itself,
    which refuses it, and so does the lifespan."""

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._routes: defaultdict[str, list[Route | WebSocketRoute]] = defaultdict(list)  # by method
        for route in router.routes:
            if isinstance(route, WebSocketRoute):
                self._routes["websocket"].append(route)
            elif isinstance(route, Route):
                head = {"HEAD"} if isinstance(route, StrictRoute) and route.answers_head else set()
                for method in {*(route.methods or ()), *head}:
                    self._routes[method].append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method", scope["type"])
        if method in self._routes and not scope.get("root_path"):
            for route in self._routes[method]:
                if route.path_regex.match(scope["path"]):
                    _, found = route.matches(scope)
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return
        await self._router(scope, receive, send)
