"""Which option was meant where the service names a field of a request by its JSON pointer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

_OTHERS = {
    "timeout_seconds": "timeout",
    "ttl_seconds": "ttl",
    "idle_seconds": "idle",
    "labels": "label",
    "secrets": "secret",
}
_NESTED = {"/policy/profile": "--profile", "/policy/network/mode": "--network", "/policy/network": "--network"}
_ALLOW = "/policy/network/allow"


def option_of(pointer: str, typed: Namespace) -> str:
    """The option, with its value where it can be given more than once. The pointer itself where no option is known."""
    if pointer in _NESTED:
        return _NESTED[pointer]
    if pointer == _ALLOW or pointer.startswith(f"{_ALLOW}/"):
        return _rule(pointer.removeprefix(_ALLOW).strip("/").partition("/")[0], typed)
    _, field, *inside = pointer.split("/") if pointer.startswith("/") else ("", "")
    if field == "command":
        return f"argument {inside[0]} of the command" if inside and inside[0] != "0" else "the command"
    name = inside.pop(0) if field == "limits" and inside else _OTHERS.get(field, field)
    return _option(name, inside, typed) if hasattr(typed, name) else pointer


def _option(name: str, inside: Sequence[str], typed: Namespace) -> str:
    option = f"--{name.replace('_', '-')}"
    if name in {"env", "label"} and inside:  # escaped as in RFC 6901, section 4
        return f"{option} {inside[0].replace('~1', '/').replace('~0', '~')}"
    return _item(option, inside[0], typed.requires) if name == "requires" and inside else option


def _rule(number: str, typed: Namespace) -> str:
    """Rules of --allow come first, then those of --allow-raw. Between them there may be some for hosts of secrets."""
    allow, raw = getattr(typed, "allow", None) or [], getattr(typed, "allow_raw", None) or []
    if not number.isdigit():
        return "--allow-raw" if raw and not allow else "--allow"
    if int(number) < len(allow):
        return _item("--allow", number, allow)
    if getattr(typed, "secret", None):
        return "--secret or --allow-raw" if raw else "--secret"
    return _item("--allow-raw", str(int(number) - len(allow)), raw)


def _item(option: str, number: str, typed: Sequence[str] | None) -> str:
    known = typed is not None and number.isdigit() and int(number) < len(typed)
    return f"{option} {typed[int(number)]}" if known and typed is not None else option
