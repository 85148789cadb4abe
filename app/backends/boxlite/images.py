"""The images that a client may name: the operator's table, and references that match the operator's patterns.

A path on the server (`rootfs_path`) comes only from the table. Whether a reference exists is known at the boot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from app.core.errors import UnknownImage
from app.settings.boxlite import ImageSource

# host[:port]/repository:tag@digest; the grammar of OCI distribution, without upper case in the repository.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?P<host>[A-Za-z0-9.-]+(?::\d{{1,5}})?)/)??(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_HOST = re.compile(r"[a-z0-9]+(?:[.-]+[a-z0-9]+)*(?::[0-9]{1,5})?")


class Images:
    def __init__(self, table: Mapping[str, ImageSource], default: str | None, patterns: Sequence[str]) -> None:
        self._table, self._default, self._patterns = table, default, tuple(patterns)

    def chosen(self, asked: str | None) -> str:
        """Returns the name, or that of the default. Raises UnknownImage."""
        name = self._default if asked is None else asked
        if name is None:
            raise UnknownImage(None, self._table)
        if name in self._table:
            return name
        full = canonical(name)
        if full is None or not any(fnmatchcase(full, pattern) for pattern in self._patterns):
            permitted = f"references that match {', '.join(self._patterns)}" if self._patterns else "no references"
            known = f"known: {', '.join(sorted(self._table)) or 'none'}; permitted beside them: {permitted}"
            raise UnknownImage(name[:128], self._table, known)
        return name

    def fields(self, name: str) -> dict[str, str]:
        """The fields of a create that say where the image comes from. A client's reference is sent in the form that was
        compared with the patterns, as the server might look elsewhere first for a short one."""
        source = self._table.get(name)
        if source is None:
            return {"image": canonical(name) or name}
        if source.rootfs_path is not None:
            return {"rootfs_path": str(source.rootfs_path)}
        return {"image": str(source.reference)}


def canonical(reference: str) -> str | None:
    """`python:3.12` -> `docker.io/library/python:3.12`. None when it is not a reference. The first part is a host only
    if it has a dot or a port, or is localhost."""
    head, slash, rest = reference.partition("/")
    has_host = bool(slash) and ("." in head or ":" in head or head == "localhost")
    host, path = (head, rest) if has_host else ("docker.io", reference)
    found = _REFERENCE.fullmatch(path)
    if found is None or found["host"] or not _HOST.fullmatch(host):
        return None
    if host == "docker.io" and "/" not in found["repository"]:
        path = f"library/{path}"
    return f"{host}/{path}"
