"""The page that `try` shows when it is given no local service: it tells what request it got.

A small HTTP service on loopback. Everything it shows is escaped, nothing outside is loaded, no script runs.
"""

from __future__ import annotations

import base64
import hashlib
import html
from http import HTTPStatus

import h11
import trio

from rustunnel_py.client.config import LocalAddress

HEAD_MAX = 64 * 1024  # above what an edge lets through
IDLE_SECONDS = 75.0  # longer than a tunnel keeps a stream idle, so that the tunnel decides
BODY_SHOWN = 2048  # bytes of the request's body that the page repeats
RECEIVE_SIZE = 64 * 1024
CONNECTIONS_MAX = 200  # it is a demo; more visitors wait in the listen queue
BACKLOG = 128

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:48em;margin:3em auto;padding:0 1em;color:#223}"
    "pre{background:#f3f4f8;padding:1em;overflow-x:auto;border-radius:6px}h1{font-size:1.5em}"
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def serve_demo(*, task_status: trio.TaskStatus[LocalAddress] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; `started` with the address, whose port is free choice of the system."""
    places = trio.CapacityLimiter(CONNECTIONS_MAX)
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        async with trio.open_nursery() as visits:
            task_status.started(LocalAddress("127.0.0.1", listener.getsockname()[1]))
            while True:
                async with places:  # someone may have to leave first
                    pass
                try:
                    accepted, _ = await listener.accept()
                except OSError:  # the visitor has left again, or there is no descriptor free
                    await trio.sleep(0.1)
                    continue
                visits.start_soon(_serve_one, trio.SocketStream(accepted), places)


async def _serve_one(stream: trio.SocketStream, places: trio.CapacityLimiter) -> None:
    async with places, stream:
        machine = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        try:
            while await _answer_one(machine, stream):
                machine.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if machine.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await _send(machine, stream, error.error_status_hint, b"bad request\n", "text/plain")
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass


async def _answer_one(machine: h11.Connection, stream: trio.SocketStream) -> bool:
    """One request and its answer; False when the connection ends."""
    request: h11.Request | None = None
    body = bytearray()
    size = 0
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            if machine.they_are_waiting_for_100_continue:
                await stream.send_all(machine.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            with trio.fail_after(IDLE_SECONDS):
                machine.receive_data(await stream.receive_some(RECEIVE_SIZE))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            body += event.data[: BODY_SHOWN - len(body)]
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            shown = page(request, bytes(body), size)
            await _send(machine, stream, 200, shown, "text/html; charset=utf-8", head_only=request.method == b"HEAD")
            return machine.our_state is h11.DONE and machine.their_state is h11.DONE
        else:
            return False


async def _send(
    machine: h11.Connection, stream: trio.SocketStream, status: int, body: bytes, kind: str, *, head_only: bool = False
) -> None:
    head = h11.Response(
        status_code=status,
        reason=HTTPStatus(status).phrase,
        headers=[
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ],
    )
    parts = [
        machine.send(head),
        machine.send(h11.Data(data=b"" if head_only else body)),
        machine.send(h11.EndOfMessage()),
    ]
    await stream.send_all(b"".join(part for part in parts if part))


def page(request: h11.Request, body: bytes, size: int) -> bytes:
    """The page for one request; `body` is the beginning of the `size` bytes that it brought."""
    method, target = (html.escape(part.decode("latin-1")) for part in (request.method, request.target))
    lines = "\n".join(
        html.escape(f"{name.decode('latin-1')}: {value.decode('latin-1')}")
        for name, value in request.headers.raw_items()
    )
    brought = ""
    if size:
        clipped = f"the first {len(body)} of {size} bytes" if size > len(body) else f"{size} bytes"
        brought = f"<h2>Body, {clipped}</h2><pre>{html.escape(body.decode('utf-8', 'replace'))}</pre>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>It works</title><style>{_STYLE}</style>'
        "</head><body><h1>Your tunnel works</h1>"
        "<p>This page is served on your machine and reached you through the tunnel. The request was:</p>"
        f"<pre>{method} {target} HTTP/{html.escape(request.http_version.decode('latin-1'))}\n{lines}</pre>"
        f"{brought}<p>Give a port to show your own service: <code>rustunnel-py try 3000</code></p></body></html>\n"
    ).encode()
