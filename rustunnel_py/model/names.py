"""Host labels: what may be registered, and how one is made up (wire spec section 7; design: names)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rustunnel_py.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

LABEL_MIN = 3
LABEL_MAX = 63  # RFC 1035 §2.3.4
GENERATED_LENGTH = 11  # 36^11 names: 56 bits, so that a name cannot be guessed by trying

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def judge_label(wish: str, *, shortest: int = LABEL_MIN) -> str:
    """The label in lower case, or Unavailable("malformed") with the rule that it breaks."""
    label = wish.lower()
    if not label.isascii() or not shortest <= len(label) <= LABEL_MAX or not _LABEL.match(label):
        raise Unavailable(
            "malformed",
            f"a subdomain is {shortest} to {LABEL_MAX} letters, digits and hyphens, with no hyphen at either end",
        )
    return label


def generated_label(randomness: bytes) -> str:
    """A label of 11 characters from at least 8 random bytes."""
    if len(randomness) < 8:
        raise ValueError("a generated label needs 8 random bytes")
    number = int.from_bytes(randomness, "big")
    characters = []
    for _ in range(GENERATED_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[digit])
    return "".join(characters)


def scope_patterns(scope: str | None) -> list[str]:
    """The comma-separated patterns of a token's scope, in lower case; none for an unrestricted token."""
    return [pattern.strip().lower() for pattern in (scope or "").split(",") if pattern.strip()]


def is_reserved_for(label: str, reserved: Iterable[str], scope: str | None) -> bool:
    """Whether `label` is reserved and this scope does not name it literally."""
    return label in reserved and label not in scope_patterns(scope)
