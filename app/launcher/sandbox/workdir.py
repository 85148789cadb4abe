"""The directory in which a command starts. The worker enters it; the command inherits it."""

from __future__ import annotations

import os

from app.launcher.sandbox import tree

_WORKSPACE = b"/workspace/"


class WorkdirError(OSError):
    """The kernel refused to enter it, or to make it."""


def enter(path: bytes) -> None:
    """As chdir(2). Below /workspace what is missing is made, by a worker that is confined as the command is, and in
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
