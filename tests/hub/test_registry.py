"""Who owns which address: the registry alone, on a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from rustunnel_py.errors import Unavailable
from rustunnel_py.hub.registry import Places, Registry, Tunnel
from rustunnel_py.model.access import Caller, Role
from rustunnel_py.model.tunnel import HttpHost, Peer, Protocol, TcpPort
from tests.support.agents_house import NoPorts

if TYPE_CHECKING:
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.sessions import Session

HOLDER = cast("Session", object())
PEER = Peer("192.0.2.1", 4444)


class Bench:
    def __init__(self, tcp_range: tuple[int, int] = (20000, 20003), taken: set[int] | None = None) -> None:
        self.now = 1000.0
        self.ports = NoPorts(taken)
        self.registry = Registry(self.ports, tcp_range, lambda: self.now)
        self.registry.places = Places("t.example", 80, 443)
        self.link = cast("Link", object())

    def http(self, label: str, owner: str = "ann") -> Tunnel:
        return self.registry.create(self.registry.host_of(label), owner, Protocol.HTTP)

    def serve(self, tunnel: Tunnel) -> Tunnel:
        self.registry.serve(tunnel, HOLDER, self.link, PEER)
        return tunnel


def test_an_address_has_one_owner_and_is_found_by_host_address_and_id() -> None:
    bench = Bench()
    tunnel = bench.http("abc")
    assert bench.registry.find_host("abc.t.example") is tunnel
    assert bench.registry.find(HttpHost("abc.t.example")) is tunnel
    assert bench.registry.get(tunnel.id) is tunnel
    with pytest.raises(Unavailable) as taken:
        bench.http("abc", "bob")
    assert taken.value.code == "taken"


@pytest.mark.parametrize("host", ["abc", "evilt.example", "x.abc.t.example", "abc.t.example.evil", "t.example", ""])
def test_H44_only_the_exact_label_is_found(host: str) -> None:
    bench = Bench()
    bench.http("abc")
    assert bench.registry.find_host(host) is None


def test_a_held_address_is_neither_live_nor_free_until_the_hold_ends() -> None:
    bench = Bench()
    tunnel = bench.serve(bench.http("abc"))
    assert list(bench.registry.live()) == [tunnel]
    bench.registry.hold(tunnel, bench.link, 60)
    assert list(bench.registry.live()) == []
    assert tunnel.session is None
    assert tunnel.links.away_since == 1000.0
    assert bench.registry.get(tunnel.id) is tunnel
    bench.registry.sweep(1059.9)
    assert bench.registry.owns(tunnel)
    bench.registry.sweep(1060.0)
    assert not bench.registry.owns(tunnel)
    assert bench.registry.get(tunnel.id) is None
    bench.http("abc", "bob")


def test_a_served_again_tunnel_is_not_swept() -> None:
    bench = Bench()
    tunnel = bench.serve(bench.http("abc"))
    bench.registry.hold(tunnel, bench.link, 60)
    bench.serve(tunnel)
    bench.registry.sweep(5000)
    assert bench.registry.owns(tunnel)
    assert tunnel.links.away_since is None


def test_releasing_twice_or_late_harms_nobody() -> None:
    bench = Bench()
    old = bench.http("abc")
    bench.registry.release(old)
    bench.registry.release(old)
    new = bench.http("abc", "bob")
    bench.registry.release(old)
    assert bench.registry.find_host("abc.t.example") is new


def test_T08_ports_are_given_once_skipped_when_taken_and_usable_again_at_once() -> None:
    bench = Bench(taken={20001})
    tunnels = [bench.registry.create_tcp("ann") for _ in range(3)]
    assert {cast("TcpPort", tunnel.address).port for tunnel in tunnels} == {20000, 20002, 20003}
    with pytest.raises(Unavailable) as exhausted:
        bench.registry.create_tcp("ann")
    assert exhausted.value.code == "exhausted"
    bench.registry.release(tunnels[1])
    assert bench.registry.create_tcp("bob").address == tunnels[1].address
    with pytest.raises(Unavailable, match="by another program"):
        bench.registry.create(TcpPort(20001), "ann", Protocol.TCP)
    for tunnel in [*bench.registry.live()]:
        bench.registry.release(tunnel)
    assert bench.ports.open_ports == set()


def test_a_failed_port_leaves_nothing_behind() -> None:
    bench = Bench(taken={20001})
    with pytest.raises(Unavailable):
        bench.registry.create(TcpPort(20001), "ann", Protocol.TCP, tunnel_id="t")
    assert bench.registry.find(TcpPort(20001)) is None
    assert bench.registry.get("t") is None


def test_tcp_can_be_turned_off() -> None:
    with pytest.raises(Unavailable, match="turned off"):
        Bench((0, 0)).registry.create_tcp("ann")
    assert not Bench((0, 0)).registry.in_tcp_range(0)


def test_a_remembered_id_is_kept_unless_it_is_in_use() -> None:
    bench = Bench()
    first = bench.registry.create(HttpHost("a.t.example"), "ann", Protocol.HTTP, tunnel_id="id-1")
    second = bench.registry.create(HttpHost("b.t.example"), "ann", Protocol.HTTP, tunnel_id="id-1")
    assert first.id == "id-1"
    assert second.id != "id-1"


def test_generated_hosts_are_free_and_hard_to_guess() -> None:
    bench = Bench()
    hosts = {bench.registry.free_host().host for _ in range(100)}
    assert len(hosts) == 100
    assert all(len(host.partition(".")[0]) == 11 for host in hosts)


def test_what_a_caller_sees() -> None:
    bench = Bench()
    anns, bobs = bench.serve(bench.http("one", "ann")), bench.serve(bench.http("two", "bob"))
    assert bench.registry.visible_to(Caller("ann", Role.AGENT, token_id="t")) == [anns]
    assert bench.registry.visible_to(Caller("root", Role.ADMIN)) == [anns, bobs]
    assert bench.registry.visible_to(Caller("ann", Role.AGENT, anonymous=True)) == []
