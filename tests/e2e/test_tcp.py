"""TCP tunnels through a whole server and our own agent: bytes, half-close, reset, refusal."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.our_agent import OurAgent, agent_config, our_agent, tcp
from tests.support.pairs import send_urgent
from tests.support.running_server import running_server
from tests.support.services import echo, pattern, tcp_service

if TYPE_CHECKING:
    from pathlib import Path


def public_port(agent: OurAgent) -> int:
    return int(agent.urls[0].rpartition(":")[2])


async def read_all(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    async for part in stream:
        received += part
    return bytes(received)


async def test_T01_the_visitor_closes_its_half_first_and_still_gets_everything(tmp_path: Path) -> None:
    payload = pattern(10_000_000)

    async def answer_after_eof(stream: trio.SocketStream) -> None:
        received = await read_all(stream)
        assert received == b"go"
        await stream.send_all(payload)

    async with (
        tcp_service(answer_after_eof) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):
        await visitor.send_all(b"go")
        await visitor.send_eof()
        assert await read_all(visitor) == payload


async def test_T02_the_local_service_closes_its_half_first(tmp_path: Path) -> None:
    payload = pattern(3_000_000)
    got = bytearray()
    done = trio.Event()

    async def greet_and_listen(stream: trio.SocketStream) -> None:
        await stream.send_all(b"welcome")
        await stream.send_eof()
        got.extend(await read_all(stream))
        done.set()

    async with (
        tcp_service(greet_and_listen) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):
        assert await read_all(visitor) == b"welcome"
        await visitor.send_all(payload)
        await visitor.send_eof()
        with trio.fail_after(30):
            await done.wait()
        assert bytes(got) == payload


@pytest.mark.parametrize("who", ["visitor", "local service"])
async def test_T03_a_reset_arrives_as_a_reset(tmp_path: Path, who: str) -> None:
    reset_seen = trio.Event()

    def reset(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()

    async def local(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        if who == "local service":
            reset(stream)
            return
        await stream.send_all(b"x")
        try:
            while await stream.receive_some(10):
                pass
        except trio.BrokenResourceError:
            reset_seen.set()

    async with (
        tcp_service(local) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):
        await visitor.send_all(b"hello")
        with trio.fail_after(30):
            if who == "visitor":
                assert await visitor.receive_some(1) == b"x"
                reset(visitor)
                await reset_seen.wait()
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await visitor.receive_some(1)


async def test_T06_a_local_service_that_speaks_first(tmp_path: Path) -> None:
    async def banner(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await stream.receive_some(1)

    async with (
        tcp_service(banner) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):
        with trio.fail_after(30):
            assert await visitor.receive_some(100) == b"220 ready\r\n"


async def test_T13_urgent_data_goes_through_a_tunnel_in_its_place(tmp_path: Path) -> None:
    """FTP and telnet send it to break something off: the byte at the mark belongs to the stream as all others do."""
    async with (
        tcp_service(echo) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
    ):
        with socket.create_connection(("127.0.0.1", public_port(agent)), timeout=30) as visitor:
            for _ in range(5):
                send_urgent(visitor, b"\xff\xf4", b"\xff", b"\xf2ABOR\r\n")
                received = b""
                while len(received) < 10:
                    received += await trio.to_thread.run_sync(visitor.recv, 10)
                assert received == b"\xff\xf4\xff\xf2ABOR\r\n"


async def test_T13_urgent_data_in_a_head_does_not_hold_up_its_answer(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        for _ in range(5):
            with socket.create_connection(
                ("127.0.0.1", server.ready.http_port), timeout=8
            ) as visitor:  # a head has 10 s
                send_urgent(visitor, b"GET / HT", b"T", b"P/1.1\r\nHost: nobody.example\r\n\r\n")
                assert (await trio.to_thread.run_sync(visitor.recv, 1000)).startswith(b"HTTP/1.1 404")


@pytest.mark.slow
async def test_megabytes_are_echoed_unchanged(tmp_path: Path) -> None:
    payload = pattern(20_000_000)
    async with (
        tcp_service(echo) as port,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(port))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):

        async def send() -> None:
            await visitor.send_all(payload)
            await visitor.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_all(visitor) == payload


async def test_T08_a_wished_port_is_given_and_free_again_after_a_clean_end(tmp_path: Path) -> None:
    async with tcp_service(echo) as port, running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server:
        async with our_agent(agent_config(server, tcp(port))) as agent:
            wished = public_port(agent)
        async with our_agent(agent_config(server, tcp(port, wished), machine="m2")) as agent:
            assert public_port(agent) == wished


async def test_T11_a_local_service_that_refuses_ends_the_visitors_connection(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, tcp(1))) as agent,
        await trio.open_tcp_stream("127.0.0.1", public_port(agent)) as visitor,
    ):
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some(1)
