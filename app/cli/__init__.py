"""The `bulkhead` command. Exit status 125 means that bulkhead itself failed; what else it means: `docs/cli.md`.

``parser``      what can be typed                      ``sandbox``     one of our own: boots, runs, goes
``commands``    the client's commands                  ``session``     one command in a sandbox, start to exit
``operate``     the operator's commands                ``interrupts``  Ctrl-C and the signals that end us
``bodies``      what was typed, as request bodies      ``pipes``       our own stdin, stdout and stderr
``connect``     the environment, as a client           ``terminal``    our own terminal, while a program has one
``replay``      stored output                          ``endings``     how an exit becomes an exit status
``private_modes``  what a program left on in our terminal
``show``        tables, JSON and one-line errors       ``gaps``        what is said about dropped bytes
``network``     what a sandbox did with its network     ``options``     which option a refusal is about
``host``, ``egress``, ``boxlite``, ``kvm``  what `probe` tries

Starting must be quick: a module imports late what only some commands need.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

FAILED = 125  # as env(1), nice(1) and docker run
USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class UsageError(Exception):
    """What was typed cannot be done, and the parser could not see this."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Never raises. A failure is one line on stderr and the status 125."""
    _keep_standard_descriptors()
    gc.disable()  # a collection in the middle of 500 imports costs 20 ms and finds nothing; the commands enable it
    typed: Namespace | None = None
    try:
        from app.cli.parser import parse

        typed = parse(sys.argv[1:] if arguments is None else arguments)
        return int(typed.do(typed))
    except SystemExit as done:
        return int(done.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:  # a traceback's status 1 would be taken for the program's own
        return _explain(error, typed)
    finally:
        gc.freeze()  # the interpreter's end collects once more: 20 to 40 ms over what will be gone anyway


def _explain(error: Exception, typed: Namespace | None) -> int:
    from app.cli.show import say

    if os.environ.get("BULKHEAD_CLIENT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UsageError) or _is_clients_own(error):
        say(_sentence(error, typed))
    else:
        say(f"{type(error).__name__}: {error} (BULKHEAD_CLIENT_DEBUG=1 shows where)")
    return FAILED


def _sentence(error: Exception, typed: Namespace | None) -> str:
    if isinstance(error, UsageError) or typed is None:
        return str(error)
    from app.cli.options import option_of
    from app.client import ServiceProblem

    if isinstance(error, ServiceProblem):
        return error.sentence(lambda pointer: option_of(pointer, typed))
    return str(error)


def _is_clients_own(error: Exception) -> bool:
    from app.cli.connect import ClientError

    return isinstance(error, ClientError)


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
