"""/docs without the internet: FastAPI's page, with Swagger UI from a package instead of a content delivery network.

The files are read once: the gateway may not be able to open them later (see `import_what_comes_late` in gateway.py).
"""

from __future__ import annotations

from importlib.resources import files

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
PATHS = frozenset({"/docs", *(f"/docs/{name}" for name in _NAMES)})


def routes() -> list[Route]:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Bulkhead",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )

    async def docs(_: Request) -> Response:
        return page

    assets = [_asset(name) for name in _NAMES]
    return [Route("/docs", docs, include_in_schema=False), *assets]


def _asset(name: str) -> Route:
    content = files("fastapi_offline").joinpath("static", name).read_bytes()
    kind = _KINDS[name[name.rindex(".") :]]

    async def asset(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "max-age=86400"})

    return Route(f"/docs/{name}", asset, include_in_schema=False)
