"""The shell scripts that we run in boxes: POSIX sh, a file each, checked by shellcheck in a test.

A box has none of these files, so a script is sent as one text: each line `. ./NAME.sh` is replaced by that file, and
comments stay here. Names in capital letters are values that Python sets.
"""

from __future__ import annotations

import re
import shlex
from importlib.resources import files

_FILES = files(__name__)
_SOURCED = re.compile(r"^\. \./(\w+)\.sh\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *#.*\n", re.MULTILINE)


def script(name: str, **values: str | int) -> str:
    """The text of NAME.sh, for `sh -c`. It begins with `values`, a variable each."""
    settings = "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in values.items())
    return settings + _text(name)


def _text(name: str) -> str:
    text = _COMMENT.sub("", (_FILES / f"{name}.sh").read_text())
    return _SOURCED.sub(lambda line: _text(line[1]), text)
