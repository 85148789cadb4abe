"""The base of all schemas: no unknown fields, no converted types, and a wrong body of 4 MiB costs milliseconds.

pydantic collects every error. Two million errors take eight seconds, in which nobody else is served. So lists stop at
their first error, and only the first few wrong entries of an object are looked at.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.core.models import ID_PATTERN

WRONG_SHOWN = 32
LABELS = 64
PATHS = 256
# JSON numbers beyond this are not the same number in every client, RFC 8259 section 6.
EXACT_INTEGER = 2**53 - 1


class Strict(BaseModel):
    """A request body or a frame. Fields are lists and never sets or tuples: because of the validator below pydantic
    sees Python objects and not JSON, and strict mode then accepts only a set for a set."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _look_at_few_unknown_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            unknown = [name for name in value if name not in cls.model_fields]
            for name in unknown[WRONG_SHOWN:]:
                del value[name]
        return value


def _look_at_few_wrong_values(value: Any) -> Any:
    if isinstance(value, dict):
        wrong = dict(islice(((k, v) for k, v in value.items() if not isinstance(v, str)), WRONG_SHOWN))
        return wrong or value
    return value


def _few_labels(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > LABELS:
        raise PydanticCustomError("too_many", "has {count} labels; at most {most} are allowed", _counts(len(value)))
    return value


def _counts(count: int) -> dict[str, Any]:
    return {"count": count, "most": LABELS}


def _whole(value: Any) -> Any:
    """1.0 is the integer 1 in JSON, and some languages write no other."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def documented(**keywords: Any) -> Any:
    """Adds keywords to the schema, for readers and generators. The core checks them and has a sentence of its own."""
    return Field(json_schema_extra=keywords)


def spelled(pattern: str, sentence: str) -> AfterValidator:
    """Checks a whole text against a pattern. For a text of another form the client gets the sentence and not the
    pattern."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if form.fullmatch(value) is None:
            raise PydanticCustomError("spelled", "{sentence}", {"sentence": sentence})
        return value

    return AfterValidator(check)


def needs_text(example: str) -> BeforeValidator:
    """Refuses what is not a string with a sentence that shows one."""
    sentence = f'must be a string such as "{example}"'

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise PydanticCustomError("needs_text", "{sentence}", {"sentence": sentence})
        return value

    return BeforeValidator(check)


def _needs_object(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("needs_object", "{sentence}", {"sentence": 'must be an object such as {"A": "1"}'})
    return value


_MODE = "0?[0-7]{3}"
Mode = Annotated[
    str,
    needs_text("0755"),
    spelled(_MODE, "must be three octal digits, such as 644 or 0644"),
    documented(pattern=f"^{_MODE}$"),
]
NO_NUL = r"^[^\x00]*$"

Id = Annotated[
    str,
    spelled(ID_PATTERN, "must be 1 to 63 of a-z, 0-9, _ and -, the first one a letter or a digit"),
    documented(pattern=f"^{ID_PATTERN}$"),
]
Environment = Annotated[
    dict[str, Annotated[str, documented(pattern=NO_NUL)]],
    BeforeValidator(_look_at_few_wrong_values),
    BeforeValidator(_needs_object),
    documented(propertyNames={"pattern": r"^[^=\x00]+$"}),
]


def _not_one_text(value: Any) -> Any:
    if isinstance(value, str):
        raise PydanticCustomError("one_text", "{sentence}", {"sentence": ONE_TEXT})
    return value


ONE_TEXT = (
    'must be a list with one item for each argument, such as ["ls", "-la"]; '
    'a line for a shell is ["sh", "-c", "ls -la"]'
)
Arguments = Annotated[
    list[Annotated[str, documented(pattern=NO_NUL)]],
    Field(fail_fast=True),
    BeforeValidator(_not_one_text),
    documented(minItems=1),
]
Host = Annotated[str, StringConstraints(min_length=1, max_length=255)]  # a DNS name has 253 characters at most
Directory = Annotated[str, documented(pattern=r"^/[^\x00]*$")]
Paths = Annotated[list[Directory], Field(max_length=PATHS, fail_fast=True)]
_LABEL_KEY, _LABEL_VALUE, _LABEL_LENGTH = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$", r"^[^\x00-\x1f\x7f]*$", 255
LabelKey = Annotated[
    str, spelled(_LABEL_KEY, "must be 1 to 63 of letters, digits and . _ / -, the first one a letter or a digit")
]
LabelValue = Annotated[
    str, StringConstraints(max_length=_LABEL_LENGTH), spelled(_LABEL_VALUE, "must have no control characters")
]
# pydantic would say `patternProperties`, of which generators of clients make a map of anything.
_LABELS_SCHEMA = {
    "type": "object",
    "maxProperties": LABELS,
    "propertyNames": {"pattern": _LABEL_KEY},
    "additionalProperties": {"type": "string", "maxLength": _LABEL_LENGTH, "pattern": _LABEL_VALUE},
}
Labels = Annotated[
    dict[LabelKey, LabelValue],
    Field(max_length=LABELS),
    BeforeValidator(_few_labels),
    BeforeValidator(_needs_object),
    WithJsonSchema(_LABELS_SCHEMA),
]
WHOLE = BeforeValidator(_whole)  # the last of an annotation: bounds that come after it are lost in the schema
Count = Annotated[int, Field(ge=0, le=EXACT_INTEGER), WHOLE]
Seconds = Annotated[float, Field(gt=0)]
