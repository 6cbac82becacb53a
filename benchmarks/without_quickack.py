"""`python -m benchmarks.without_quickack serve`: the server, but it leaves delayed acknowledgements on."""

from __future__ import annotations

from rustunnel_py.cli import main
from rustunnel_py.transport.tcp import SocketConnection


def leave_it(self: SocketConnection) -> None:
    """In place of the quick acknowledgement of what was just read."""


if __name__ == "__main__":
    SocketConnection._acknowledge = leave_it  # type: ignore[method-assign]
    main()
