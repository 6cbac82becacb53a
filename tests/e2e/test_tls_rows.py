"""TLS against a whole server: rows S01, S06-S09, S12-S14; the others are in tests/transport/test_tls.py."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.certs import keeper as keeping
from tests.support.certificates import make_pair
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import running_server
from tests.support.server_process import server_process
from tests.support.services import HttpClient, http_service
from tests.support.tls_hello import hello, hello_naming
from tests.support.whole_server import whole_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.running_server import RunningServer

HANDSHAKE, ALERT = 22, 21
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command: no TLS peer to play")


def first_answer(port: int, sent: bytes, *, fin: bool = False) -> bytes:
    """What the server says to these bytes, until it pauses or ends."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        try:
            sock.sendall(sent)
            if fin:
                sock.shutdown(socket.SHUT_WR)
            received = sock.recv(65536)
            while received and received[0] == ALERT and (part := sock.recv(65536)):
                received += part
        except ConnectionError:
            return b""
        return received


async def in_thread(function: Callable[..., bytes], *args: object, **more: object) -> bytes:
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(partial(function, *args, **more))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([b""], HANDSHAKE),
        ([b"127.0.0.1"], HANDSHAKE),
        ([b"nobody.example"], HANDSHAKE),
        ([b"a" * 255], HANDSHAKE),
        ([b"a" * 256], ALERT),
        ([b"app.localhost", b"other.localhost"], ALERT),
        ([b"app\0.localhost"], ALERT),
        ([b"../../etc/passwd"], HANDSHAKE),
    ],
    ids=["empty", "address", "unknown", "255", "256", "two", "NUL", "path"],
)
async def test_S01_odd_names_get_the_default_certificate_or_an_alert(
    tmp_path: Path, names: list[bytes], kind: int
) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        answer = await in_thread(first_answer, whole.server.ready.https_port, hello_naming(*names))
        assert answer[:1] in (bytes([kind]), b""), answer[:20]
        assert (answer == b"") <= (kind == ALERT)


def test_S01_a_name_that_is_no_text_costs_its_handshake_and_one_line_of_the_log(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        for _ in range(50):
            assert first_answer(server.https_port, hello_naming(b"\xff\xfe.localhost"))[:1] == bytes([ALERT])
        server.wait_logged("an exception was ignored by the interpreter")
        assert server.is_alive()
        assert len(server.log) < 20
        assert all("level" in line for line in server.log)  # no bare traceback


async def test_S01_no_name_serves_any_tunnel_and_a_name_only_its_own(tmp_path: Path) -> None:
    async with (
        http_service() as one,
        http_service() as two,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(one.port, "one"), http(two.port, "two"))),
    ):

        async def ask(name: str | None, host: str) -> int:
            context = server.client_context()
            context.check_hostname = False
            raw = await trio.open_tcp_stream("127.0.0.1", server.ready.https_port)
            async with trio.SSLStream(raw, context, server_hostname=name, https_compatible=True) as stream:
                return (await HttpClient(stream).request(host)).status

        assert await ask(None, "one.localhost") == 200
        assert await ask("one.localhost", "one.localhost") == 200
        assert await ask("one.localhost", "two.localhost") == 421  # never another tenant's content
        assert await ask("nobody.localhost", "nobody.localhost") == 404
        assert await ask("127.0.0.1", "two.localhost") == 200
        assert len(two.seen) == 1


