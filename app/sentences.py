"""What is wrong with a value, in our own words: for settings and profiles as well as for requests.

pydantic names each kind of error and gives its numbers. Its own sentences speak of types and parsers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By pydantic's name of the error. `{…}` is a value of its context.
TABLE: dict[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    "int_parsing_size": "must be a whole number with fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be a string",
    "string_unicode": "must be valid UTF-8",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "path_type": "must be a path",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object"),
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    **dict.fromkeys(("literal_error", "enum"), "must be {expected}"),
    "missing": "is required",
    "value_error": "{error}",  # raised by a validator of ours
}


def sentence_for(found: Mapping[str, Any]) -> str:
    """`found`: one item of `ValidationError.errors()`, with its context. An error that is not in the table keeps the
    sentence of pydantic, or that of our own PydanticCustomError."""
    if sentence := TABLE.get(found["type"]):
        text = sentence.format_map({name: _shown(value) for name, value in found.get("ctx", {}).items()})
        return text.replace(" 1 items", " 1 item").replace(" 1 characters", " 1 character")
    message = str(found["msg"])
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


__all__ = ["TABLE", "sentence_for"]
