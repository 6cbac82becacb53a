"""`python -m benchmarks.roomy_server serve`: the server, but an agent may register a thousand tunnels at once.

As it is, an agent that asks for more than `REGISTRATIONS_BURST` waits a fifth of a second for each further one.
"""

from __future__ import annotations

from rustunnel_py.agents import rustunnel
from rustunnel_py.cli import main

if __name__ == "__main__":
    rustunnel.REGISTRATIONS_BURST = rustunnel.FRAMES_BURST = 2000.0
    main()
