"""The one text that opens a leased tunnel to an agent: base64url, without padding, of a JSON object.

    {"v": 1, "server": "t.example.com:4040", "pin": "sha256:…", "tunnel": UUID, "name": "demo", "port": 41234,
     "lease": 60, "secret": "…"}

`server` is the control address and `pin` the pin of its key; `name` is the label of the public name; `port` is where
the local service listens on 127.0.0.1, and the agent connects nowhere else; `lease` is how many seconds the tunnel
lives without anybody's heartbeat. `secret` opens this tunnel, while it lives, and nothing else: the text stands
among a program's arguments, where others on the machine can read it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec

from rustunnel_py.errors import WireError
from rustunnel_py.wire import strict_json

TOKEN_MAX = 4096  # characters; an honest one has some 400
VERSION = 1


class AgentTokenError(WireError):
    """The text is none of these tokens, or of a version that is not known here. The message quotes nothing of it."""


class AgentToken(msgspec.Struct, frozen=True):
    """`v` is the version of the format."""

    server: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    pin: Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
    tunnel: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,63}\Z")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    lease: Annotated[int, msgspec.Meta(ge=1, le=86400)]
    secret: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{20,128}\Z")]
    v: int = VERSION

    def __repr__(self) -> str:
        return f"<AgentToken of {self.name} at {self.server}>"


def encode(token: AgentToken) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).rstrip(b"=").decode("ascii")


def decode(text: str) -> AgentToken:
    """Raises AgentTokenError."""
    if len(text) > TOKEN_MAX:
        raise AgentTokenError("the token is too long")
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
        token = msgspec.convert(strict_json.loads(raw, TOKEN_MAX), AgentToken)
    except (UnicodeEncodeError, binascii.Error, strict_json.JsonRefused, msgspec.ValidationError):
        raise AgentTokenError("this is no token of a rustunnel-py server") from None
    if token.v != VERSION:
        raise AgentTokenError("this token is of another version of rustunnel-py")
    return token
