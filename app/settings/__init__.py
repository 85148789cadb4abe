"""Everything that an operator may choose, in one frozen `Settings`. The service reads its environment here only.

`docs/settings.md` lists every name; a test compares.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from app.core.limits import LIMITS, LimitRange
from app.core.models import Storage
from app.core.sandboxes import Capacity
from app.sentences import sentence_for
from app.settings.boxlite import BoxliteSettings
from app.settings.egress import EgressSettings
from app.settings.idempotency import IdempotencySettings
from app.settings.limits import LimitSettings, LimitsSettings
from app.settings.part import Part, split
from app.settings.process import ProcessSettings
from app.settings.transfers import TransferSettings

PREFIX = "BULKHEAD_"
OTHERS = ("BULKHEAD_CLIENT_", "BULKHEAD_TEST_")  # read by the command line and the tests
KEY_LENGTH = 16  # of a key that an operator thought up; ours have 43 random characters


class SettingsError(Exception):
    """The service cannot start with these settings; `str(error)` names each wrong one and what to set."""


_CAPACITY = Capacity()


class CapacitySettings(Part):
    sandboxes: int = Field(_CAPACITY.sandboxes, ge=1, description="sandboxes that are alive at once")
    executions: int = Field(_CAPACITY.executions, ge=1, description="executions that run at once in all sandboxes")
    executions_running: int = Field(
        _CAPACITY.executions_running, ge=1, description="executions that run at once in one sandbox"
    )
    executions_kept: int = Field(
        _CAPACITY.executions_kept,
        ge=1,
        description="records of executions of one sandbox; a new one replaces the oldest that has ended",
    )
    viewers: int = Field(_CAPACITY.viewers, ge=1, description="streams of one execution")
    streams: int = Field(_CAPACITY.streams, ge=1, description="streams of all executions at once")
    tickets: int = Field(_CAPACITY.tickets, ge=1, description="stream tickets that wait to be used")
    waits: int = Field(_CAPACITY.waits, ge=1, description="requests that are held at once")
    connections: int = Field(_CAPACITY.connections, ge=1, description="connections at once")
    strangers: int = Field(_CAPACITY.strangers, ge=1, description="connections at once on which no key was shown")
    ended_output_mib: int = Field(
        _CAPACITY.ended_output_mib, ge=0, description="memory for output of ended executions; more goes to disk"
    )
    commands_mib: int = Field(
        _CAPACITY.commands_mib, ge=16, description="memory for commands and environments of executions"
    )
    transfers: int = Field(_CAPACITY.transfers, ge=1, description="operations on files at once in all sandboxes")
    archives: int = Field(_CAPACITY.archives, ge=1, description="archives that are unpacked at once")
    records: int = Field(_CAPACITY.records, ge=1, description="sandboxes that are listed, with destroyed ones")
    record_seconds: float = Field(
        _CAPACITY.record_seconds, ge=0, description="how long a destroyed sandbox stays listed"
    )
    creating_seconds: float = Field(
        _CAPACITY.creating_seconds,
        gt=0,
        description="How long a sandbox may take until it runs. Its `ttl_seconds` counts from then.",
    )
    stream_end_seconds: float = Field(
        _CAPACITY.stream_end_seconds, ge=0, description="how long open streams of a destroyed sandbox may read"
    )


def default_data() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/bulkhead")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "bulkhead"


def _network_like(text: str) -> str:
    """The network of an address that was written with a prefix length; else any."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return "10.0.0.0/8"


