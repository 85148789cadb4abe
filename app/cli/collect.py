"""Files of a sandbox that are brought back after its command: written below a folder here, and nowhere else."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.cli.show import say
from app.client import Client

_NEW = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_TOO_LARGE = "bytes in all at most"  # in the service's error
_OTHER_WAY = "a sandbox that is kept (--keep) gives larger files by GET /sandboxes/ID/archive"


async def collect(client: Client, sandbox_id: str, patterns: Sequence[str], folder: str) -> list[dict[str, str]]:
    """Returns `path` of each file, and `error` where it was not written, which is told. Raises ClientError."""
    # What a run brings back does not depend on how its command ends, or whether there is one.
    said = await client.run(sandbox_id, {"command": ["true"], "collect": list(patterns)})
    named = names_of(patterns)
    kept = [_kept(file, named, folder) for file in said["collected"]]
    if any(_TOO_LARGE in file.get("error", "") for file in kept):
        say(_OTHER_WAY)
    return kept


def names_of(patterns: Sequence[str]) -> frozenset[str]:
    """Those that are plain names, as the service writes them in its answer."""
    parts = (
        (part for part in text.split("/") if part not in {"", "."}) for text in patterns if not set(text) & set("*?[")
    )
    return frozenset(map("/".join, parts))


def _kept(file: Mapping[str, Any], named: frozenset[str], folder: str) -> dict[str, str]:
    path = str(file["path"])
    error = str(file["error"]) if "content_base64" not in file else _write(folder, file, replace=path in named)
    if not error:
        return {"path": path}
    say(f"{path}: {error}")
    return {"path": path, "error": error}


def _write(folder: str, file: Mapping[str, Any], *, replace: bool) -> str:
    """A file that was asked for by its name is replaced, and one that only a pattern matched is not: its name was
    chosen by the program. Returns what went wrong, or nothing."""
    name = base64.b64decode(file["path_base64"]) if "path_base64" in file else str(file["path"]).encode()
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return "cannot be written: its path leads out of the folder"  # no honest service says that
    target = Path(folder) / os.fsdecode(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, _NEW | (os.O_TRUNC if replace else os.O_EXCL), 0o666)
        with os.fdopen(descriptor, "wb") as kept:
            kept.write(base64.b64decode(file["content_base64"]))
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return ""
