from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import BadCredentials, BadRequest, Forbidden, NotFound, Unavailable
from rustunnel_py.hub import accounts as accounts_module
from rustunnel_py.hub.accounts import LATE_SECONDS, WRONG_BURST, Accounts
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.store.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio.testing import MockClock

ADMIN = Secret("a-token-of-more-than-22-characters")
PEER = Peer("192.0.2.7", 5000)
OTHER = Peer("198.51.100.9", 5000)
NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


class Wall:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def store(tmp_path: Path, wall: Wall) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "rustunnel.db", tmp_path / "captured.db", now=wall) as store:
        yield store


@pytest.fixture
def accounts(store: Store, wall: Wall) -> Accounts:
    return Accounts(store, ADMIN, True, now=wall)


async def is_refused(accounts: Accounts, token: str, peer: Peer = PEER) -> None:
    for way in (accounts.authenticate, accounts.authenticate_agent):
        with pytest.raises(BadCredentials) as caught:
            await way(Secret(token), peer)
        assert str(caught.value) == "invalid token"


async def test_the_admin_token_stands_for_the_first_user(accounts: Accounts, store: Store) -> None:
    admin = Caller(owner=store.accounts.first, role=Role.ADMIN)
    assert await accounts.authenticate(ADMIN, PEER) == admin
    assert await accounts.authenticate_agent(ADMIN, PEER) == admin


async def test_a_token_has_a_user_of_its_own(accounts: Accounts, store: Store) -> None:
    first, first_secret = await accounts.create_token("one", "api-*")
    second, _ = await accounts.create_token("two")
    caller = await accounts.authenticate_agent(first_secret, PEER)
    assert caller == Caller(first.owner, Role.AGENT, first.id, "one", "api-*")
    assert len({first.owner, second.owner, store.accounts.first}) == 3
    assert uuid.UUID(first_secret.reveal()).version == 4
    assert first.hash == hashlib.sha256(first_secret.reveal().encode()).hexdigest()


