"""A self-hosted tunnel server.

The floors of the house; every import points down, siblings do not know each other:

    cli
    server            client                    wiring; the agent program
    edges   agents   api   certs                entry points
    hub                                         use-cases: registry, sessions, gate, accounts
    transport         store                     sockets, pump, trio streams; SQLite
    config                                      typed TOML
    wire              model                     bytes <-> events; plain data and rules
    errors

What carries traffic are plain objects that take bytes and call a sink (`wire/sink.py` has the
contract); what decides and keeps house is trio. `docs/architecture.md` follows one request.
"""

from rustunnel_py import compiled as compiled  # first: it decides what the imports after it get

__version__ = "0.1.0"
