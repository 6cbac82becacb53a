"""The files in which the rs-tunnel CLI keeps its session, so that it works with an API token and without its login.

    HOME/.rs-tunnel/session.key   base64 of 32 random bytes
    HOME/.rs-tunnel/session.enc   {"iv", "tag", "data"}, each base64: AES-256-GCM, 12-byte nonce, 16-byte tag apart
                                  from the ciphertext, no associated data; the plaintext is the session as JSON
    HOME/.rs-tunnel/config.json   {"apiBaseUrl"}: where the CLI looks for the server

All are 0600, the folder 0700. The CLI reads them where its keychain module is not installed.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rustunnel_py.client.sources import write_private
from rustunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rustunnel_py.model.access import Secret

FOLDER = ".rs-tunnel"
FAR_AWAY = 4_102_444_800  # 2100-01-01: from 30 s before this instant on the CLI would ask for a new token
NO_REFRESH = "this-session-has-no-refresh-token"  # the CLI wants 10 characters; a server refuses it in plain words

_KEY_SIZE = 32
_NONCE_SIZE = 12
_TAG_SIZE = 16


class Profile(msgspec.Struct, rename="camel"):
    """Whom the CLI shows; it takes any text."""

    email: str
    slack_user_id: str = ""
    slack_team_id: str = ""


class Session(msgspec.Struct, rename="camel"):
    """What the CLI calls its session."""

    access_token: str
    refresh_token: str
    expires_at_epoch_sec: int
    profile: Profile


class _Sealed(msgspec.Struct):
    iv: str
    tag: str
    data: str


def parse_api(text: str) -> str:
    """The base URL of a server, as the CLI wants it: absolute, http or https, no slash at its end.

    Raises ConfigError.
    """
    url = text.rstrip("/")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    usable = re.fullmatch(r"[!-~]+", url) and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not host or not usable:
        raise ConfigError("--api", f"{text!r} is no base URL; write https://HOST[:PORT], or http:// on this machine")
    return url


def write_session(home: Path, api: str, token: Secret) -> Path:
    """Make the CLI of the user with this home folder use `token` at `api`; gives the folder.

    Raises ConfigError where it cannot be written.
    """
    folder = home / FOLDER
    host = urlsplit(api).hostname or "server"
    session = Session(token.reveal(), NO_REFRESH, FAR_AWAY, Profile(f"api-token@{host}"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        key = _known_key(folder / "session.key")
        if key is None:
            key = os.urandom(_KEY_SIZE)
            write_private(folder / "session.key", base64.b64encode(key).decode("ascii"))
        write_private(folder / "session.enc", seal(session, key, os.urandom(_NONCE_SIZE)))
        write_private(folder / "config.json", msgspec.json.encode({"apiBaseUrl": api}).decode("ascii"))
    except OSError as error:
        raise ConfigError(str(folder), f"cannot be written: {error.strerror or error}") from error
    return folder


def _known_key(path: Path) -> bytes | None:
    """The CLI's own key, where it has one: it is kept over a logout."""
    try:
        key = base64.b64decode(path.read_text(encoding="ascii").strip(), validate=True)
    except (OSError, UnicodeDecodeError, binascii.Error):
        return None
    return key if len(key) == _KEY_SIZE else None


def seal(session: Session, key: bytes, nonce: bytes) -> str:
    """The text of `session.enc`."""
    sealed = AESGCM(key).encrypt(nonce, msgspec.json.encode(session), None)
    data, tag = sealed[:-_TAG_SIZE], sealed[-_TAG_SIZE:]
    parts = _Sealed(*(base64.b64encode(part).decode("ascii") for part in (nonce, tag, data)))
    return msgspec.json.encode(parts).decode("ascii")


def unseal(text: str, key: bytes) -> Session:
    """The session in a `session.enc`; the inverse of `seal`. Raises ValueError."""
    try:
        parts = msgspec.json.decode(text, type=_Sealed)
        nonce, tag, data = (base64.b64decode(part, validate=True) for part in (parts.iv, parts.tag, parts.data))
        return msgspec.json.decode(AESGCM(key).decrypt(nonce, data + tag, None), type=Session)
    except Exception as error:
        raise ValueError("this is no session of that key") from error
