"""First contact: whom we talk to, whether the token opens it, and the file that remembers both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from rustunnel_py.client.agent import look_at, try_token
from rustunnel_py.client.config import CaFile, Login, Pin, ServerAddress, SystemTrust, Trust
from rustunnel_py.client.failure import Untrusted
from rustunnel_py.client.sources import write_login
from rustunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rustunnel_py.model.access import Secret


async def find_trust(
    server: ServerAddress,
    *,
    pin: Pin | None = None,
    ca: CaFile | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> Trust:
    """What this server is to be known by from now on.

    A pin or a CA that is given is taken; else a certificate that the system trusts is enough; else `confirm` is shown
    a question with the pin of the key that the server has (None: there is nobody to ask). Raises Untrusted with the
    line to use, or Unreachable.
    """
    if pin is not None and ca is not None:
        raise ConfigError("--pin", "a pin and a CA do not go together; give one of them")
    chosen = pin or ca
    if chosen is not None:
        return chosen
    try:
        await look_at(server, SystemTrust())
    except Untrusted as untrusted:
        shown = await look_at(server, None)
        question = (
            f"This system does not trust the certificate of {server}. The pin of its key is\n  {shown}\n"
            "Compare it with the one that the server printed when it started. Trust it"
        )
        if confirm is None:
            raise Untrusted(
                f"{untrusted}; if this is your server and its pin is right, use: "
                f"rustunnel-py login {server} --pin {shown}",
                shown,
            ) from untrusted
        if not await trio.to_thread.run_sync(confirm, question, abandon_on_cancel=True):
            raise Untrusted(f"the key of {server} was not trusted; nothing was sent", shown) from untrusted
        return Pin(shown)
    return SystemTrust()


async def login(
    server: ServerAddress,
    token: Secret,
    path: Path,
    *,
    pin: Pin | None = None,
    ca: CaFile | None = None,
    confirm: Callable[[str], bool] | None = None,
    machine: str | None = None,
) -> Login:
    """Recognise the server, show it the token, and keep both in the file `path` (0600, replaced in one step).

    `confirm` asks a person a yes-or-no question (None: nobody is there); it may block. Raises Untrusted,
    TokenRefused, Unreachable, or ConfigError where the file cannot be written.
    """
    made = Login(server, token, await find_trust(server, pin=pin, ca=ca, confirm=confirm))
    await try_token(made, machine=machine)
    try:
        write_login(path, made)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror or error}") from error
    return made
