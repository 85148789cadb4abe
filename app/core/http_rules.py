"""What a network rule says about HTTP requests: which methods, and which paths. What is absent is not judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.core import path_patterns

HTTP_RULES = 8  # of one network rule
METHODS = 16  # of one of them
PATHS = 32  # of one network rule in all
NEVER_PASSED = frozenset(("CONNECT", "TRACE", "TRACK"))
_METHOD = re.compile(r"[A-Z][A-Z0-9-]{0,31}")
_FIELDS = frozenset({"methods", "paths"})


@dataclass(frozen=True, slots=True)
class HttpRule:
    """Empty `methods` are all methods, empty `paths` all paths. `paths` are patterns (see `core.path_patterns`)."""

    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def permits_method(self, method: str) -> bool:
        """GET admits HEAD. The case of letters matters, as it does in HTTP."""
        return not self.methods or method in self.methods or (method == "HEAD" and "GET" in self.methods)

    def permits_path(self, path: str) -> bool:
        """`path` is decoded and has no query."""
        return not self.paths or any(path_patterns.matches(pattern, path) for pattern in self.paths)

    def as_dict(self) -> dict[str, object]:
        return {"methods": list(self.methods) or None, "paths": list(self.paths) or None}

    def __str__(self) -> str:
        return " ".join([",".join(self.methods) or "*", ",".join(self.paths)]).strip()


def parse_http_rules(value: object) -> tuple[HttpRule, ...]:
    """A list of objects with `methods` and `paths`, or None for no list. Raises ValueError with a sentence."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= HTTP_RULES:
        raise ValueError(f"http must be a list of 1 to {HTTP_RULES} objects; [{{}}] permits every request")
    rules = tuple(dict.fromkeys(map(_parse_one, value)))
    if sum(len(rule.paths) for rule in rules) > PATHS:
        raise ValueError(f"http has more than {PATHS} paths")
    return rules


def _parse_one(value: object) -> HttpRule:
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:80]} in http is not an object with methods and paths")
    unknown = next((str(name) for name in value if name not in _FIELDS), None)
    if unknown is not None:
        raise ValueError(f"{unknown[:80]} is not a field of http, which has methods and paths")
    methods = _texts(value, "methods", METHODS)
    for method in methods:
        if _METHOD.fullmatch(method) is None:
            hint = f"; write {method.upper()}" if _METHOD.fullmatch(method.upper()) else ""
            raise ValueError(f"{method[:80]} is not a method in capital letters{hint}")
        if method in NEVER_PASSED:
            raise ValueError(f"the method {method} is never passed on")
    return HttpRule(methods, tuple(map(path_patterns.check_pattern, _texts(value, "paths", PATHS))))


def _texts(value: Mapping[object, object], name: str, most: int) -> tuple[str, ...]:
    texts = value.get(name)
    if texts is None:
        return ()
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not 1 <= len(texts) <= most:
        raise ValueError(f"{name} must be a list of 1 to {most} strings; leave it out for all {name}")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{str(text)[:80]} in {name} is not a string")
    return tuple(sorted(set(texts)))


def covers(wide: Iterable[HttpRule], narrow: Iterable[HttpRule]) -> bool:
    """Whether the wide rules, taken together, permit every request that the narrow ones permit."""
    wide = tuple(wide)
    return all(
        any(_covers_one(rule, method, path) for rule in wide)
        for each in narrow
        for method in each.methods or (None,)
        for path in each.paths or (None,)
    )


def _covers_one(rule: HttpRule, method: str | None, path: str | None) -> bool:
    has_method = not rule.methods or (method is not None and rule.permits_method(method))
    has_path = not rule.paths or (path is not None and any(path_patterns.covers(own, path) for own in rule.paths))
    return has_method and has_path
