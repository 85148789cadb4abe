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


async def collect(client: Client, sandbox_id: str, patterns: Sequence[str], folder: str) -> bool:
    """False when something is missing, which is told. Raises ClientError."""
    # What a run brings back does not depend on how its command ends, or whether there is one.
    said = await client.run(sandbox_id, {"command": ["true"], "collect": list(patterns)})
    kept = [_kept(file, patterns, folder) for file in said["collected"]]
    return all(kept)


def _kept(file: Mapping[str, Any], patterns: Sequence[str], folder: str) -> bool:
    path = str(file["path"])
    name = base64.b64decode(file["path_base64"]) if "path_base64" in file else path.encode()
    if "content_base64" not in file:
        say(f"{path} was not collected: it {file['error']}" if path in patterns else f"{path}: {file['error']}")
        return False
    try:
        _write(folder, name, base64.b64decode(file["content_base64"]), replace=path in patterns)
    except OSError as error:
        say(f"{path} cannot be written: {error.strerror}")
        return False
    return True


def _write(folder: str, name: bytes, content: bytes, *, replace: bool) -> None:
    """A file that was asked for by its name is replaced, and one that only a pattern matched is not: its name was
    chosen by the program. Raises OSError."""
    if name.startswith(b"/") or b".." in name.split(b"/"):
        raise PermissionError(1, "its path leads out of the folder")  # no honest service says that
    target = Path(folder) / os.fsdecode(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, _NEW | (os.O_TRUNC if replace else os.O_EXCL), 0o666)
    with os.fdopen(descriptor, "wb") as kept:
        kept.write(content)
