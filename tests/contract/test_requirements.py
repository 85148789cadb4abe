"""The images' pinned libraries are those that the package asks for, each within what it allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
WANTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
PINNED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) ", (ROOT / "deploy/docker/requirements.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("wanted", WANTED)
def test_every_dependency_is_pinned_within_its_range(wanted: str) -> None:
    requirement = Requirement(wanted)
    assert requirement.name in PINNED, f"{requirement.name} is missing in deploy/docker/requirements.txt"
    assert requirement.specifier.contains(PINNED[requirement.name])


def test_every_pin_has_a_hash() -> None:
    text = (ROOT / "deploy/docker/requirements.txt").read_text()
    assert PINNED
    for entry in re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry
