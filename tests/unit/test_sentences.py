"""One table of sentences for wrong values, in settings, profiles and requests."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ErrorType

from app.sentences import TABLE, sentence_for


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Model(BaseModel):
    needed: int


def _own(value: Any) -> Any:
    raise ValueError("needs either a or b")


def _counted(value: Any) -> Any:
    raise PydanticCustomError("too_many", "has {count} labels", {"count": 65})


WRONG: list[tuple[Any, Any, str]] = [
    (int, "http", "must be a whole number"),
    (int, 1.5, "must be a whole number"),
    (int, [], "must be a whole number"),
    (int, "1" * 5000, "must be a whole number with fewer digits"),
    (float, "x", "must be a number"),
    (float, None, "must be a number"),
    (Annotated[float, Field(allow_inf_nan=False)], "inf", "must be a finite number"),
    (bool, "x", "must be true or false"),
    (bool, [], "must be true or false"),
    (str, 1, "must be a string"),
    (str, b"\xff", "must be valid UTF-8"),
    (Annotated[str, Field(min_length=2)], "a", "must have at least 2 characters"),
    (Annotated[str, Field(max_length=2)], "abc", "must have at most 2 characters"),
    (Annotated[str, Field(pattern="^[a-z]$")], "A", "must match the pattern ^[a-z]$"),
    (Path, 1, "must be a path"),
    (list[int], 1, "must be a list"),
    (tuple[int, ...], 1, "must be a list"),
    (dict[str, int], 1, "must be an object"),
    (Model, 1, "must be an object"),
    (Model, {}, "is required"),
    (Annotated[list[int], Field(min_length=1)], [], "must have at least 1 item"),
    (Annotated[list[int], Field(max_length=1)], [1, 2], "must have at most 1 item"),
    (Annotated[int, Field(gt=0)], 0, "must be more than 0"),
    (Annotated[int, Field(le=65_535)], 70_000, "must be at most 65535"),
    (Annotated[int, Field(le=2**53 - 1)], 2**53, "must be at most 9007199254740991"),
    (Annotated[float, Field(ge=0.01)], 0, "must be at least 0.01"),
    (Annotated[float, Field(ge=16.0)], 1, "must be at least 16"),
    (Annotated[float, Field(lt=1)], 1, "must be less than 1"),
    (Literal["none", "direct"], "x", "must be 'none' or 'direct'"),
    (Colour, "x", "must be 'red' or 'blue'"),
    (Annotated[int, BeforeValidator(_own)], 1, "needs either a or b"),
    (Annotated[int, BeforeValidator(_counted)], 1, "has 65 labels"),
]


def errors_of(kind: Any, value: Any) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return list(caught.value.errors(include_url=False, include_input=False))


@pytest.mark.parametrize(("kind", "value", "sentence"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_value_gets_our_sentence_with_its_numbers(kind: Any, value: Any, sentence: str) -> None:
    (found,) = errors_of(kind, value)
    assert sentence_for(found) == sentence


def test_every_row_is_an_error_that_pydantic_knows() -> None:
    assert set(TABLE) <= {*get_args(ErrorType), "path_type"}  # made by pydantic's Python part


def test_an_error_without_a_row_keeps_its_sentence() -> None:
    (found,) = errors_of(bytes, 1)
    assert sentence_for(found) == "input should be a valid bytes"
