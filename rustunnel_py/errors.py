"""Every error that this package raises on purpose.

RustunnelError
├── ConfigError            a setting: names the key, the value, what is allowed (exit code 2)
│   └── PortInUse          a listener that cannot bind: names the key to change
├── WireError              a peer broke its protocol
│   ├── ControlError       a control frame
│   ├── YamuxError         a yamux frame; carries the go-away code
│   └── HttpError          an HTTP/1.1 message; carries status and reason code
├── HopError               one visit failed: names the hop, the status, a stable code
├── LinkLost               a pipe or connection ended; what a sink hears in `lost`
│   ├── Closed             ended on purpose by this side
│   ├── Reset              ended by the peer, or by a cut socket
│   ├── Expired            a deadline passed
│   ├── Refused            it never came to be: nobody answered at that address
│   └── Crash              a callback of ours raised; counted by its guard
├── Denied                 a use-case said no; carries a status and what the caller may read
│   ├── NotFound           nothing the caller may see has that id or name
│   ├── Forbidden          the caller is known and may not
│   ├── BadCredentials     the caller is not known
│   ├── BadRequest         a value that cannot be used
│   └── Unavailable        an address cannot be had: taken, reserved, malformed, range used up
└── StoreError             SQLite could not do it
    └── StoreBroken        a file that cannot be used at all
"""

from __future__ import annotations

import enum


class RustunnelError(Exception):
    """Anything below; never raised itself."""


class ConfigError(RustunnelError):
    """A setting cannot be used. `key` is the dotted key (`server.http_port`), or a flag or variable."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class PortInUse(ConfigError):
    """Nothing can listen there: the port is taken, or it may not be used."""


class WireError(RustunnelError):
    """A peer broke its protocol."""


class ControlError(WireError):
    """A control frame that this side cannot accept."""


class YamuxError(WireError):
    """A frame that ends a yamux session. `code` goes into the go-away (1 protocol, 2 internal)."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class HttpError(WireError):
    """An HTTP/1.1 message that is refused.

    `status` is what a front answers (for a reply: what it would have been), `code` is a stable word
    such as `bad-content-length`, `detail` a sentence that quotes nothing of the input unescaped.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class Hop(enum.Enum):
    """Who failed, on the way from the visitor to the local service."""

    EDGE = "edge"
    AGENT = "agent"
    LOCAL_SERVICE = "local service"


class HopError(RustunnelError):
    """One visit failed. The edge turns it into a page or a JSON answer; links raise or report it.

    `code` is stable (`local-service-refused`), `message` a sentence the visitor may read.
    `retry_after` is in seconds, for a 503 or 429.
    """

    def __init__(self, hop: Hop, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{hop.value}: {status} {code}: {message}")
        self.hop = hop
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class LinkLost(RustunnelError):
    """A pipe ended uncleanly; what its sink hears in `lost`."""


class Closed(LinkLost):
    """It was ended by this side."""


class Reset(LinkLost):
    """The peer reset it, or the socket below was cut."""


class Expired(LinkLost):
    """A deadline passed."""


class Refused(LinkLost):
    """It never came to be: the address answered with a refusal or not at all."""


class Crash(LinkLost):
    """A callback raised; `__cause__` is what it raised. Never retried, counted by the guard."""


class Denied(RustunnelError):
    """A use-case said no. The message may be shown to the caller as it is."""

    status = 400


class BadRequest(Denied):
    """A value of the caller's is of the right type and still cannot be used."""


class NotFound(Denied):
    """Nothing that the caller may see answers to that id or name."""

    status = 404


class Forbidden(Denied):
    """The caller is known and may not."""

    status = 403


class BadCredentials(Denied):
    """The caller is not known."""

    status = 401


class Unavailable(Denied):
    """An address cannot be had: taken, reserved, malformed, or the range is used up.

    `code` is one of `taken`, `reserved`, `malformed`, `exhausted`, `limit`, `unsupported`, `scope`.
    """

    status = 409

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StoreError(RustunnelError):
    """SQLite could not do it; the transaction was rolled back. `__cause__` is its own error."""


class StoreBroken(StoreError):
    """A database file cannot be used at all: damaged, newer than this program, not a database."""
