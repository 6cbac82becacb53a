"""What every socket on the pump is to those who use it, plain or TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rustunnel_py.wire.sink import Pipe

if TYPE_CHECKING:
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.wire.sink import Buffer


class Connection(Pipe, Protocol):
    """A socket on the pump. Each of the ends below gives one `gone(connection)` to whoever made it."""

    due: float  # on the pump's clock; inf: no deadline. When it passes, the sink hears `expired`
    peer: Peer
    local: Peer

    @property
    def delivered(self) -> int:
        """Bytes that the peer has acknowledged. Asks the kernel: for who looks seldom, to tell a slow reader."""

    def push(self, data: Buffer) -> bool:
        """`send`, but written now and not with the others at the end of the pass."""

    def close(self) -> None:
        """Flush, then end cleanly; nothing is heard."""

    def close_lingering(self) -> None:
        """After an answer that came before the end of input: FIN, read and drop for 2 s, then end (rule 11)."""

    def cut(self) -> None:
        """Flush, then end uncleanly: TLS without close_notify, a RST on plain TCP (rule 12)."""

    def abort(self) -> None:
        """At once; unsent output is dropped."""
