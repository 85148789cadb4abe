"""/openapi.json, and /docs without the internet: FastAPI's page, with Swagger UI from a package and not from a content
delivery network.

The files are read once, as the gateway may not be able to open them later (see `import_what_comes_late` in gateway.py).
"""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.http.open_paths import DOCS_FILES

_KINDS = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}


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

    async def document(request: Request) -> Response:
        return Response(request.app.openapi_json, media_type="application/json")

    return [
        Route("/docs", docs, include_in_schema=False),
        Route("/openapi.json", document, include_in_schema=False),
        *(_asset(name) for name in DOCS_FILES),
    ]


def _asset(name: str) -> Route:
    plain = files("fastapi_offline").joinpath("static", name).read_bytes()
    packed = gzip.compress(plain, mtime=0)
    kind = _KINDS[name[name.rindex(".") :]]
    # Of the two bodies each has a tag of its own (RFC 9110, 8.8.3.3).
    bodies = {
        encoding: (body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        for encoding, body in ((None, plain), ("gzip", packed))
    }

    async def asset(request: Request) -> Response:
        body, tag = bodies["gzip" if _takes_gzip(request) else None]
        headers = {"cache-control": "max-age=86400", "etag": tag, "vary": "accept-encoding"}
        if tag in request.headers.get("if-none-match", "").replace("W/", "").replace(",", " ").split():
            return Response(status_code=304, headers=headers)
        if body is packed:
            headers["content-encoding"] = "gzip"
        return Response(body, media_type=kind, headers=headers)

    return Route(f"/docs/{name}", asset, include_in_schema=False)


def _takes_gzip(request: Request) -> bool:
    """A weight of zero is a refusal (RFC 9110, 12.5.3)."""
    for coding in request.headers.get("accept-encoding", "").split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() in {"gzip", "*"}:
            return weight.replace(" ", "").lower() not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
