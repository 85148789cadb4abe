"""The reader of documents is one that can fail: blocks are told apart, and wrong output is noticed."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

import pytest

from tests.docs.blocks import blocks_of, matches
from tests.docs.reader import read

DOCUMENT = """# One
```bash
x=1
```
```python tool.py
print(2)
```
## Two
```bash
echo $x; python3 tool.py
```
prints
```text
1
2
```
```js
never()
```
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "d.md"
    path.write_text(text)
    return path


def test_blocks_are_programs_files_and_output(tmp_path: Path) -> None:
    blocks = blocks_of(written(tmp_path, DOCUMENT))
    assert [(block.line, block.heading, block.file, block.output) for block in blocks] == [
        (2, "One", None, None),
        (5, "One", "tool.py", None),
        (9, "Two", None, "1\n2\n"),
    ]
    read(tmp_path / "d.md", blocks, tmp_path, "")


TRANSCRIPT = """# One
```console
$ echo a |
    cat # it's
a
$ echo 'b
c'; false
b
c
$ x=1
$ echo \\
    $x two
1 two
```
"""


def test_transcript_is_commands_with_their_output(tmp_path: Path) -> None:
    blocks = blocks_of(written(tmp_path, TRANSCRIPT))
    assert [(block.line, block.output) for block in blocks] == [
        (3, "a\n"),
        (6, "b\nc\n"),
        (10, ""),
        (11, "1 two\n"),
    ]
    read(tmp_path / "d.md", blocks, tmp_path, "")


def test_output_of_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="whose output"):
        blocks_of(written(tmp_path, "# One\n```text\nx\n```\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# A\n```bash\nfalse\n```\n", r"d.md:2 \(A\) failed"),
        ("# A\n```bash\nfalse | true\n```\n", r"d.md:2 \(A\) failed"),
        ("# A\n```bash\necho $unset\n```\n", r"d.md:2 \(A\) failed.*unbound"),
        ("# A\n```python\nprint(1 / 0)\n```\n", r"d.md:2 \(A\) failed.*ZeroDivisionError"),
        ("# A\n```bash\necho a\n```\n```text\nb\n```\n", r"d.md:2 \(A\) printed\na\n\nand not\nb"),
        ("# A\n```console\n$ echo a\n```\n", r"d.md:3 \(A\) printed\na\n\nand not\n$"),
        ("# A\n```console\n$ exit 0\n```\n", r"d.md:3 \(A\) failed"),
        ("# A\n```bash\nexit 0\n```\n", r"d.md:2 \(A\) failed"),
    ],
)
def test_block_that_fails_or_prints_something_else_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        read(path, blocks_of(path), tmp_path, "")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a", True),
        ("a\n", "a\nb\n", False),
        ("a…c\n", "abbc\n", True),
        ("a…c\n", "a\nc\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\nd\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_ellipsis_stands_for_anything_in_a_line_or_for_lines(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_block_that_hangs_is_named_and_ended_with_all_that_it_started(tmp_path: Path) -> None:
    path = written(tmp_path, "# A\n```bash\nsleep 1000 & echo $!; wait\n```\n")
    with pytest.raises(AssertionError, match=r"d.md:2 \(A\) failed, or was not over in time"):
        read(path, blocks_of(path), tmp_path, "", seconds=0.5)
    started = int((tmp_path / "desk/0.out").read_text())
    with contextlib.suppress(ProcessLookupError):  # it is gone
        ended = os.pidfd_open(started)
        assert select.select([ended], [], [], 10)[0], "it runs on"
        os.close(ended)
