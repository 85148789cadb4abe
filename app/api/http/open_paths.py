"""The paths that need no key: health, the documents and the pages for people."""

from __future__ import annotations

DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
DOCS_PATHS = frozenset({"/docs", *(f"/docs/{name}" for name in DOCS_FILES)})
FRONT, INDEX = "/", "/problems"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", FRONT, INDEX, *DOCS_PATHS})
OPEN_PREFIX = f"{INDEX}/"
