"""The `bulkhead` command. Exit status 125 means that bulkhead itself failed; what else it means: `docs/cli.md`.

``commands``  what is typed: the client's commands       ``session``     one command in a sandbox, from start to exit
``operate``   what is typed: the operator's commands     ``interrupts``  Ctrl-C and the signals that end us
``options``   the options that several of them share     ``pipes``       our own stdin, stdout and stderr
``endings``   how an exit becomes an exit status         ``show``        tables, JSON and one-line errors

A second after `bulkhead --help` nothing must have been imported that it does not need: modules import late.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED = 125  # as env(1), nice(1) and docker run
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Never raises: a failure is one line on stderr and the status 125."""
    _keep_standard_descriptors()
    # The program's own memory is small; a collection in the middle of 500 imports costs 20 ms and finds nothing.
    import gc

    gc.disable()
    try:
        from app.cli.commands import app

        return int(app(list(sys.argv[1:] if arguments is None else arguments), "bulkhead", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    if hasattr(error, "show") and hasattr(error, "format_message"):  # the parser's own, which typer does not export
        error.show()
        context = getattr(error, "ctx", None)
        return FAILED if getattr(context, "info_name", None) in {"run", "exec"} else USAGE
    from app.cli.show import say

    if os.environ.get("BULKHEAD_CLIENT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    from app.client import ClientError

    if isinstance(error, ClientError):
        say(str(error))
    else:
        say(f"{type(error).__name__}: {error} (BULKHEAD_CLIENT_DEBUG=1 shows where)")
    return FAILED


def _keep_standard_descriptors() -> None:
    """A closed 0, 1 or 2 would be given to the next socket, and the program's output written into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # The wrong direction on purpose: using it still fails with EBADF.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)
