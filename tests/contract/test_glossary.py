"""One word, one meaning: no name says nothing, and the glossary explains the words that the code is made of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
EMPTY = frozenset({"manager", "helper", "utils", "util", "handler", "base", "common"})


HOUSE = (
    "backend capability channel chunk execution exit gateway launcher limits plan policy probe problem profile receipt"
    " runtime sandbox slot spill step stream supervisor template worker confine create destroy follow kill narrow"
    " refuse start"
)


def words(name: str) -> list[str]:
    """`_HTTPHelperTwo` -> http, helper, two; `take_slot2` -> take, slot2."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().split("_")
    return [part for part in parts if part]


def empty_words(name: str) -> set[str]:
    """Plurals count: `helpers` is no better than `helper`."""
    return {word for word in words(name) if word in EMPTY or word.removesuffix("s") in EMPTY}


def names(path: Path) -> Iterator[tuple[str, int]]:
    yield path.stem, 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


@pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=lambda path: str(path.relative_to(APP)))
def test_no_name_says_nothing(path: Path) -> None:
    wrong = [f"{path.relative_to(ROOT)}:{line}: {name}" for name, line in names(path) if empty_words(name)]
    wrong += [f"the folder {part}" for part in path.relative_to(APP).parts[:-1] if empty_words(part)]
    assert not wrong, "docs/glossary.md says why:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("_HTTPHelperTwo", {"helper"}),
        ("SandboxManager", {"manager"}),
        ("common", {"common"}),
        ("path_helpers", {"helpers"}),
        ("utils", {"utils"}),
        ("BaseBackend", {"base"}),
        ("database", set()),
        ("decode_base64", set()),
        ("take_slot", set()),
    ],
)
def test_empty_words_are_found_in_every_spelling(name: str, found: set[str]) -> None:
    assert empty_words(name) == found


def explained() -> dict[str, str]:
    """Every word of the tables, with its meaning."""
    found: dict[str, str] = {}
    for cell, meaning in re.findall(
        r"^\| ([a-z, ]+) \| (.+) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    ):
        for word in cell.split(", "):
            assert word not in found, f"{word} has two meanings"
            found[word] = meaning
    return found


@pytest.mark.parametrize("word", HOUSE.split())
def test_word_of_the_house_is_explained(word: str) -> None:
    assert explained()[word]


def test_words_are_in_order() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    for table in text.split("\n## ")[1:3]:
        listed = [row.split(", ")[0] for row in re.findall(r"^\| ([a-z, ]+) \| ", table, re.MULTILINE)]
        assert listed == sorted(listed)