def finish_spoilt(port: int) -> bytes:
    """A handshake whose last record (Finished) arrives with one bit changed; what the server says then."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        spoilt = bytearray(outgoing.read())
        spoilt[-1] ^= 1
        sock.sendall(spoilt)
        received = b""
        while part := sock.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\xff\xff" + b"\x01" * 65535,
        b"\x16\x03\x01\x00\x00" * 5000,
        b"\x17\x03\x03\x00\x20" + b"x" * 32,
        b"\x15\x03\x01\x00\x02\x01\x00" * 5000,
        b"\x80\x2e\x01\x00\x02" + b"\0" * 43,
        b"\x00" * 4096,
    ],
    ids=["record over 2^14", "empty records", "early ciphertext", "alerts", "SSLv2", "zeros"],
)
async def test_S06_garbage_in_the_handshake_is_closed(tmp_path: Path, sent: bytes) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        answer = await in_thread(first_answer, whole.server.ready.https_port, sent)
        assert answer[:1] in (b"", bytes([ALERT]))


async def test_S06_a_truncated_hello_and_a_changed_bit_in_finished(tmp_path: Path) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        port = whole.server.ready.https_port
        assert (await in_thread(first_answer, port, hello()[:100], fin=True))[:1] in (b"", bytes([ALERT]))
        # What is encrypted is an alert: two bytes, their type, and the tag of 16.
        assert (await in_thread(finish_spoilt, port)).startswith(b"\x17\x03\x03\x00\x13")


async def test_S06_flipped_bits_in_a_hello_never_crash(tmp_path: Path) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        plain = hello()

        def attack() -> bytes:
            for position in range(0, len(plain), 5):
                spoilt = bytearray(plain)
                spoilt[position] ^= 0x41
                with socket.create_connection(("127.0.0.1", whole.server.ready.https_port), 10) as sock:
                    sock.sendall(spoilt)
                    sock.shutdown(socket.SHUT_WR)
            return b""

        await in_thread(attack)


ABORTS = 150


@pytest.mark.slow
@pytest.mark.parametrize("state", ["connected", "half a hello", "hello", "finished", "served"])
async def test_S07_aborts_in_each_state_leave_nothing_behind(tmp_path: Path, state: str) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():

        def attack() -> bytes:
            first = hello()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            for _ in range(ABORTS):
                raw = socket.create_connection(("127.0.0.1", whole.server.ready.https_port), 10)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock = raw
                if state == "half a hello":
                    raw.sendall(first[:50])
                elif state == "hello":
                    raw.sendall(first)
                    raw.recv(10)
                elif state in ("finished", "served"):
                    sock = context.wrap_socket(raw, server_hostname="app.localhost")
                    if state == "served":
                        sock.sendall(b"GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
                        sock.recv(10)
                sock.close()
            return b""

        await in_thread(attack)


def s_client(port: int, *options: str, lines: list[str], pause: float = 0.0) -> str:
    """What `openssl s_client` shows; R renegotiates, K updates keys."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "app.localhost", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as client:
        assert client.stdin is not None
        time.sleep(0.3)
        try:
            for line in lines:
                client.stdin.write(line + "\n")
                client.stdin.flush()
                time.sleep(pause)
        except BrokenPipeError:
            pass
        try:
            shown, _ = client.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            client.kill()
            shown, _ = client.communicate()
        return shown


@needs_openssl
@pytest.mark.slow
async def test_S08_renegotiation_is_refused(tmp_path: Path) -> None:
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        port = whole.server.ready.https_port
        shown = await trio.to_thread.run_sync(partial(s_client, port, "-tls1_2", lines=["R"], pause=0.5))
        assert "RENEGOTIATING" in shown
        assert "no renegotiation" in shown or "handshake failure" in shown or "alert" in shown, shown[-600:]


@needs_openssl
@pytest.mark.slow
async def test_S08_a_flood_of_key_updates_keeps_nobody_waiting(tmp_path: Path) -> None:
    """OpenSSL has no limit of its own. Ours: the share of a pass, and deadlines that only a request moves."""
    async with whole_server(tmp_path) as whole, whole.leaves_nothing():
        port = whole.server.ready.https_port
        shown = ""

        async def flood() -> None:
            nonlocal shown
            shown = await trio.to_thread.run_sync(partial(s_client, port, "-tls1_3", lines=["K"] * 100, pause=0.01))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            while not shown:
                with trio.fail_after(5):
                    assert (await whole.get("nobody")).status == 404
        assert shown.count("KEYUPDATE") >= 50  # it reads several lines at once when the machine is busy


async def test_S09_handshakes_on_the_control_port_are_limited_per_source(tmp_path: Path) -> None:
    async with whole_server(tmp_path, limits={"ip_handshakes_per_second": 1e-6}) as whole, await whole.raw_tls():
        second = await trio.open_tcp_stream("127.0.0.1", whole.server.ready.control_port)
        async with second:
            with pytest.raises(trio.BrokenResourceError):
                await trio.SSLStream(second, whole.server.client_context()).do_handshake()


@needs_openssl
@pytest.mark.slow
async def test_S12_early_data_is_off(tmp_path: Path) -> None:
    async with whole_server(tmp_path / "data") as whole, whole.leaves_nothing():
        port = whole.server.ready.https_port
        kept, early = str(tmp_path / "session.pem"), tmp_path / "early"
        early.write_bytes(b"POST /early HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 0\r\n\r\n")
        first = await trio.to_thread.run_sync(
            partial(s_client, port, "-tls1_3", "-sess_out", kept, "-ign_eof", lines=["x", ""], pause=0.3)
        )
        assert "Max Early Data: 0" in first
        second = await trio.to_thread.run_sync(
            partial(s_client, port, "-tls1_3", "-sess_in", kept, "-early_data", str(early), lines=["Q"], pause=0.3)
        )
        assert "Early data was accepted" not in second


