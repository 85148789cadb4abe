"""The changelog can be read after branches were merged by union, which keeps the lines of both sides."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {"Added", "Changed", "Removed", "Fixed", "Security", "Development"}


def test_changelog_has_each_entry_once_in_a_known_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text().partition("\n## Unreleased\n")[2]
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(SECTIONS & set(sections)), "a section is unknown, or there twice"
    entries = re.findall(r"^- .+(?:\n  .+)*", text, re.MULTILINE)
    assert [entry for entry in set(entries) if entries.count(entry) > 1] == []
