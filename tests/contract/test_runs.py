"""`scripts/test` runs every test, in several runs of pytest, and its last line counts them truly."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.contract.conftest import HERE, IN_REAL_BOXES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "scripts/test").read_text()

CASES = """
import pytest

@pytest.fixture
def broken():
    yield
    raise OSError

def test_passes(): pass
def test_is_skipped(): pytest.skip("why")
@pytest.mark.skipif({fine}, reason="")
def test_fails(): assert False
@pytest.mark.skipif({fine}, reason="")
def test_cannot_be_cleaned_up(broken): pass
"""


def summary(*reports: Path) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "scripts/summary"), *map(str, reports)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def report(folder: Path, cases: str) -> Path:
    folder.mkdir()
    (folder / "test_it.py").write_text(cases)
    written = folder / "it.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={written}", f"--rootdir={folder}"]
    command = [sys.executable, "-m", "pytest", *options, "test_it.py"]
    quick = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # to load them takes most of the time
    subprocess.run(command, cwd=folder, env=quick, check=False, capture_output=True)
    return written


def test_last_line_counts_all_runs_and_a_failure_of_one_is_the_status(tmp_path: Path) -> None:
    good, bad = report(tmp_path / "good", CASES.format(fine=True)), report(tmp_path / "bad", CASES.format(fine=False))
    assert summary(good) == (0, ["1 passed, 0 failed, 3 skipped"])
    status, said = summary(good, bad)
    assert (status, said[-1]) == (1, "2 passed, 2 failed, 4 skipped")
    assert [line.split(" ")[1] for line in said[:-1]] == ["test_it::test_fails", "test_it::test_cannot_be_cleaned_up"]


def test_run_without_a_test_is_no_success(tmp_path: Path) -> None:
    assert summary(report(tmp_path / "none", "")) == (1, ["0 passed, 0 failed, 0 skipped"])


def test_every_folder_of_tests_is_in_one_of_the_runs() -> None:
    (together,) = re.findall(r"^\s+tests/\{(.*)\} ", SCRIPT, re.MULTILINE)
    named = [*together.split(","), *re.findall(r"^\s+tests \w+ tests/(\w+)\b", SCRIPT, re.MULTILINE)]
    assert sorted(named) == sorted(
        {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/test_*.py")}
    )


def test_what_runs_in_real_boxes_exists() -> None:
    """A test that was given another name would silently run nowhere but over the double."""
    found = {
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AsyncFunctionDef)
    }
    assert found >= IN_REAL_BOXES


# --- scripts/test, where each run of pytest is a line that says what it was asked

STAND_IN = """#!/usr/bin/env bash
echo "$*" >>asked
if [ "$1" = scripts/summary ]; then exec {python} "$@"; fi
if [[ "$*" =~ --junitxml=([^ ]+) ]]; then
    bad=""
    if [[ "$*" == *" tests/kernel"* ]] && [ -e broken ]; then bad="<failure/>"; fi
    echo "<testsuite><testcase classname='some' name='test'>$bad</testcase></testsuite>" >"${{BASH_REMATCH[1]}}"
    [ -z "$bad" ]
elif [ -e untidy ] && [ "$2" = ruff ]; then
    exit 1
fi
"""


def all_runs(root: Path) -> tuple[int, list[str], list[str]]:
    """Its status, what it printed, and what each run of pytest was asked."""
    for name in ("scripts/test", "scripts/summary"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name, text in (
        ("scripts/install", "#!/bin/sh\n"),
        (".venv/bin/python", STAND_IN.format(python=sys.executable)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name != "BULKHEAD_TEST_REQUIRE"}
    done = subprocess.run([root / "scripts/test"], env=clean, stdout=subprocess.PIPE, text=True, check=False)
    asked = [line for line in (root / "asked").read_text().splitlines() if line.startswith("-m pytest")]
    return done.returncode, done.stdout.splitlines(), asked


def test_last_line_of_all_is_the_sum(tmp_path: Path) -> None:
    status, said, asked = all_runs(tmp_path)
    assert (status, said[-1], len(asked)) == (0, "6 passed, 0 failed, 0 skipped", 6)


def test_failed_run_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    status, said, asked = all_runs(tmp_path)
    assert (status, said[-1], len(asked)) == (1, "4 passed, 2 failed, 0 skipped", 6)


def test_failed_lint_is_the_status_and_the_tests_still_run(tmp_path: Path) -> None:
    (tmp_path / "untidy").touch()
    status, said, asked = all_runs(tmp_path)
    assert (status, said[-1], len(asked)) == (1, "6 passed, 0 failed, 0 skipped", 6)
    assert "failed: ruff check ." in said
