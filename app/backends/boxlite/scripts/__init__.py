"""The shell scripts that run in boxes: POSIX sh, a file each. A test checks them with shellcheck.

A box has none of these files, so a script is sent as one text. Each line `. ./NAME.sh` is replaced by that file, and
comments are left out. Python sets the values of names in capital letters.
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
