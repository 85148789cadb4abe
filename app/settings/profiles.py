"""The operator's policy profiles: a TOML file, one table per profile.

::

    [narrow]
    read_only = ["/usr"]
    read_write = ["/workspace"]
    loopback_tcp = false
    network.allow = ["index.example.org:443"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from app.core.errors import InvalidRequest
from app.core.models import is_id
from app.core.network_rules import NetworkRule, parse_rule
from app.core.policy import DEFAULT_PROFILES, Filesystem, Policy, check_path
from app.sentences import sentence_for


class ProfilesError(Exception):
    """`str(error)` names the file and what is wrong in it."""


class _Network(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[Any]  # `parse_rule` looks at them


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    read_only: list[str] = list(Filesystem().read_only)
    read_write: list[str] = list(Filesystem().read_write)
    loopback_tcp: bool = False
    network: _Network | None = None


_FILE = TypeAdapter(dict[str, _Profile])


def load_profiles(path: Path | None) -> Mapping[str, Policy]:
    """Returns the built-in profiles, replaced and extended by those of the file. Raises ProfilesError."""
    if path is None:
        return DEFAULT_PROFILES
    try:
        found = _FILE.validate_python(tomllib.loads(path.read_text()))
        return {**DEFAULT_PROFILES, **{name: _policy(name, profile) for name, profile in found.items()}}
    except OSError as error:
        raise ProfilesError(f"the profiles file {path} cannot be read: {error.strerror}") from error
    except InvalidRequest as error:
        raise ProfilesError(f"the profiles file {path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        sentence = "is not known here" if first["type"] == "extra_forbidden" else sentence_for(first)
        raise ProfilesError(f"the profiles file {path}: {where}: {sentence}") from error
    except ValueError as error:  # not TOML, not UTF-8
        raise ProfilesError(f"the profiles file {path} is not TOML: {error}") from error


def _policy(name: str, profile: _Profile) -> Policy:
    if not is_id(name):
        raise InvalidRequest.at(name, "a profile's name has small letters, digits, - and _")
    return Policy(
        profile=name,
        filesystem=Filesystem(
            read_only=tuple(check_path(p, f"{name}/read_only/{n}") for n, p in enumerate(profile.read_only)),
            read_write=tuple(check_path(p, f"{name}/read_write/{n}") for n, p in enumerate(profile.read_write)),
        ),
        loopback_tcp=profile.loopback_tcp,
        permitted=None if profile.network is None else _rules(name, profile.network.allow),
    )


def _rules(name: str, allow: Sequence[object]) -> tuple[NetworkRule, ...]:
    rules = []
    for place, value in enumerate(allow):
        try:
            rules.append(parse_rule(value))
        except ValueError as error:
            raise InvalidRequest.at(f"{name}/network/allow/{place}", str(error)) from error
    return tuple(rules)
