"""The problem (RFC 9457) as one schema with the members of every type, so that generated clients have them typed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import SkipJsonSchema

from app.api.http.problem_types import TABLE, Member

_Absent = SkipJsonSchema[None]


class StandardMembers(BaseModel):
    """RFC 9457. The required members are in every problem. The description of each other member names its types."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="`/problems/<slug>`: identifies the type of the problem")
    title: str = Field(description="title of the type")
    status: int = Field(ge=400, le=599, description="the HTTP status")
    detail: str = Field(description="what happened this time, for people")
    instance: str = Field(description="the request id, also in the header X-Request-Id")


def _members() -> dict[str, dict[str, Member]]:
    """All members of the table: name -> slug -> member."""
    found: defaultdict[str, dict[str, Member]] = defaultdict(dict)
    for row in TABLE:
        for member in row.members:
            found[member.name][row.slug] = member
    return found


def _description(uses: dict[str, Member]) -> str:
    """Of a member, from its rows: what it means, and in which problems it is."""
    slugs: defaultdict[str, list[str]] = defaultdict(list)
    for slug, member in uses.items():
        slugs[member.meaning].append(f"`{slug}`")
    return "; ".join(f"{meaning} (only in {', '.join(found)})" for meaning, found in slugs.items())


def _fields() -> Iterator[tuple[str, Any]]:
    for name, uses in _members().items():
        kinds = {member.type for member in uses.values()}
        # Without a type where there are several: of a union of two, one generator in four makes a class that holds
        # nothing.
        kind = kinds.pop() if len(kinds) == 1 else Any
        field = Field(default_factory=lambda: None, description=_description(uses))
        yield name, (kind | _Absent, field)


if TYPE_CHECKING:
    Problem = StandardMembers
else:
    Problem = create_model(
        "Problem", __base__=StandardMembers, __doc__=StandardMembers.__doc__, __module__=__name__, **dict(_fields())
    )
