from __future__ import annotations

import pytest

from app.api.http.problems import problem_of
from app.api.streams.frames import FRAMES, StdinEof, number_of, understand
from app.core.errors import BulkheadError, FieldError, InvalidRequest, Refused
from app.core.models import Terminal


@pytest.mark.parametrize(
    ("name", "number"), [("SIGKILL", 9), ("SIGRTMIN+0", 34), ("SIGRTMIN+30", 64), ("SIGNOPE", None), (None, None)]
)
def test_every_signal_that_can_end_a_program_has_its_number(name: str | None, number: int | None) -> None:
    assert number_of(name) == number


def test_a_frame_is_understood() -> None:
    assert isinstance(understand('{"type":"stdin_eof"}'), StdinEof)
    assert understand('{"type":"signal","signal":"SIGTERM"}') == 15
    assert understand('{"type":"resize","rows":1,"cols":65535}') == Terminal(1, 65_535)


def test_frames_are_schemas() -> None:
    assert {frame.__name__ for frame in FRAMES} == {
        "StreamStart",
        "StreamOutput",
        "StreamGap",
        "StreamExit",
        "StreamProblem",
        "StreamStdinEof",
        "StreamSignal",
        "StreamResize",
    }


def test_an_error_that_is_not_ours_keeps_its_text_to_itself() -> None:
    for error in (RuntimeError("secret"), BulkheadError("secret"), Refused("secret")):
        problem = problem_of(error)
        assert problem.type.slug == "internal_error"
        assert "secret" not in str(problem.body("req"))


def test_many_errors_are_shortened() -> None:
    problem = problem_of(InvalidRequest([FieldError(f"/{n}", "is wrong") for n in range(1000)]))
    assert len(problem.members["errors"]) == 32
    assert len(problem.detail) == 1000
