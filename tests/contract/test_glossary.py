"""One word, one meaning: no name says nothing, and the glossary explains the words that the code is made of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
# Inventions that had a standard term: the glossary has it.
RETIRED = frozenset(
    [
        "birth",
        "custody",
        "dialogue",
        "door",
        "edge",
        "fleeting",
        "grip",
        "hangup",
        "hole",
        "nursery",
        "patience",
        "pulse",
        "tear",
        "torn",
        "victims",
        "wish",
    ]
)
EMPTY = frozenset({"manager", "helper", "utils", "util", "handler", "base", "common"})


HOUSE = (
    "backend capability channel chunk execution exit gateway launcher limits plan policy probe problem profile receipt"
    " runtime sandbox slot spill step stream supervisor template worker zygote confine create destroy follow kill"
    " narrow refuse start"
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


@pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=lambda path: str(path.relative_to(APP)))
def test_no_name_has_a_retired_word(path: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}" for name, line in names(path) if RETIRED.intersection(words(name))
    ]
    assert not wrong, "docs/glossary.md has the standard terms:\n" + "\n".join(wrong)


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


# What the API says of a thing has the thing's own name: it is the name in the document and in generated clients.
TWINS = frozenset(
    [
        "CollectedFile",
        "Execution",
        "Exit",
        "Filesystem",
        "FilesystemRequest",
        "HttpRule",
        "Limits",
        "Network",
        "NetworkEvent",
        "NetworkRule",
        "Output",
        "Policy",
        "RefusedHost",
        "ResourceUsage",
        "Sandbox",
        "Secret",
        "Syscalls",
        "Terminal",
    ]
)


def public_classes() -> dict[str, list[Path]]:
    """Every class whose name has no leading underscore, with the files that define one of that name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(APP.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path.relative_to(APP))
    return found


def test_no_two_public_classes_have_one_name() -> None:
    doubled = {name: paths for name, paths in public_classes().items() if len(paths) > 1}
    assert {name: paths for name, paths in doubled.items() if name not in TWINS} == {}
    for name, paths in doubled.items():
        schemas = [path for path in paths if path.parts[:2] == ("api", "schemas")]
        assert len(schemas) == 1, f"one of the classes {name} must be the API's schema: {paths}"
        assert len(paths) == 2, f"{name} has more than one twin: {paths}"


def test_list_of_twins_names_nothing_else() -> None:
    assert {name for name, paths in public_classes().items() if len(paths) > 1} == TWINS


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
