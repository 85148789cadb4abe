"""Every decision has a page of the same form, and the index leads to it."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs/decisions"


def test_every_decision_has_a_page_with_a_context_a_decision_and_consequences() -> None:
    pages = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
    assert [path.name[:5] for path in pages] == [f"{number:04}-" for number in range(1, len(pages) + 1)]
    rows = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    for row, page in zip(rows, pages, strict=True):
        number, title, file = row
        text = page.read_text()
        assert file == page.name
        assert text.startswith(f"# {number}. {title}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], file
