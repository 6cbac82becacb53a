"""The transport imports and runs where Linux's names are missing, as on macOS and Windows."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import rustunnel_py

# trio keeps its own epoll: the names are away while our modules are imported, and come back for its loop.
SCRIPT = """
import select, socket
import trio

names = [(select, "epoll", "EPOLL"), (socket, "TCP_QUICKACK", "MSG_")]
taken = [(module, name) for module, *heads in names for name in vars(module) if name.startswith(tuple(heads))]
kept = [(module, name, getattr(module, name)) for module, name in taken]
for module, name in taken:
    delattr(module, name)

class Socket(socket.socket):
    def __getattribute__(self, name):
        if name == "sendmsg":
            raise AttributeError(name)
        return super().__getattribute__(name)

from rustunnel_py.transport import control_socket, front, listen, pump, relay, stream, tcp, tls, trunk, websocket_trunk

assert not pump.has_epoll()
assert tcp.TCP_QUICKACK is None
tcp._GATHERS = False
for module, name, value in kept:
    setattr(module, name, value)
socket.socket = Socket

async def main():
    async with pump.open_pump("portable") as running:
        accepted = []
        (sock,) = listen.bind("127.0.0.1", 0, key="k")
        listen.Listener(running, sock, lambda new, peer: accepted.append(new))
        connection = tcp.connect_tcp(running, socket.AF_INET, sock.getsockname(), tcp.SILENT)
        client = stream.ConnectionStream(connection)
        connection.quickack = True
        await client.send_all(b"head")
        running.call(connection, lambda: (connection.send(b"small"), connection.send(bytes(100_000))))
        await client.send_eof()
        while not accepted:
            await trio.lowlevel.checkpoint()
        server = stream.ConnectionStream(tcp.TcpConnection(running, accepted[0]))
        got = b""
        while piece := await server.receive_some():
            got += piece
        assert got == b"headsmall" + bytes(100_000)
        await server.send_all(b"x")
        assert await client.receive_some() == b"x"
        assert running.crashes == 0

trio.run(main)
print("served")
"""


def test_it_runs_without_the_names_of_linux() -> None:
    root = pathlib.Path(rustunnel_py.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "served\n", done.stderr
