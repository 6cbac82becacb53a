"""The scope of a token: which host labels and TCP ports it may have.

    scope   = pattern *( "," pattern )
    pattern = label | "tcp:" ( "*" | port [ "-" port ] )

    app               the label `app`
    ci-*, pr-??       `*` stands for any characters, also none, `?` for one
    tcp:20000-20010   these TCP ports;  tcp:20000, tcp:*  one, any

What no pattern allows is refused, so a scope without a `tcp:` pattern allows no TCP tunnel. No scope at all allows
everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rustunnel_py.errors import BadRequest
from rustunnel_py.model.names import LABEL_MAX, scope_patterns

_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_ONE = rf"\s*(tcp:(\*|{_PORT}(-{_PORT})?)|[A-Za-z0-9*?-]{{1,63}})\s*"
PATTERN = f"^{_ONE}(,{_ONE})*$"
"""The grammar as one expression, for whoever describes it."""

_LABEL = re.compile(r"[a-z0-9*?-]{1,63}")
_PORTS = re.compile(r"tcp:(?:(\*)|([0-9]{1,5})(?:-([0-9]{1,5}))?)")
_PORT_MAX = 65535
_CACHED = 256  # scopes of the tokens in use; each is parsed once


@dataclass(frozen=True, slots=True)
class Scope:
    """`labels` are patterns in lower case, `ports` inclusive ranges; each in the order of the text."""

    labels: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]

    def allows_label(self, label: str) -> bool:
        return any(_matches(pattern, label) for pattern in self.labels)

    def allows_port(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self.ports)

    def label_from(self, generated: str) -> str | None:
        """A label that it allows, made from one that is random: `ci-*` gives `ci-` and `generated`.

        None where only literal labels are allowed.
        """
        for pattern in self.labels:
            if pattern not in self.literal_labels:
                letters = iter(generated * LABEL_MAX)
                label = "".join(next(letters) if sign == "?" else sign for sign in pattern)
                label = label.replace("*", generated, 1).replace("*", "")[:LABEL_MAX]
                if self.allows_label(label):
                    return label
        return None

    @property
    def literal_labels(self) -> tuple[str, ...]:
        return tuple(pattern for pattern in self.labels if "*" not in pattern and "?" not in pattern)


def _matches(pattern: str, label: str) -> bool:
    """Wildcards without backtracking over more than the last star: linear times linear at worst."""
    at_pattern = at_label = 0
    star = mark = -1
    while at_label < len(label):
        sign = pattern[at_pattern] if at_pattern < len(pattern) else ""
        if sign == "*":
            star, mark = at_pattern, at_label
            at_pattern += 1
        elif sign in ("?", label[at_label]):
            at_pattern += 1
            at_label += 1
        elif star >= 0:
            at_pattern = star + 1
            mark += 1
            at_label = mark
        else:
            return False
    return not pattern[at_pattern:].strip("*")


def parse_scope(text: str) -> Scope:
    """Raises BadRequest, naming the pattern that is none."""
    labels: list[str] = []
    ports: list[tuple[int, int]] = []
    patterns = scope_patterns(text)
    if not patterns:
        raise BadRequest("scope: patterns with commas between them, such as ci-*, tcp:20000-20010; or null")
    for pattern in patterns:
        found = _PORTS.fullmatch(pattern)
        if found is not None:
            ports.append(_range(found, pattern))
        elif _LABEL.fullmatch(pattern):
            labels.append(pattern)
        else:
            raise BadRequest(
                f"scope: {pattern[:80]!a} is no pattern; labels have letters, digits, hyphens, * and ?, "
                "ports are written tcp:20000-20010"
            )
    return Scope(tuple(labels), tuple(ports))


def _range(found: re.Match[str], pattern: str) -> tuple[int, int]:
    if found[1]:
        return 1, _PORT_MAX
    first, last = sorted((int(found[2]), int(found[3] or found[2])))
    if not 1 <= first <= last <= _PORT_MAX:
        raise BadRequest(f"scope: {pattern} is no range of ports")
    return first, last


_NOTHING = Scope((), ())


@lru_cache(_CACHED)
def scope_of(text: str | None) -> Scope | None:
    """The scope of a token that exists; None: no limits. One that cannot be read allows nothing."""
    if text is None:
        return None
    try:
        return parse_scope(text)
    except BadRequest:
        return _NOTHING