def put_pair(folder: Path, stem: str, *names: str, days: int = 30, key_of: str | None = None) -> bytes:
    """Write a pair into a folder, the key last; gives the certificate as DER."""
    pem, key = make_pair(names, days=days)
    (folder / f"{stem}.pem").write_bytes(pem)
    if key_of is None:
        (folder / f"{stem}.key").write_bytes(key)
    return ssl.PEM_cert_to_DER_cert(pem.decode())


async def shown_for(server: RunningServer, name: str | None) -> bytes:
    """The certificate that a visitor sees; the whole handshake must succeed."""

    def look() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        address = ("127.0.0.1", server.ready.https_port)
        with socket.create_connection(address, 10) as raw, context.wrap_socket(raw, server_hostname=name) as sock:
            return sock.getpeercert(True) or b""

    return await trio.to_thread.run_sync(look)


async def test_S13_a_folder_of_certificates_is_reloaded_and_bad_pairs_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "WATCH_SECONDS", 0.02)
    folder = tmp_path / "certificates"
    folder.mkdir()
    first = put_pair(folder, "shop", "shop.example", "*.shop.example")
    shaken = 0
    stopping = False

    async def load(server: RunningServer) -> None:
        """Visitors all the while: none of their handshakes may fail."""
        nonlocal shaken
        while not stopping:
            await shown_for(server, "www.shop.example")
            shaken += 1

    async def until_shown(server: RunningServer, name: str, wanted: bytes) -> None:
        with trio.fail_after(20):
            while await shown_for(server, name) != wanted:
                pass

    async with (
        running_server(tmp_path / "data", tls={"cert_folder": str(folder)}) as server,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(load, server)
        own = await shown_for(server, None)
        assert await shown_for(server, "shop.example") == first
        assert await shown_for(server, "WWW.shop.EXAMPLE") == first
        assert await shown_for(server, "a.b.shop.example") == own
        assert await shown_for(server, "elsewhere.example") == own

        second = put_pair(folder, "shop", "shop.example", "*.shop.example")  # rotated
        await until_shown(server, "shop.example", second)

        async def stays_after(change: Callable[[], object]) -> None:
            """The change is seen: a pair that is changed after it shows up, and the old one is still there."""
            change()
            marker = put_pair(folder, "marker", "marker.example")
            await until_shown(server, "marker.example", marker)
            assert await shown_for(server, "shop.example") == second

        await stays_after(lambda: put_pair(folder, "shop", "shop.example", key_of="another"))  # of another key
        half = (folder / "shop.pem").read_bytes()
        await stays_after(lambda: (folder / "shop.pem").write_bytes(half[: len(half) // 2]))
        await stays_after(lambda: (folder / "shop.key").unlink())
        await stays_after(lambda: put_pair(folder, "shop", "shop.example", days=-1))  # expired
        await stays_after(lambda: (folder / "shop.pem").write_bytes(b""))

        third = put_pair(folder, "shop", "shop.example")
        await until_shown(server, "shop.example", third)
        for file in folder.glob("shop.*"):
            file.unlink()
        await until_shown(server, "shop.example", own)
        stopping = True
    assert shaken > 0


async def test_S13_the_main_pair_is_rotated_under_load_and_by_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "WATCH_SECONDS", 0.02)
    pairs = {}
    for name in ("one", "two"):  # as certbot keeps them: `live` holds links
        (tmp_path / name).mkdir()
        pairs[name] = put_pair(tmp_path / name, "pair", "localhost")
    live = tmp_path / "live"
    live.symlink_to("one")
    pem, key = str(live / "pair.pem"), str(live / "pair.key")
    async with running_server(tmp_path / "data", tls={"cert_path": pem, "key_path": key}) as server:
        assert await shown_for(server, "a.localhost") == pairs["one"]
        (tmp_path / "next").symlink_to("two")
        os.replace(tmp_path / "next", live)
        with trio.fail_after(20):
            while await shown_for(server, "a.localhost") != pairs["two"]:
                pass


async def test_S14_a_client_certificate_is_neither_asked_for_nor_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    put_pair(folder, "me", *(f"name-{number}.example" for number in range(500)))  # giant, too
    async with running_server(tmp_path / "data") as server:
        context = server.client_context()
        context.load_cert_chain(folder / "me.pem", folder / "me.key")
        raw = await trio.open_tcp_stream("127.0.0.1", server.ready.https_port)
        async with trio.SSLStream(raw, context, server_hostname="localhost", https_compatible=True) as stream:
            assert (await HttpClient(stream).request("localhost")).status == 200
