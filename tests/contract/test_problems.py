"""Every error has one problem, every problem has a page and stands in the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from app.api.http.problem_types import PROBLEMS
from app.api.http.problems import TRANSLATION, problem_of
from app.core import errors as e
from tests.unit.api.service import Service

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {e.BulkheadError, e.Refused}  # never raised themselves

SAMPLES: list[e.BulkheadError] = [
    e.InvalidRequest.at("/env", "is wrong"),
    e.UnknownRuntime("x", ["process"]),
    e.RuntimeNotEnabled("x", ["process"]),
    e.UnknownProfile("x", ["default"]),
    e.UnknownImage("x", ["python"]),
    e.PolicyTooBroad("f", "c", "d"),
    e.LimitTooHigh("f", 2, 1),
    e.PolicyNotSupported("f", "process", "d"),
    e.CapabilityMissing(["pty"], "process"),
    e.Unauthenticated("d"),
    e.Forbidden("d"),
    e.CapacityExceeded("sandboxes", 1),
    e.NotFound("sandbox", "x"),
    e.Conflict("d"),
    e.IdempotencyMismatch(),
    e.WrongState("ended", "d"),
    e.UnsupportedByRuntime("pause", "boxlite"),
    e.WrongType("directory", "d"),
    e.AccessDenied("d"),
    e.DiskFull(1024),
    e.InvalidArchive("", "d"),
    e.PreconditionFailed("d"),
    e.RangeNotSatisfiable("d"),
    e.PayloadTooLarge(1),
    e.BackendFailure("d"),
    e.LaunchFailed("mount_proc", "EPERM", "d"),
    e.IsolationUnavailable("landlock", "d"),
    e.BackendRefused("boxlite", "d", e.Upstream(400, "invalid")),
    e.BackendUnavailable("process", "d"),
    e.BackendTimeout("process", "d"),
]


def classes(parent: type[e.BulkheadError]) -> Iterator[type[e.BulkheadError]]:
    for child in parent.__subclasses__():
        if child.__module__ == e.__name__:
            yield child
            yield from classes(child)


def test_every_error_of_the_core_is_translated() -> None:
    assert set(classes(e.BulkheadError)) - set(TRANSLATION) == ROOTS - {e.BulkheadError}
    assert {type(sample) for sample in SAMPLES} == set(classes(e.BulkheadError)) - ROOTS


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_becomes_a_problem_with_the_members_that_its_type_promises(error: e.BulkheadError) -> None:
    problem = problem_of(error)
    body = problem.body("req_1")
    assert list(body)[:5] == ["type", "title", "status", "detail", "instance"]
    assert body["type"] == f"/problems/{problem.type.slug}"
    assert body["detail"] == str(error)
    assert body["instance"] == "req_1"
    if not isinstance(error, e.BackendFailure) or type(error) is not e.BackendFailure:
        assert set(list(body)[5:]) == set(problem.type.extras)
    assert ("retry-after" in problem.headers) == (problem.type.status in {429, 503})


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
    assert problem.extras == {"runtime": "boxlite", "upstream_status": 409, "upstream_code": "taken"}
    assert problem.body("req_1")["status"] in {502, 503, 504}


def test_a_runtime_without_an_answer_of_its_server_says_null() -> None:
    for error in (e.BackendUnavailable("process", "d"), e.BackendTimeout("process", "d")):
        assert problem_of(error).extras == {"runtime": "process", "upstream_status": None, "upstream_code": None}


def test_an_image_that_was_not_named_is_told_from_an_unknown_one() -> None:
    assert str(e.UnknownImage(None, [])) == "no image was named, and there is no default; known: none"
    assert str(e.UnknownImage("x", ["b", "a"])) == "there is no image 'x'; known: a, b"
    assert str(e.UnknownImage("x", ["a"], "why")) == "there is no image 'x'; why"


def test_an_error_of_the_whole_body_begins_with_its_sentence() -> None:
    error = e.InvalidRequest([e.FieldError("", "invalid JSON"), e.FieldError("/env", "is wrong")])
    assert problem_of(error).detail == "invalid JSON; /env: is wrong"


def test_a_ceiling_of_whole_numbers_is_one() -> None:
    for field, kind in (("/limits/memory_mib", int), ("/limits/cpus", float)):
        assert type(problem_of(e.LimitTooHigh(field, 8192.0, 4096.0)).extras["ceiling"]) is kind


def test_every_problem_has_a_status_a_title_and_a_meaning() -> None:
    for slug, kind in PROBLEMS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", slug)
        assert HTTPStatus(kind.status) >= HTTPStatus.BAD_REQUEST
        assert kind.title[0].isupper()
        assert kind.meaning.endswith(".")


def test_every_problem_can_happen() -> None:
    errors = [HTTPException(404), HTTPException(405), RuntimeError()]
    happens = {slug for slug, _ in TRANSLATION.values()} | {problem_of(error).type.slug for error in errors}
    assert happens == set(PROBLEMS)


async def test_every_problem_is_explained_at_its_own_address() -> None:
    async with Service().client() as client:
        for slug in PROBLEMS:
            answer = await client.get(f"/problems/{slug}")
            assert answer.status_code == 200
            assert slug in answer.text


def test_every_problem_stands_in_the_documents_with_its_status_members_and_title() -> None:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \| ([^|]*) \| ([^|]+) \|$", text, re.MULTILINE)
    assert rows == [
        (slug, str(kind.status), ", ".join(f"`{name}`" for name in kind.extras) or "-", kind.title)
        for slug, kind in PROBLEMS.items()
    ]
