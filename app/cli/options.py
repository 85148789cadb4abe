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
_RULES = ("allow", "allow_http", "allow_raw")


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
    """Rules stand in the order of `_RULES`, then come those for hosts of secrets."""
    given = [(f"--{name.replace('_', '-')}", text) for name in _RULES for text in getattr(typed, name, None) or ()]
    if number.isdigit() and int(number) < len(given):
        option, text = given[int(number)]
        return f"{option} '{text}'" if " " in text else f"{option} {text}"
    if number.isdigit() and getattr(typed, "secret", None):
        return "--secret"
    options = list(dict.fromkeys(option for option, _ in given))
    return options[0] if len(options) == 1 else "--allow"


def _item(option: str, number: str, typed: Sequence[str] | None) -> str:
    known = typed is not None and number.isdigit() and int(number) < len(typed)
    return f"{option} {typed[int(number)]}" if known and typed is not None else option
