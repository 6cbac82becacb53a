"""Writes the tables of docs/configuration.md from the structs of rustunnel_py/config.py.

    python scripts/configuration_keys.py docs/configuration.md

What stands between the two marks is replaced. `tests/test_docs.py` says when this was forgotten.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from rustunnel_py.config import LATER, REPLACED, Config, Key, keys

BEGIN = "<!-- begin of the keys: written by `make docs` -->\n"
END = "<!-- end of the keys -->\n"


def tables() -> str:
    """One section per TOML table, then what is refused."""
    known = list(keys())
    sections = []
    for field in msgspec.structs.fields(Config):
        doc = (type(field.default).__doc__ or "").strip()
        rows = "".join(_row(key) for key in known if key.table == field.name)
        head = "| key | default | allowed | meaning |\n|---|---|---|---|\n"
        sections.append(f"### [{field.name}]\n\n{doc}\n\n{head}{rows}")
    later = "".join(f"| `{key}` | {feature} |\n" for key, feature in LATER.items())
    sections.append(
        "### Not yet\n\nRefused unless the value asks for nothing (`false`, `0`, empty, `[0, 0]`).\n\n"
        f"| key | will bring |\n|---|---|\n{later}"
    )
    replaced = "".join(f"| `{key}` | {instead} |\n" for key, instead in REPLACED.items())
    sections.append(f"### Never\n\n| key | instead |\n|---|---|\n{replaced}")
    return "\n".join(sections)


def _row(key: Key) -> str:
    if key.default is None or key.default == ():
        default = "none"
    elif isinstance(key.default, bool):
        default = f"`{str(key.default).lower()}`"
    elif isinstance(key.default, float):
        default = f"`{key.default:g}`"
    elif isinstance(key.default, tuple):
        default = f"`{list(key.default)}`"
    else:
        default = f"`{msgspec.json.encode(key.default).decode()}`"
    return f"| `{key.name}` | {default} | {key.allowed} | {key.description} |\n"


def rewritten(text: str) -> str:
    """The page with new tables. ValueError: it has not both marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in rest:
        raise ValueError("the page has not both marks")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
