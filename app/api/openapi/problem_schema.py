"""The problem (RFC 9457) as one schema with the members of every type, so that generated clients have them typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema


class FieldProblem(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    pointer: str = Field(description="a JSON pointer into the body, or query/NAME")
    detail: str


def _only(of: str, what: str) -> object:
    return Field(default_factory=lambda: None, description=f"{what}; only in {of}")


Text = str | SkipJsonSchema[None]
Texts = list[str] | SkipJsonSchema[None]


class Problem(BaseModel):
    """RFC 9457. The required members are in every problem. The description of each other member names its types."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="`/problems/<slug>`: identifies the type of the problem")
    title: str = Field(description="title of the type")
    status: int = Field(ge=400, le=599, description="the HTTP status")
    detail: str = Field(description="what happened this time, for people")
    instance: str = Field(description="the request id, also in the header X-Request-Id")

    errors: Annotated[
        list[FieldProblem] | SkipJsonSchema[None], _only("`invalid_request`", "every wrong place of the request")
    ]
    runtime: Annotated[Text, _only("problems with a runtime", "its name")]
    known: Annotated[Texts, _only("`unknown_…` and `runtime_not_enabled`", "the names that exist")]
    pointer: Annotated[
        Text, _only("`policy_too_broad`, `limit_too_high`, `policy_not_supported`", "the field, as `/limits/cpus`")
    ]
    # Without a type: of a union of two, one generator in four makes a class that holds nothing.
    ceiling: Annotated[
        Any, _only("`limit_too_high` (a number) and `policy_too_broad` (a text)", "the most that can be had")
    ]
    missing: Annotated[Texts, _only("`capability_missing`", "capabilities that the runtime lacks")]
    state: Annotated[Text, _only("`wrong_state`", "the state that it is in")]
    found: Annotated[Text, _only("`wrong_type`", "what is at the path")]
    entry: Annotated[Text, _only("`invalid_archive`", "the entry's name")]
    limit: Annotated[int | SkipJsonSchema[None], _only("`payload_too_large`, `disk_full`", "bytes")]
    budget: Annotated[Text, _only("`capacity_exceeded`", "what there is no more of")]
    holder: Annotated[
        Text, _only("`capacity_exceeded`", "whose part is used up: `client`, `sandbox`, or all of the `service`")
    ]
    step: Annotated[Text, _only("`launch_failed`", "the isolation step")]
    errno: Annotated[Text, _only("`launch_failed`", "the kernel's reason, as `EPERM`")]
    layer: Annotated[Text, _only("`isolation_unavailable`", "the isolation layer that the host lacks")]
    upstream_status: Annotated[int | None, _only("`backend_…`", "the HTTP status that the runtime's server gave")]
    upstream_code: Annotated[str | None, _only("`backend_…`", "the code that the runtime's server gave")]
