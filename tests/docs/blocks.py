"""The blocks of a Markdown document as a reader takes them: programs to run, files to save, output to compare with.

    ```bash            run in the reader's shell, one for the whole document
    ```console         a transcript: after each `$ ` a command in that shell, which may fail, and what it printed
    ```python          run with the interpreter
    ```python tool.py  saved as tool.py in the reader's folder
    ```text, ```json   what the program before it prints; `…` stands for anything in a line, alone for any lines

A block in another language is only shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

FENCE = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = frozenset({"bash", "console", "python"})
OUTPUTS = frozenset({"text", "json"})


@dataclass(frozen=True)
class Block:
    line: int
    heading: str
    language: str
    file: str | None
    text: str
    output: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in PROGRAMS and self.file is None


def blocks_of(path: Path) -> list[Block]:
    """Programs and files in their order.

    AssertionError for output that no program is before."""
    document = path.read_text()
    found: list[Block] = []
    for match in FENCE.finditer(document):
        language, file, text = match.groups()
        before = document[: match.start()]
        headings = re.findall(r"^#+ (.+)$", before, re.MULTILINE)
        block = Block(before.count("\n") + 1, headings[-1] if headings else "", language, file, text)
        if language in OUTPUTS and file is None:
            assert found and found[-1].runs and found[-1].output is None, f"{path.name}:{block.line}: whose output?"
            found[-1] = replace(found[-1], output=text)
        elif language == "console":
            found += commands_of(block)
        elif block.runs or file is not None:
            found.append(block)
    return found


def commands_of(transcript: Block) -> list[Block]:
    """Each command with its output; what ends in a backslash, a pipe or an open quote goes on in the next line."""
    found: list[Block] = []
    for number, line in enumerate(transcript.text.splitlines(), transcript.line + 1):
        if line.startswith("$ "):
            found.append(replace(transcript, line=number, text=line[2:] + "\n", output=""))
            continue
        assert found, f"line {number}: a transcript begins with a command"
        last = found[-1]
        typed = re.sub(r"\s# .*", "", last.text)
        unfinished = typed.endswith(("\\\n", "|\n")) or typed.count("'") % 2
        if unfinished and not last.output:
            found[-1] = replace(last, text=f"{last.text}{line}\n")
        else:
            found[-1] = replace(last, output=f"{last.output}{line}\n")
    return found


def matches(shown: str, printed: str) -> bool:
    pattern = ""
    for line in shown.splitlines():
        within = "[^\n]*".join(re.escape(part) for part in line.split("…"))
        pattern += "(?:[^\n]*\n)*" if line.strip() == "…" else within + "\n"
    ended = printed if not printed or printed.endswith("\n") else printed + "\n"
    return re.fullmatch(pattern, ended) is not None
