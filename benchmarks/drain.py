"""A local service that reads request bodies and throws them away: `python drain.py PORT`.

It understands just enough HTTP to know where a body of known length ends.
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 20))
    with connection:
        pending = b""
        while True:
            while b"\r\n\r\n" not in pending:
                count = connection.recv_into(buffer)
                if not count:
                    return
                pending += bytes(buffer[:count])
            head, _, pending = pending.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            if b"expect: 100-continue" in lines:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            left = length - len(pending)
            pending = b""
            while left > 0:
                count = connection.recv_into(buffer)
                if not count:
                    return
                left -= count
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngone\n")


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=256)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
