"""What the routes of files state in OpenAPI: raw bodies, and the headers of both directions."""

from __future__ import annotations

from typing import Any

from app.api.http.raw_query import PathQuery, parameters

ON_FILES = (
    *("invalid_request", "not_found", "wrong_state", "unsupported_by_runtime", "wrong_type", "access_denied"),
    *("bound_exceeded", "capacity_exceeded"),
    *("runtime_failed", "backend_error", "backend_unavailable", "backend_timeout"),
)
ON_UPLOADS = (*ON_FILES, "unsupported_media_type", "payload_too_large", "disk_full")

_HEADERS = {
    "ETag": ("identifies this state of the file; strong, made of its time, size and inode", "string"),
    "Last-Modified": ("when its content last changed, in whole seconds", "string"),
    "File-Mode": ("permissions in octal, such as 0644", "string"),
    "File-Type": ("file, directory, symlink, fifo, socket, character_device or block_device", "string"),
    "Accept-Ranges": ("`bytes`", "string"),
    "Content-Length": ("bytes of the body", "integer"),
    "Content-Range": ("which part this is, such as `bytes 0-99/1000`", "string"),
}
_CONDITIONS = {
    "If-Match": "only if the ETag is one of these; `*`: if there is a file",
    "If-None-Match": "only if the ETag is none of these; `*`: if there is no file",
    "If-Modified-Since": "only if it changed after this time",
    "If-Unmodified-Since": "only if it did not change after this time",
    "Range": "one part, such as `bytes=0-99`, `bytes=100-` or `bytes=-100`; several ranges return the whole file",
    "If-Range": "return the part only if this is still the ETag or the Last-Modified, else the whole file",
}
FILE_HEADERS = ("ETag", "Last-Modified", "File-Mode", "File-Type", "Accept-Ranges", "Content-Length")
BINARY = {"type": "string", "format": "binary"}


def sends(*names: str) -> dict[str, Any]:
    return {name: {"description": _HEADERS[name][0], "schema": {"type": _HEADERS[name][1]}} for name in names}


def takes(model: type[PathQuery], *headers: str) -> dict[str, Any]:
    """The `openapi_extra` of a route: its query and the request headers that it reads."""
    named = [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": _CONDITIONS[name],
            "schema": {"type": "string"},
        }
        for name in headers
    ]
    return {"parameters": [*parameters(model), *named]}


def raw_body(media_type: str, description: str) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "description": description, "content": {media_type: {"schema": BINARY}}},
    }


def raw_answer(media_type: str, description: str, *headers: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": BINARY}}, "headers": sends(*headers)}
