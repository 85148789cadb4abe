"""docs/api.md and docs/settings.md say of each limit what the table in app/core/limits.py says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.backends.boxlite.backend import CAPABILITIES as BOXLITE
from app.backends.process.backend import CAPABILITIES as PROCESS
from app.core.errors import plain_number
from app.core.limits import LIMITS, Limit

ROOT = Path(__file__).resolve().parents[2]


def rows(document: str, first: str) -> list[list[str]]:
    """Cells of the rows whose first cell matches."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    return [cells for cells in found if re.fullmatch(first, cells[0])]


def enforced_by(row: Limit) -> list[str]:
    if row.capability is None:
        return ["the core", "the core"]
    return ["yes" if row.capability in capabilities else "no" for capabilities in (PROCESS, BOXLITE)]


def test_the_api_page_has_a_row_for_each_limit() -> None:
    assert rows("api.md", "`limits[.][a-z_]+`") == [
        [
            f"`limits.{row.name}`",
            row.unit or "-",
            plain_number(row.floor),
            plain_number(row.default),
            "as many as the host has" if row.ceiling is None else plain_number(row.ceiling),
            *enforced_by(row),
            row.meaning,
        ]
        for row in LIMITS.values()
    ]


@pytest.mark.parametrize("row", LIMITS.values(), ids=list(LIMITS))
def test_the_settings_page_has_the_meaning_and_the_floor_of_each_limit(row: Limit) -> None:
    (cells,) = rows("settings.md", f"`BULKHEAD_LIMITS__{row.name.upper()}__DEFAULT`")
    assert cells[2] == f"{row.meaning[0].upper()}{row.meaning[1:]}. At least {plain_number(row.floor)}."
