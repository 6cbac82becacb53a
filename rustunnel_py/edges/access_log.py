"""The access log: a line a visit, as other web servers write it, for fail2ban, CrowdSec and their like.

`combined` is Apache's and nginx's format; `json` has the host, the visit's id, the time and whether the reply was cut
as well. The address is the visitor's own, also behind a trusted proxy. What a visitor sent is escaped: a line is always
one line.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.wire.http1 import RequestHead

FIELD_MAX = 2048  # bytes of a target, a referer, a user agent; what is longer is cut
_SAFE = bytes(range(0x20, 0x7F)).translate(None, b'"\\')
_ESCAPED = [chr(byte) if byte in _SAFE else f"\\x{byte:02x}" for byte in range(256)]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLog:
    """`write` takes a line with its end."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        style: Literal["combined", "json"],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._write = write
        self._as_json = style == "json"
        self._now = now

    def request(
        self,
        visitor: Peer,
        head: RequestHead | None,
        status: int,
        size: int,
        milliseconds: float | None,
        visit_id: str,
        scheme: str,
        *,
        cut: bool = False,
    ) -> None:
        """One HTTP request; `head` is None for what was none. `size` is the reply's body; `cut`: as far as it came."""
        method, target, minor, host, referer, agent = b"", b"", 1, b"", b"", b""
        if head is not None:
            method, target, minor, host = head.method, head.target, head.minor, head.host.encode("latin-1")
            for name, value in head.block.headers:
                lowered = name.lower()
                if lowered == b"referer":
                    referer = value
                elif lowered == b"user-agent":
                    agent = value
        if self._as_json:
            self._json(
                {
                    "visitor": visitor.ip,
                    "scheme": scheme,
                    "host": _text(host),
                    "method": _text(method),
                    "path": _text(target),
                    "status": status,
                    "bytes": size,
                    "cut": cut,
                    "ms": None if milliseconds is None else round(milliseconds, 1),
                    "referer": _text(referer),
                    "user_agent": _text(agent),
                    "id": visit_id,
                }
            )
            return
        line = f"{_text(method)} {_text(target)} HTTP/1.{minor}" if head is not None else "-"
        self._combined(visitor, line, status, size, _text(referer), _text(agent))

    def connection(self, visitor: Peer, port: int, size: int, milliseconds: float, visit_id: str) -> None:
        """One TCP visit. `size` is what the visitor got."""
        if self._as_json:
            self._json(
                {
                    "visitor": visitor.ip,
                    "scheme": "tcp",
                    "port": port,
                    "bytes": size,
                    "ms": round(milliseconds, 1),
                    "id": visit_id,
                }
            )
        else:
            self._combined(visitor, f"TCP :{port} -", 0, size, "", "")

    def _combined(self, visitor: Peer, line: str, status: int, size: int, referer: str, agent: str) -> None:
        now = self._now()
        stamp = f"{now.day:02d}/{_MONTHS[now.month - 1]}/{now:%Y:%H:%M:%S} +0000"
        text = f'{visitor.ip} - - [{stamp}] "{line}" {status} {size or "-"} "{referer or "-"}" "{agent or "-"}"\n'
        self._write(text.encode("ascii", "replace"))

    def _json(self, fields: dict[str, object]) -> None:
        now = self._now()
        at = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"
        self._write(json.dumps({"at": at, **fields}, separators=(",", ":")).encode() + b"\n")


def _text(raw: bytes) -> str:
    """In visible ASCII without quotation marks, as Apache escapes."""
    return "".join([_ESCAPED[byte] for byte in raw[:FIELD_MAX]])
