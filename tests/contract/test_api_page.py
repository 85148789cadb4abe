"""docs/api.md opens with what a reader looks for first."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
METHODS = frozenset({"get", "head", "post", "put", "patch", "delete"})


def test_api_opens_with_every_endpoint_and_a_first_example() -> None:
    text = (ROOT / "docs/api.md").read_text()
    opening, _, rest = text.partition("\n## ")
    described = yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"]
    endpoints = [f"{method.upper()} {path}" for path, item in described.items() for method in item if method in METHODS]
    assert sorted(re.findall(r"^\| `([A-Z]+ [^`]+)` \|", opening, re.MULTILINE)) == sorted(endpoints)
    assert rest.startswith("A first example\n")
