"""Every error has one problem, every problem has a page and stands in the documents."""

from __future__ import annotations

import html
import json
import re
import string
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from app.api.application import MODULES
from app.api.http.problem_types import PROBLEMS, TABLE, FieldProblem, Member, ProblemType
from app.api.http.problems import problem_of, row_of
from app.backends.boxlite import client, turns
from app.core import errors as e
from tests.unit.api.service import Service

ROOT = Path(__file__).resolve().parents[2]
NEVER_RAISED = {e.BulkheadError, e.Refused}
IMPORTED = (MODULES, client, turns)  # what has errors of its own

KINDS: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: type(value) is str,
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float),
    int | None: lambda value: value is None or type(value) is int,
    str | None: lambda value: value is None or type(value) is str,
    list[str]: lambda value: all(type(item) is str for item in value),
    list[FieldProblem]: lambda value: all(FieldProblem.model_validate(item) for item in value),
}


def classes(parent: type[e.BulkheadError]) -> Iterator[type[e.BulkheadError]]:
    for child in parent.__subclasses__():
        yield child
        yield from classes(child)


def rows() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", TABLE, ids=lambda row: row.slug)


def test_every_error_has_one_row_or_inherits_one() -> None:
    errors = [row.error for row in TABLE]
    assert len(set(errors)) == len(errors)
    assert len(PROBLEMS) == len(TABLE)
    for kind in {*classes(e.BulkheadError)} - NEVER_RAISED:
        assert row_of(kind) is not None, kind
    assert all(row_of(kind) is None for kind in NEVER_RAISED)


def test_errors_outside_the_core_are_among_those() -> None:
    found = {kind.__module__ for kind in classes(e.BulkheadError)}
    assert {"app.api.http.errors", "app.backends.boxlite.client", "app.backends.boxlite.turns"} <= found


@rows()
def test_an_error_becomes_a_problem_with_exactly_the_members_of_its_row(row: ProblemType) -> None:
    problem = problem_of(row.example)
    body = problem.body("req_1")
    assert problem.type is row
    assert list(body) == [*("type", "title", "status", "detail", "instance"), *(member.name for member in row.members)]
    assert body["type"] == f"/problems/{row.slug}"
    assert body["instance"] == "req_1"
    assert body["detail"].endswith(str(row.example))
    for member in row.members:
        assert KINDS[member.type](body[member.name]), member.name
    assert ("retry-after" in problem.headers) == (row.status in {429, 503})


def test_one_name_is_one_member_for_clients() -> None:
    """But the ceiling, which is a number for a limit and a text for a policy."""
    kinds: dict[str, set[Any]] = {}
    for row in TABLE:
        for member in row.members:
            kinds.setdefault(member.name, set()).add(member.type)
    assert {name for name, types in kinds.items() if len(types) > 1} == {"ceiling"}


@pytest.mark.parametrize(
    "error",
    [
        e.BackendRefused("boxlite", "d", e.Upstream(409, "taken")),
        e.BackendUnavailable("boxlite", "d", 7, e.Upstream(409, "taken")),
        e.BackendTimeout("boxlite", "d", e.Upstream(409, "taken")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_runtimes_server_answered_travels_to_the_client_but_not_as_our_status(error: e.BulkheadError) -> None:
    problem = problem_of(error)
    assert problem.members == {"runtime": "boxlite", "upstream_status": 409, "upstream_code": "taken"}
    assert problem.body("req_1")["status"] in {502, 503, 504}


def test_a_runtime_without_an_answer_of_its_server_says_null() -> None:
    for error in (e.BackendUnavailable("process", "d"), e.BackendTimeout("process", "d")):
        assert problem_of(error).members == {"runtime": "process", "upstream_status": None, "upstream_code": None}


def test_an_image_that_was_not_named_is_told_from_an_unknown_one() -> None:
    assert str(e.UnknownImage(None, [])) == "no image was named, and there is no default; known: none"
    assert str(e.UnknownImage("x", ["b", "a"])) == "there is no image 'x'; known: a, b"
    assert str(e.UnknownImage("x", ["a"], "why")) == "there is no image 'x'; why"


def test_an_error_of_the_whole_body_begins_with_its_sentence() -> None:
    error = e.InvalidRequest([e.FieldError("", "invalid JSON"), e.FieldError("/env", "is wrong")])
    assert problem_of(error).detail == "invalid JSON; /env: is wrong"


def test_a_ceiling_of_whole_numbers_is_one() -> None:
    for field, kind in (("/limits/memory_mib", int), ("/limits/cpus", float)):
        assert type(problem_of(e.LimitTooHigh(field, 8192.0, 4096.0)).members["ceiling"]) is kind


@rows()
def test_every_problem_says_in_sentences_what_happened_and_what_helps(row: ProblemType) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row.slug)
    assert HTTPStatus(row.status) >= HTTPStatus.BAD_REQUEST
    assert row.title[0].isupper() and not row.title.endswith(".")
    assert row.meaning[0] in string.ascii_uppercase + "`"
    assert row.meaning.endswith(".")
    for member in row.members:
        assert f"`{member.name}`" in row.meaning or member.meaning


def test_what_the_router_and_faults_end_in_has_a_row_too() -> None:
    for error, slug in (
        (HTTPException(404), "not_found"),
        (HTTPException(405, headers={"Allow": "GET"}), "method_not_allowed"),
        (HTTPException(500, "secret"), "internal_error"),
        (RuntimeError("secret"), "internal_error"),
    ):
        problem = problem_of(error)
        assert problem.type.slug == slug
        assert "secret" not in problem.detail
    assert problem_of(HTTPException(405, headers={"Allow": "GET"})).headers == {"allow": "GET"}


@rows()
async def test_the_page_of_a_problem_shows_all_of_its_row(row: ProblemType) -> None:
    async with Service().client() as client:
        answer = await client.get(f"/problems/{row.slug}")
    assert answer.status_code == 200
    text = html.unescape(re.sub(r"</?code>", "", answer.text))
    assert f"{row.slug}, status {row.status}" in text
    assert f"<h1>{row.title}</h1>" in text
    assert row.meaning.replace("`", "") in text
    body = problem_of(row.example).body("req_1")
    for member in row.members:
        cells = (member.name, member.json_type, member.meaning, json.dumps(body[member.name], ensure_ascii=False))
        assert "<td>".join(cell.replace("`", "") for cell in cells) in text.replace("`", ""), member.name


def test_every_problem_stands_in_the_documents_with_its_status_members_and_title() -> None:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \| ([^|]*) \| ([^|]+) \|$", text, re.MULTILINE)
    assert rows == [
        (row.slug, str(row.status), ", ".join(f"`{member.name}`" for member in row.members) or "-", row.title)
        for row in TABLE
    ]


def test_every_member_stands_in_the_documents_with_its_type_and_an_example() -> None:
    text = (ROOT / "docs/api.md").read_text()
    section = text.partition("\n| Member | Type |")[2].partition("\n## ")[0]
    written = re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \| `([^|]+)` \| ([^|]+) \|$", section, re.MULTILINE)
    found: dict[str, list[tuple[Member, Any]]] = {}
    for row in TABLE:
        members = problem_of(row.example).members
        for member in row.members:
            found.setdefault(member.name, []).append((member, members[member.name]))
    assert written == [
        (
            name,
            " or ".join(dict.fromkeys(member.json_type for member, _ in uses)),
            json.dumps(uses[0][1]),
            "; ".join(dict.fromkeys(member.meaning for member, _ in uses)),
        )
        for name, uses in found.items()
    ]
