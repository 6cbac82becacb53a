"""A local service for bulk: `PUT /` answers the SHA-256 of its body, `GET /SIZE` so many bytes of a pattern.

`GET /SIZE/chunked` does it in chunks. One thread a connection; prints its port first.
"""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from typing import IO

BLOCK = bytes((i * 31 + (i >> 8)) & 255 for i in range(1 << 20))


def serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_connection, args=(sock,), daemon=True).start()


def _connection(sock: socket.socket) -> None:
    with sock, io.BufferedReader(socket.SocketIO(sock, "r"), 1 << 20) as lines:
        try:
            while head := _head(lines):
                method, target, headers = head
                if method == "PUT":
                    answer = _digest(lines, headers)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
                else:
                    size, _, form = target[1:].partition("/")
                    _pour(sock, int(size), chunked=form == "chunked")
        except OSError:
            pass


def _head(lines: IO[bytes]) -> tuple[str, str, dict[str, str]] | None:
    first = lines.readline()
    if not first:
        return None
    method, target, _ = first.decode().split(" ")
    headers: dict[str, str] = {}
    while (line := lines.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return method, target, headers


def _digest(lines: IO[bytes], headers: dict[str, str]) -> bytes:
    digest = hashlib.sha256()
    if "content-length" in headers:
        _take(lines, int(headers["content-length"]), digest)
    else:
        while size := int(lines.readline(), 16):
            _take(lines, size, digest)
            lines.readline()
        lines.readline()
    return digest.hexdigest().encode()


def _take(lines: IO[bytes], size: int, digest: hashlib._Hash) -> None:
    while size:
        part = lines.read(min(size, 1 << 20))
        if not part:
            raise OSError("cut")
        digest.update(part)
        size -= len(part)


def _pour(sock: socket.socket, size: int, *, chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    sock.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
    while size:
        part = BLOCK[: min(size, len(BLOCK))]
        sock.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        size -= len(part)
    if chunked:
        sock.sendall(b"0\r\n\r\n")


if __name__ == "__main__":
    serve()