async def test_A11_the_secret_is_nowhere_but_in_the_answer(
    accounts: Accounts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token, secret = await accounts.create_token("one")
    await accounts.authenticate(secret, PEER)
    assert secret.reveal() not in repr(token) + repr(secret) + repr(accounts.list_tokens())
    for path in sorted(tmp_path.glob("*.db*")):
        assert secret.reveal().encode() not in path.read_bytes()
    shown = capsys.readouterr()
    assert secret.reveal() not in shown.out + shown.err


async def test_a_token_lives_over_a_restart(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        token, secret = await Accounts(store, ADMIN, True).create_token("one")
    async with open_store(*paths) as store:
        caller = await Accounts(store, ADMIN, True).authenticate(secret, PEER)
    assert caller.token_id == token.id


WRONG = {
    "empty": "",
    "long": "x" * 2**20,
    "NUL": "a\x00b",
    "look-alike": "\u0430-token-of-more-than-22-characters",
    "null": "null",
    "integer": "0",
    "right prefix": ADMIN.reveal()[:-1] + "X",
    "admin and more": ADMIN.reveal() + "\x00",
    "surrogate": "\ud800",
    "the hash": hashlib.sha256(ADMIN.reveal().encode()).hexdigest(),
}


@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG.keys())
async def test_C08_one_text_for_every_wrong_token(accounts: Accounts, token: str) -> None:
    await accounts.create_token("one")
    await is_refused(accounts, token)


async def test_C08_a_live_token_with_a_wrong_tail(accounts: Accounts) -> None:
    token, secret = await accounts.create_token("one")
    await is_refused(accounts, secret.reveal()[:-1] + "x")
    await is_refused(accounts, secret.reveal().upper() + "x")
    await is_refused(accounts, token.hash)
    await is_refused(accounts, token.id)


async def test_C10_every_failure_does_the_same_work(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expired = await accounts.create_token("old", expires_at=NOW)
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    work = []
    for token in ("", "unknown", ADMIN.reveal()[:-1], expired.reveal()):
        compared.clear()
        await is_refused(accounts, token)
        work.append(list(compared))
    assert work[0] == [(64, 64)] * 4  # two ways, each against a token and against the admin's
    assert all(each == work[0] for each in work)


async def test_an_expired_token_is_no_token(accounts: Accounts, wall: Wall) -> None:
    _, secret = await accounts.create_token("one", expires_at=NOW + timedelta(seconds=10))
    assert (await accounts.authenticate(secret, PEER)).token_label == "one"
    wall.now += timedelta(seconds=10)
    await is_refused(accounts, secret.reveal())


async def test_a_read_token_opens_no_tunnels(accounts: Accounts) -> None:
    _, secret = await accounts.create_token("one", role=Role.READ)
    caller = await accounts.authenticate(secret, PEER)
    with pytest.raises(BadCredentials, match="may read"):
        await accounts.authenticate_agent(secret, PEER)
    with pytest.raises(Forbidden):
        accounts.require_writer(caller)
    with pytest.raises(Forbidden, match="admin only"):
        accounts.require_admin(caller)


async def test_a_read_token_acts_for_the_user_that_it_was_made_to_look_at(store: Store) -> None:
    accounts = Accounts(store, ADMIN, True)
    agent, agent_secret = await accounts.create_token("agent")
    reader, secret = await accounts.create_token("reader", role=Role.READ, reads=agent.id)
    _, of_admin = await accounts.create_token("of admin", role=Role.READ, reads="admin")
    _, of_reader = await accounts.create_token("of reader", role=Role.READ, reads=reader.id)
    owner = (await accounts.authenticate(agent_secret, PEER)).owner
    for one in (secret, of_reader):
        caller = await accounts.authenticate(one, PEER)
        assert (caller.owner, caller.role) == (owner, Role.READ)
        with pytest.raises(Forbidden):
            accounts.require_writer(caller)
        with pytest.raises(BadCredentials, match="may read"):
            await accounts.authenticate_agent(one, PEER)
    assert (await accounts.authenticate(of_admin, PEER)).owner == (await accounts.authenticate(ADMIN, PEER)).owner
    assert not (await accounts.authenticate(of_admin, PEER)).is_admin
    ended: list[str] = []
    accounts.on_ended(ended.append)
    await accounts.delete_token(agent.id)
    assert ended == [agent.id]
    assert (await accounts.authenticate(secret, PEER)).owner == owner  # it has an end of its own


async def test_a_read_token_for_nobody_is_refused(accounts: Accounts) -> None:
    token, _ = await accounts.create_token("one")
    for role in (Role.AGENT, Role.ADMIN):
        with pytest.raises(BadRequest, match="role read"):
            await accounts.create_token("two", role=role, reads=token.id)
    with pytest.raises(NotFound, match="no such token"):
        await accounts.create_token("two", role=Role.READ, reads="00000000-0000-4000-8000-000000000000")
    assert len(accounts.list_tokens()) == 1


async def test_an_expiry_is_kept_in_utc(accounts: Accounts) -> None:
    token, _ = await accounts.create_token("one", expires_at=datetime.fromisoformat("2027-01-01T00:00:00+05:00"))
    assert token.expires_at is not None
    assert token.expires_at.isoformat() == "2026-12-31T19:00:00+00:00"


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
async def test_an_expiry_that_is_no_date_in_utc_is_refused(accounts: Accounts, text: str) -> None:
    with pytest.raises(BadRequest, match="expires_at"):
        await accounts.create_token("one", expires_at=datetime.fromisoformat(text))


async def test_what_roles_may_do(accounts: Accounts) -> None:
    _, agent = await accounts.create_token("agent")
    _, admin = await accounts.create_token("admin", role=Role.ADMIN)
    accounts.require_writer(await accounts.authenticate(agent, PEER))
    with pytest.raises(Forbidden):
        accounts.require_admin(await accounts.authenticate(agent, PEER))
    accounts.require_admin(await accounts.authenticate(admin, PEER))
    accounts.require_admin(await accounts.authenticate(ADMIN, PEER))


async def test_no_auth_required(store: Store) -> None:
    accounts = Accounts(store, ADMIN, False)
    _, secret = await accounts.create_token("one")
    known = await accounts.authenticate_agent(secret, PEER)
    assert (known.token_label, known.anonymous) == ("one", False)
    assert (await accounts.authenticate_agent(ADMIN, PEER)).is_admin

    unknown = await accounts.authenticate_agent(Secret("guest"), PEER)
    digest = hashlib.sha256(b"guest").hexdigest()
    assert unknown == Caller(f"anonymous:{digest}", Role.AGENT, anonymous=True)
    assert await accounts.authenticate_agent(Secret("guest"), OTHER) == unknown

    nameless = await accounts.authenticate_agent(Secret(""), PEER)
    assert nameless == Caller("anonymous:192.0.2.7", Role.AGENT, anonymous=True)
    assert (await accounts.authenticate_agent(Secret(""), OTHER)).owner != nameless.owner

    for token in ("guest", ""):
        with pytest.raises(BadCredentials):
            await accounts.authenticate(Secret(token), PEER)


async def test_deleting_a_token_ends_it_at_once(accounts: Accounts) -> None:
    ended: list[str] = []
    accounts.on_ended(ended.append)
    token, secret = await accounts.create_token("one")
    await accounts.delete_token(token.id)
    assert ended == [token.id]
    await is_refused(accounts, secret.reveal())
    with pytest.raises(NotFound, match="token not found"):
        await accounts.delete_token(token.id)
    assert ended == [token.id]


async def test_expiry_tells_of_tokens_that_were_used(accounts: Accounts, wall: Wall, mock_clock: MockClock) -> None:
    ended: list[str] = []
    accounts.on_ended(ended.append)
    token, secret = await accounts.create_token("one", expires_at=NOW + timedelta(seconds=10))
    await accounts.create_token("unused", expires_at=NOW + timedelta(seconds=10))
    await accounts.authenticate_agent(secret, PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accounts.run)
        for seconds, expected in ((9.0, []), (1.0, [token.id]), (1.0, [token.id])):
            await trio.testing.wait_all_tasks_blocked()
            wall.now += timedelta(seconds=seconds)
            mock_clock.jump(1.0)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == expected
        nursery.cancel_scope.cancel()


async def test_uses_are_counted(accounts: Accounts, wall: Wall) -> None:
    token, secret = await accounts.create_token("one")
    assert [(t.last_used_at, t.tunnel_count) for t in accounts.list_tokens()] == [(None, 0)]
    wall.now += timedelta(hours=1)
    accounts.tunnel_registered(await accounts.authenticate_agent(secret, PEER))
    accounts.tunnel_registered(await accounts.authenticate_agent(ADMIN, PEER))
    assert [(t.id, t.last_used_at, t.tunnel_count) for t in accounts.list_tokens()] == [(token.id, wall.now, 1)]


@pytest.mark.parametrize(
    ("label", "scope"), [("", None), ("  ", None), ("x" * 201, None), ("x", ""), ("x", " , "), ("x", "y" * 5000)]
)
async def test_values_that_cannot_be_used(accounts: Accounts, label: str, scope: str | None) -> None:
    with pytest.raises(BadRequest, match=r"label|scope"):
        await accounts.create_token(label, scope)
    assert accounts.list_tokens() == []


async def test_A10_tokens_are_capped(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "TOKENS_MAX", 2)
    token, _ = await accounts.create_token("one")
    await accounts.create_token("two")
    with pytest.raises(Unavailable, match="delete some"):
        await accounts.create_token("three")
    await accounts.delete_token(token.id)
    await accounts.create_token("three")


@pytest.mark.parametrize("label", ["\u202e\u200b", "\x1b[31m", "a\r\nb", json.dumps("<script>")])
async def test_A09_labels_are_kept_as_they_are(accounts: Accounts, label: str) -> None:
    token, secret = await accounts.create_token(label)
    assert token.label == label
    assert (await accounts.authenticate(secret, PEER)).token_label == label


# C09


async def flood(accounts: Accounts, addresses: Callable[[int], Peer], count: int) -> None:
    """So many wrong tokens at once."""

    async def one(number: int) -> None:
        with pytest.raises(BadCredentials):
            await accounts.authenticate_agent(Secret(f"wrong {number}"), addresses(number))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


def one_address(_: int) -> Peer:
    return PEER


def thousand_addresses(number: int) -> Peer:
    return Peer(f"10.0.{number % 1000 // 250}.{number % 250}", 4000)


@pytest.mark.parametrize("addresses", [one_address, thousand_addresses])
async def test_C09_those_with_a_token_get_in_during_a_flood(
    store: Store, wall: Wall, mock_clock: MockClock, addresses: Callable[[int], Peer]
) -> None:
    accounts = Accounts(store, ADMIN, True, now=wall)
    _, secret = await accounts.create_token("one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, accounts, addresses, 3000)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        for peer in (PEER, OTHER, thousand_addresses(1)):
            assert (await accounts.authenticate_agent(secret, peer)).token_label == "one"
            assert (await accounts.authenticate_agent(ADMIN, peer)).is_admin
        assert trio.current_time() == began
        mock_clock.jump(LATE_SECONDS)


async def test_C09_after_a_burst_wrong_answers_are_late_and_few_wait(
    accounts: Accounts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_module, "LATE_MAX", 3)
    answered: list[int] = []

    async def one(number: int) -> None:
        with pytest.raises(BadCredentials):
            await accounts.authenticate(Secret("wrong"), PEER)
        answered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(int(WRONG_BURST) + 5):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        assert len(answered) == WRONG_BURST + 2  # three of the five beyond the burst wait
        mock_clock.jump(LATE_SECONDS)
    assert len(answered) == WRONG_BURST + 5
    mock_clock.jump(3600)
    began = trio.current_time()
    await is_refused(accounts, "wrong")
    assert trio.current_time() == began


async def test_C09_an_admin_token_that_could_be_guessed(store: Store, mock_clock: MockClock) -> None:
    short = Secret("hunter2")
    accounts = Accounts(store, short, True)
    assert (await accounts.authenticate(short, PEER)).is_admin
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, accounts, one_address, int(WRONG_BURST) + 1)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LATE_SECONDS)
    refused = trio.Event()

    async def guess() -> None:
        with pytest.raises(BadCredentials):
            await accounts.authenticate(short, PEER)
        refused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guess)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LATE_SECONDS)
    assert refused.is_set()
    assert (await accounts.authenticate(short, OTHER)).is_admin  # other addresses are calm
    mock_clock.jump(3600)
    assert (await accounts.authenticate(short, PEER)).is_admin


