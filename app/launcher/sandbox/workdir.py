"""The directory in which a command starts. The worker enters it; the command inherits it."""

from __future__ import annotations

import os

from app.launcher.sandbox import tree

_WORKSPACE = b"/workspace/"


class WorkdirError(OSError):
    """The kernel refused to enter or to make the directory."""


def enter(path: bytes) -> None:
    """Enters a directory, like chdir(2). Below /workspace missing directories are made, by the confined worker and in
    the command's control groups. Raises WorkdirError."""
    try:
        try:
            os.chdir(path)
        except FileNotFoundError:
            if not path.startswith(_WORKSPACE):
                raise
            tree.make_directories(path)
            os.chdir(path)
    except OSError as error:
        raise WorkdirError(error.errno, error.strerror) from error
