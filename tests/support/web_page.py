"""A local service for a real browser: a page that opens a WebSocket and an event stream and reports what it got.

As a program it prints its port, then each report as a line of JSON.
"""

from __future__ import annotations

import trio

from tests.support.services import tcp_service
from tests.support.websocket_service import websocket_echo

PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<p id="said">waiting</p>
<script>
const got = {socket: [], events: [], early: performance.now()};
function report() {
  if (got.socket.length < 3 || got.events.length < 3) return;
  document.getElementById('said').textContent = JSON.stringify(got);
  fetch('/report', {method: 'POST', body: JSON.stringify(got)});
}
const socket = new WebSocket((location.protocol === 'https:' ? 'wss://' : 'ws://') + location.host + '/ws', 'chat');
socket.binaryType = 'arraybuffer';
socket.onopen = () => { socket.send('hello'); socket.send('x'.repeat(100000)); socket.send(new Uint8Array(70000)); };
socket.onmessage = (message) => {
  got.socket.push(typeof message.data === 'string' ? message.data.length : 'binary ' + message.data.byteLength);
  got.protocol = socket.protocol; got.extensions = socket.extensions;
  report();
};
const events = new EventSource('/events');
events.onmessage = (message) => { got.events.push(message.data);
  if (got.events.length === 3) { events.close(); report(); }
};
</script></html>"""


async def serve(stream: trio.SocketStream) -> None:
    held = bytearray()
    while True:
        while b"\r\n\r\n" not in held:
            part = await stream.receive_some(65536)
            if not part:
                return
            held += part
        target = held.split(b" ")[1]
        if target == b"/ws":
            await websocket_echo(stream, bytes(held))
            return
        head, _, rest = bytes(held).partition(b"\r\n\r\n")
        held[:] = rest
        size = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(held) < size:
            held += await stream.receive_some(65536)
        body = bytes(held[:size])
        del held[:size]
        if target == b"/report":
            print(body.decode(), flush=True)
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif target == b"/events":
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for number in range(3):
                event = b"data: event %d\n\n" % number
                await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
                await trio.sleep(0.05)
            await stream.send_all(b"0\r\n\r\n")
        else:
            kind = b"Content-Type: text/html; charset=utf-8"
            await stream.send_all(b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(PAGE), PAGE))


async def main() -> None:
    async with tcp_service(serve) as port:
        print(port, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
