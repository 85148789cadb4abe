"""Cookbook and tutorials do what they print, against a real service, and leave no sandbox behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.boxlite_kind import BoxliteRuntime
from tests.docs.blocks import blocks_of
from tests.docs.reader import read
from tests.require import require
from tests.runtimes.places import double_program, service_for
from tests.service import Service

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COOKBOOK = DOCS / "cookbook.md"
DOCUMENTS = [ROOT / "README.md", DOCS / "tour.md", COOKBOOK, *sorted((DOCS / "tutorials").glob("*.md"))]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    require_programs()
    with Service(tmp_path_factory.mktemp("data")) as running:
        yield running


def require_programs() -> None:
    require("root", os.geteuid() == 0, "real isolation is made by a service that is started as root")
    require("curl", shutil.which("curl") is not None, "the documents call the service with it")
    require("jq", shutil.which("jq") is not None, "the documents take answers apart with it")
    require("git", shutil.which("git") is not None, "a tutorial uploads a repository")
    require("gcc", shutil.which("gcc") is not None, "a tutorial compiles what it judges")


def left(service: Service) -> list[str]:
    status, answer = service.call("GET", "/sandboxes?state=running")
    assert status == 200
    return [item["id"] for item in answer["items"]]


@pytest.fixture
def clean(service: Service) -> Iterator[Service]:
    """What a document leaves behind when it fails is not held against the next one."""
    yield service
    for sandbox in left(service):
        service.call("DELETE", f"/sandboxes/{sandbox}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_document_does_what_it_prints_and_leaves_no_sandbox(document: Path, clean: Service, tmp_path: Path) -> None:
    read(document, blocks_of(document), tmp_path, clean.url)
    assert left(clean) == []


def test_cookbook_is_right_where_both_runtimes_are(tmp_path: Path) -> None:
    """The same requests and answers: the last recipes then meet boxes too, those of the double."""
    require_programs()
    BoxliteRuntime().check()
    both = {"BULKHEAD_PROCESS__ENABLED": "true", "BULKHEAD_RUNTIME": "process"}
    last = [block for block in blocks_of(COOKBOOK) if block.heading[:2] in {"24", "25", "26"}]
    with double_program() as url, service_for(tmp_path / "data", url, "test-key", **both) as service:
        first = [block for block in blocks_of(COOKBOOK) if not block.heading[0].isdigit()][:1]
        read(COOKBOOK, first + last, tmp_path, service.url)
        assert (tmp_path / f"desk/{len(last)}.out").read_text() == "process exited 42\nboxlite exited 42\n"
        assert left(service) == []


def test_cookbook_has_twenty_recipes_of_both_kinds() -> None:
    kinds = [block.language for block in blocks_of(COOKBOOK) if block.runs]
    assert len({block.heading for block in blocks_of(COOKBOOK) if block.runs}) >= 20
    assert kinds.count("bash") >= 8
    assert kinds.count("python") >= 8
