"""A TLS client hello by hand: OpenSSL's own, with another server_name extension."""

from __future__ import annotations

import contextlib
import ssl
import struct


def hello(name: str = "app.localhost") -> bytes:
    """The first record of a TLS 1.3 client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def hello_naming(*names: bytes) -> bytes:
    """A hello whose server_name extension holds exactly these names (RFC 6066 §3)."""
    record = hello()
    body = record[9:]
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    before, extensions = body[:at], body[at + 2 :]
    kept = b""
    while extensions:
        kind, size = struct.unpack(">HH", extensions[:4])
        if kind != 0:
            kept += extensions[: 4 + size]
        extensions = extensions[4 + size :]
    entries = b"".join(b"\0" + struct.pack(">H", len(name)) + name for name in names)
    entries = struct.pack(">H", len(entries)) + entries
    kept += struct.pack(">HH", 0, len(entries)) + entries
    body = before + struct.pack(">H", len(kept)) + kept
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message