class Settings(BaseSettings):
    """Made by `load_settings`, which turns what pydantic finds into sentences."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on; a key is needed beyond loopback")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0: any free port")
    data: Path = Field(default_factory=default_data, description="folder for keys and state")
    api_keys: tuple[SecretStr, ...] = Field((), description="JSON list of keys, beside those in the data folder")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="names that the Host header may have beside loopback; without a port: any port"
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="web pages that may call, as scheme://host[:port]"
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)] = Field(
        (), description="addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto count"
    )
    runtime: str = Field(
        "process",
        validation_alias=AliasChoices("BULKHEAD_RUNTIME", "OPENSHELL_RUNTIME"),
        description="the default runtime",
    )
    storage: Storage = Field(Storage.MEMORY, description="storage of a sandbox whose request does not name one")
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    capacity: CapacitySettings = Field(default_factory=CapacitySettings)
    idempotency: IdempotencySettings = Field(default_factory=IdempotencySettings)
    ttl_ceiling_seconds: float = Field(
        604_800, gt=0, allow_inf_nan=False, description="longest lifetime and idle time that a client may ask for"
    )
    profiles: Path | None = Field(None, description="TOML file with the operator's policy profiles")
    spill_mib: int = Field(
        4096, ge=0, description="disk for output that does not fit into memory, of all executions together"
    )
    slow_callback_ms: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="logs a callback that holds the event loop for longer (processor time); 0: off",
    )
    transfers: TransferSettings = Field(default_factory=TransferSettings)
    process: ProcessSettings = Field(default_factory=ProcessSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    boxlite: BoxliteSettings = Field(default_factory=BoxliteSettings)

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/@]+)(:\d{1,5})?", host):
                raise ValueError(f"{host!r} is not a host name, optionally with a port")
        return tuple(host.lower() for host in hosts)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/@]+", origin):
                raise ValueError(f"{origin!r} is not scheme://host[:port]")
        return tuple(origin.lower() for origin in origins)

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy!r} is not an address or a network such as {_network_like(proxy)}") from None
        return proxies

    @field_validator("api_keys")
    @classmethod
    def _keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for place, key in enumerate(keys):
            text = key.get_secret_value()
            if len(text) < KEY_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError(f"key {place} must have at least {KEY_LENGTH} printable ASCII characters, no spaces")
        return keys

    def key_names(self) -> dict[str, str]:
        """Names by the SHA-256 of the key in hex. The name of a key of the settings is its position."""
        hashes = (hashlib.sha256(key.get_secret_value().encode()).hexdigest() for key in self.api_keys)
        return {digest: f"{PREFIX}API_KEYS[{place}]" for place, digest in enumerate(hashes)}

    def limit_ranges(self) -> dict[str, LimitRange]:
        chosen: dict[str, LimitSettings] = {name: getattr(self.limits, name) for name in LIMITS}
        return {name: LimitRange(limit.default, limit.ceiling) for name, limit in chosen.items()}

    def core_capacity(self) -> Capacity:
        return Capacity(**self.capacity.model_dump())


def load_settings(**given: Any) -> Settings:
    """Loads the settings from the environment. `given` (the options of the command line) overrides it. Raises
    SettingsError."""
    _refuse_unknown_names()
    try:
        return Settings(**given, **_as_boxlite_knows_them(given))
    except (ValidationError, PydanticSettingsError) as error:
        raise SettingsError(_sentences(error)) from None  # the cause would show the values, keys among them


# The names that BoxLite's own clients read, where ours are not set.
_BOXLITE_NAMES = {
    "url": ("BOXLITE_REST_URL", "BOXLITE_URL"),
    "api_key": ("BOXLITE_API_KEY",),
    "path_prefix": ("BOXLITE_REST_PATH_PREFIX",),
}


def _as_boxlite_knows_them(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, str] = {}
    for field, names in _BOXLITE_NAMES.items():
        theirs = next((value for name in names if (value := os.environ.get(name))), None)
        if theirs and not os.environ.get(f"{PREFIX}BOXLITE__{field.upper()}"):
            found[field] = theirs
    return {"boxlite": found} if found and "boxlite" not in given else {}


def _refuse_unknown_names() -> None:
    known = {f"{PREFIX}{name}".upper(): field.annotation for name, field in Settings.model_fields.items()}
    with_parts = {name for name, kind in known.items() if isinstance(kind, type) and issubclass(kind, Part)}
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper.startswith(OTHERS):
            continue
        top, nested, _ = upper.partition("__")
        if top not in known or (nested and top not in with_parts):
            names = [known_name.removeprefix(PREFIX) for known_name in (with_parts if nested else known)]
            near = difflib.get_close_matches(top.removeprefix(PREFIX), sorted(names), n=1) if top not in known else []
            meant = f"; did you mean {PREFIX}{near[0]}{upper[len(top) :]}?" if near else ""
            raise SettingsError(f"{name} is not a setting of Bulkhead{meant}; docs/settings.md lists them all")


def _name_without_json(field: str) -> str:
    """The error names a whole part, also when one of its variables is at fault: then only an object can be."""
    name, kind = f"{PREFIX}{field.upper()}", Settings.model_fields[field].annotation
    if isinstance(kind, type) and issubclass(kind, Part) and name not in map(str.upper, os.environ):
        objects = [inside for inside, of in kind.model_fields.items() if get_origin(of.annotation) is dict]
        name += "".join(f"__{inside.upper()}" for inside in objects[:1])
    return name


def _sentences(error: ValidationError | PydanticSettingsError) -> str:
    if not isinstance(error, ValidationError):
        field = re.search(r'field "(\w+)"', str(error))
        if field is None:
            return f"{PREFIX}...: must be JSON"
        is_list = get_origin(Settings.model_fields[field[1]].annotation) is tuple
        like = '["…"], with a text in quotes for each item' if is_list else '{"NAME": …}'
        return f"{_name_without_json(field[1])}: must be JSON, such as {like}"
    lines = []
    for found in error.errors(include_url=False, include_input=False):
        name = "__".join(str(part) for part in found["loc"] if not isinstance(part, int)).upper()
        name = name if name.startswith((PREFIX, "OPENSHELL_")) else PREFIX + name
        sentence = "is not a setting of Bulkhead" if found["type"] == "extra_forbidden" else sentence_for(found)
        lines.append(f"{name}: {sentence}")
    return "; ".join(lines)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(settings: Settings, key_hashes: Sequence[str]) -> None:
    """Raises SettingsError: without keys only this machine may reach the service."""
    if not key_hashes and not is_loopback(settings.host):
        option = "" if settings.data == default_data() else f" --data {shlex.quote(str(settings.data))}"
        raise SettingsError(
            f"refusing to listen on {settings.host} without a key: everybody who reaches it could run code here. "
            f"Make a key with `bulkhead key new NAME{option}`, or set BULKHEAD_API_KEYS, or set BULKHEAD_HOST=127.0.0.1"
        )


def storage_folder(settings: Settings) -> Path:
    """Where the disks of sandboxes are: an absolute path of the host."""
    return (settings.process.storage_dir or settings.data / "storage").absolute()