async def test_C09_while_guesses_come_from_everywhere_only_known_addresses_may_try(
    store: Store, mock_clock: MockClock
) -> None:
    short = Secret("hunter2")
    accounts = Accounts(store, short, True)
    assert (await accounts.authenticate(short, PEER)).is_admin
    await flood(accounts, lambda number: Peer(f"10.1.{number // 250}.{number % 250}", 1), 1000)
    assert (await accounts.authenticate(short, PEER)).is_admin
    with pytest.raises(BadCredentials):
        await accounts.authenticate(short, OTHER)


async def test_C09_maps_of_addresses_are_bounded(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "ADDRESSES_MAX", 50)
    await flood(accounts, thousand_addresses, 200)
    for number in range(100):
        await accounts.authenticate(ADMIN, thousand_addresses(number))
    assert len(accounts._throttle._wrong) == 50
    assert len(accounts._throttle._admins) == 50


async def test_C09_an_ipv6_subscriber_is_one_address(accounts: Accounts, mock_clock: MockClock) -> None:
    await flood(accounts, lambda number: Peer(f"2001:db8::{number:x}", 1), int(WRONG_BURST))
    done = trio.Event()

    async def one_more() -> None:
        with pytest.raises(BadCredentials):
            await accounts.authenticate(Secret("wrong"), Peer("2001:db8::ffff", 1))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_more)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        mock_clock.jump(LATE_SECONDS)
