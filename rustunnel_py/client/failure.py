"""What ends the agent, or one try of it, and the exit code that goes with it.

    AgentFailure               exit code 1
    ├── Unreachable            a try that failed: no address, no answer, a broken protocol; made again
    ├── Untrusted              the certificate is not the one expected (3)
    ├── TokenRefused           `auth_error`: final (3)
    └── NameRefused            `tunnel_error` for a first registration: final (4)

A setting that cannot be used is `errors.ConfigError` (2).
"""

from __future__ import annotations

from rustunnel_py.errors import RustunnelError

ENDED = 0
FAILED = 1
USAGE = 2
REFUSED = 3
NAME_REFUSED = 4


class AgentFailure(RustunnelError):
    """The agent, or this try of it, cannot go on. The message is one sentence, already escaped."""

    exit_code = FAILED


class Unreachable(AgentFailure):
    """Made again after a pause."""


class Untrusted(AgentFailure):
    """The server proved to be somebody else, or could not prove who it is. Nothing was sent to it.

    `pin` is the pin of the key that it showed, for the sentence that says how to trust it; None if it showed none.
    """

    exit_code = REFUSED

    def __init__(self, message: str, pin: str | None = None) -> None:
        super().__init__(message)
        self.pin = pin


class TokenRefused(AgentFailure):
    exit_code = REFUSED


class NameRefused(AgentFailure):
    exit_code = NAME_REFUSED
