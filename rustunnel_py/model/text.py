"""Text that a peer sent, made fit to be shown: in a log, a terminal, a page, an error (reliability C21, C22)."""

from __future__ import annotations

SHOWN_MAX = 200
"""Characters; a line of a log, and more than any honest name, version or address has."""

_MARK = "…"


def escape(text: str, limit: int = SHOWN_MAX) -> str:
    r"""`text` in at most `limit` characters, none of which acts on what shows it.

    Control characters (newline, escape), format characters (bidi overrides, zero width), line separators, private
    and unassigned characters and lone surrogates become `\n`, `\x1b`, `\u202e`, `\U000e0001`; what is cut off is
    marked by a final `…`. The result is plain text: whoever puts it into HTML escapes it for HTML too.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown: list[str] = []
    size = 0
    cut = len(text) > limit
    for character in text[:limit]:
        piece = character if character.isprintable() else _code(character)
        if size + len(piece) > limit:
            cut = True
            break
        shown.append(piece)
        size += len(piece)
    if not cut:
        return "".join(shown)
    while shown and size > limit - len(_MARK):
        size -= len(shown.pop())
    return "".join(shown) + _MARK[:limit]


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
