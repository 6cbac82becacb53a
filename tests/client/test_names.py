"""What is asked for, and for how long; how long the agent waits."""

from __future__ import annotations

import pytest
import trio

from rustunnel_py.client.backoff import LONGEST_SECONDS, Backoff
from rustunnel_py.client.config import HttpTunnel, LocalAddress, TcpTunnel, Tunnel
from rustunnel_py.client.local import LocalService, Resolver
from rustunnel_py.client.names import GIVEN_NAME_TRIES, Wish, other_scheme, usable
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.wire.control import TunnelRegistered


async def wish_for(tunnel: Tunnel) -> Wish:
    async with open_pump() as pump, trio.open_nursery() as nursery:
        return Wish(tunnel, LocalService(pump, nursery, Resolver(), tunnel.local))


def given(url: str, port: int | None = None) -> TunnelRegistered:
    return TunnelRegistered(request_id="r", tunnel_id="t", public_url=url, assigned_port=port)


async def test_chosen_name_is_never_given_up() -> None:
    wish = await wish_for(HttpTunnel(LocalAddress("a", 1), "abc"))
    wish.given(given("http://abc.t"))
    assert not any(wish.refused() for _ in range(100))
    assert wish.frame("r", https=False).subdomain == "abc"


@pytest.mark.parametrize("tunnel", [HttpTunnel(LocalAddress("a", 1)), TcpTunnel(LocalAddress("a", 1))])
async def test_given_name_is_asked_for_again_and_given_up_after_some_refusals(tunnel: Tunnel) -> None:
    wish = await wish_for(tunnel)
    wish.given(given("http://k3x9.t:8080", 20017 if isinstance(tunnel, TcpTunnel) else None))
    assert (wish.name, wish.port) in (("k3x9", None), (None, 20017))
    assert [wish.refused() for _ in range(GIVEN_NAME_TRIES)] == [False] * (GIVEN_NAME_TRIES - 1) + [True]
    frame = wish.frame("r", https=False)
    assert (frame.subdomain, frame.port) == (None, None)


@pytest.mark.parametrize("url", ["javascript:x", "http://[::1", "http://-a.t", "http://", ""])
async def test_address_that_holds_no_name_teaches_none(url: str) -> None:
    wish = await wish_for(HttpTunnel(LocalAddress("a", 1)))
    wish.given(given(url))
    assert wish.name is None


def test_other_scheme_is_known_on_the_schemes_own_ports_only() -> None:
    assert other_scheme("https://a.t") == "http://a.t"
    assert other_scheme("https://a.t:8443") is None
    assert other_scheme("tcp://a.t:1") is None
    assert not usable("http://a.t/path")


def test_F08_backoff_grows_to_15_seconds_and_stays_close_to_a_short_outage() -> None:
    backoff = Backoff(lambda: 0.999)
    pauses = [backoff.pause() for _ in range(20)]
    assert max(pauses) <= LONGEST_SECONDS
    assert pauses[-1] > LONGEST_SECONDS * 0.99
    passed = 0.0
    for pause in pauses:
        if passed <= 5.0:
            assert pause <= 2.3  # so that half the tries of an outage of 5 s come within 2 s, whatever the dice say
        passed += pause
    backoff.reset()
    assert backoff.pause() < 0.31
    assert Backoff(lambda: 0.0).pause() == pauses[0] * 0.5 / (0.5 + 0.999 / 2)
