"""The built-in page shows the request, escapes it and loads nothing."""

from __future__ import annotations

import html

import h11
import trio

from rustunnel_py.client.demo import serve_demo


async def ask(stream: trio.SocketStream, text: bytes) -> tuple[h11.Response, bytes]:
    machine = h11.Connection(h11.CLIENT)
    method = text.split(b" ", 1)[0]
    machine.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    machine.send(h11.EndOfMessage())
    await stream.send_all(text)
    head: h11.Response | None = None
    body = b""
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            break
    assert head is not None
    return head, body


async def test_page_shows_the_request_escaped_and_keeps_the_connection(nursery: trio.Nursery) -> None:
    local = await nursery.start(serve_demo)
    async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
        request = b"POST /a?<script> HTTP/1.1\r\nHost: x\r\nX-Evil: <img src=x>\r\nContent-Length: 9\r\n\r\n<b>hi</b>"
        head, body = await ask(stream, request)
        assert head.status_code == 200
        text = body.decode()
        assert "<script" not in text
        assert "<img" not in text
        assert "<b>hi" not in text
        assert html.escape("/a?<script>") in text
        assert html.escape("X-Evil: <img src=x>") in text
        assert html.escape("<b>hi</b>") in text
        policy = dict(head.headers)[b"content-security-policy"]
        assert b"default-src 'none'" in policy
        assert b"unsafe" not in policy
        head, body = await ask(stream, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (head.status_code, body) == (200, b"")
        head, body = await ask(stream, b"GET /again HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"/again" in body


async def test_bad_request_is_answered_and_the_service_goes_on(nursery: trio.Nursery) -> None:
    local = await nursery.start(serve_demo)
    async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
        head, _ = await ask(stream, b"GET  / HTTP/1.1 x\r\n\r\n")
        assert head.status_code == 400
    async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
        head, _ = await ask(stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.status_code == 200
