"""A captured request as a line for the shell: nothing in it is run, and nothing acts on a terminal."""

from __future__ import annotations

import base64
import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rustunnel_py.model.capture import Capture

_PRINTABLE = re.compile(r"[ -~]*")
# curl makes these itself, or they belong to the connection.
_OWN = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_ESCAPES = {"'": "\\'", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def curl_of(capture: Capture, base_url: str) -> str:
    """`base_url` is scheme, host and port. What was redacted or clipped is so here, too; a comment says it."""
    host = next((value for name, value in capture.request_headers if name.lower() == b"host"), b"")
    parts = ["curl", "--globoff", "--path-as-is"]
    if capture.method != ("POST" if capture.request_body else "GET"):
        parts += ["--head"] if capture.method == "HEAD" else ["--request", quoted(capture.method)]
    if host and host.decode("latin-1").lower() != base_url.partition("://")[2].lower():
        parts += ["--header", quoted(f"Host: {host.decode('latin-1')}")]
    for name, value in capture.request_headers:
        if name.lower() in _OWN or b"\n" in name + value or b"\r" in name + value:
            continue
        # `Name;` is curl's way to send a header without a value.
        text = f"{name.decode('latin-1')}: {value.decode('latin-1')}" if value else f"{name.decode('latin-1')};"
        parts += ["--header", quoted(text)]
    before = ""
    if capture.request_body:
        try:
            text = capture.request_body.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            before = f"echo {base64.b64encode(capture.request_body).decode()} | base64 -d | "
            parts += ["--data-binary", "@-"]
        else:
            parts += ["--data-raw", quoted(text)]
        if not any(name.lower() == b"content-type" for name, _ in capture.request_headers):
            parts += ["--header", "Content-Type:"]  # else curl calls it a form
    parts.append(quoted(base_url + (capture.path if capture.path.startswith("/") else "/" + capture.path)))
    line = before + " ".join(parts) + "\n"
    if capture.request_clipped or capture.request_withheld:
        line = "# the body is not whole\n" + line
    return line


def quoted(text: str) -> str:
    """One word for a shell: bash's $'…' where there is anything that a terminal would act on."""
    if _PRINTABLE.fullmatch(text):
        return shlex.quote(text)
    pieces = [_ESCAPES.get(sign) or (sign if _PRINTABLE.fullmatch(sign) else _bytes(sign)) for sign in text]
    return f"$'{''.join(pieces)}'"


def _bytes(sign: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogateescape"))
