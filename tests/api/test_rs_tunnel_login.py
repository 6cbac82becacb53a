"""Login by `/v1/auth`: what the terminal asks, the page on which a person approves, and pairs of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest

from rustunnel_py.errors import StoreError
from rustunnel_py.hub import audit
from rustunnel_py.hub import logins as logins_module
from rustunnel_py.hub.logins import GRACE_SECONDS, challenge_of
from rustunnel_py.model.access import Role, Secret
from rustunnel_py.store.logins import Login
from tests.support.api import ADMIN_TOKEN, PEER
from tests.support.leased import Answer, LeasedHouse, leased_house
from tests.support.rs_tunnel_contract import check_list, check_ok, check_pair, check_started, check_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

VERIFIER = "TaSzj-4JrUsXJyLoboGLeTBzv3izUfffBMWGYTjNN9kupYIFwnv2zAqIL4mmMDx8VKxWXwFgOY-JxMVTs_yznQ"
CHALLENGE = "2QuSVSAlTIBA2stjpHpZUeZsw1haam0gd65ImUbq1kw"  # as recorded
DAY = 24 * 3600


@pytest.fixture
async def house(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[LeasedHouse]:
    async with leased_house(tmp_path) as house:
        yield house


async def start(house: LeasedHouse, **more: object) -> Any:
    answer = await house.call(
        "POST", "/v1/auth/slack/start", None, json={"email": "dev@example.com", "codeChallenge": CHALLENGE} | more
    )
    assert answer.status == 200, answer.text
    check_started(answer.json)
    return answer.json


async def status(house: LeasedHouse, state: str) -> Any:
    answer = await house.call("POST", "/v1/auth/slack/status", None, json={"state": state})
    assert answer.status == 200, answer.text
    check_status(answer.json)
    return answer.json


async def exchange(house: LeasedHouse, code: str, verifier: str = VERIFIER) -> Answer:
    return await house.call("POST", "/v1/auth/exchange", None, json={"loginCode": code, "codeVerifier": verifier})


async def refresh(house: LeasedHouse, token: str) -> Answer:
    return await house.call("POST", "/v1/auth/refresh", None, json={"refreshToken": token})


async def logged_in(house: LeasedHouse, token: str = ADMIN_TOKEN) -> Any:
    """The pair of a whole login that this API token approved."""
    state = (await start(house))["state"]
    await Page(house, state).open()
    await house.logins.approve(state, Secret(token), PEER)
    answer = await exchange(house, (await status(house, state))["loginCode"])
    assert answer.status == 200, answer.text
    check_pair(answer.json)
    return answer.json


async def works(house: LeasedHouse, token: str) -> bool:
    answer = await house.call("GET", "/v1/tunnels", token)
    if answer.status == 200:
        check_list(answer.json)
    return answer.status == 200


@dataclass
class Page:
    """A browser with one page open."""

    house: LeasedHouse
    state: str
    cookie: str = ""
    bound: str = ""

    async def open(self) -> Answer:
        answer = await self.house.call("GET", f"/v1/auth/approve?{urlencode({'state': self.state})}", None)
        if answer.status == 200:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
            found = re.search(r'name="bound" value="([0-9a-f]{64})"', answer.text)
            assert found is not None
            self.bound = found[1]
        return answer

    async def send(self, **fields: str) -> Answer:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Sec-Fetch-Site": "same-origin",
            "Origin": "http://localhost:4041",
        }
        if self.cookie:
            headers["Cookie"] = self.cookie
        headers |= {name[7:].replace("_", "-"): fields.pop(name) for name in list(fields) if name.startswith("header_")}
        text = urlencode({"state": self.state, "bound": self.bound} | fields)
        return await self.house.call("POST", "/v1/auth/approve", None, text=text, headers=headers)


# the whole way


async def test_a_login_from_start_to_end(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    started = await start(house)
    url = urlsplit(started["authorizeUrl"])
    assert (url.scheme, url.netloc, url.path) == ("http", "localhost:4041", "/v1/auth/approve")
    assert parse_qs(url.query) == {"state": [started["state"]]}
    assert await status(house, started["state"]) == {"status": "pending"}
    page = Page(house, started["state"])
    opened = await page.open()
    assert "dev@example.com" in opened.text
    assert "192.0.2.1" in opened.text
    approved = await page.send(token=f" {token} ", answer="approve")
    assert (approved.status, "Login approved" in approved.text) == (200, True)
    assert token not in approved.text
    handed = await status(house, started["state"])
    assert handed["status"] == "authorized"
    assert await status(house, started["state"]) == {"status": "expired"}  # once
    pair = (await exchange(house, handed["loginCode"])).json
    check_pair(pair)
    assert pair["profile"] == {"email": "dev@example.com", "slackUserId": "", "slackTeamId": ""}
    assert len(pair["refreshToken"]) == 64
    assert pair["expiresInSec"] == 30 * DAY
    made = await house.created("mine", pair["accessToken"])
    assert [one.id for one in house.leases.alive_of(caller.owner)] == [made["tunnelId"]]
    assert (await house.call("GET", "/api/tunnels", pair["accessToken"])).status == 401  # only here
    assert (await house.call("GET", "/v1/tunnels", pair["refreshToken"])).status == 401
    again = await exchange(house, handed["loginCode"])
    assert (again.status, again.code) == (400, "LOGIN_CODE_USED")


async def test_an_api_token_is_an_access_token(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    assert await works(house, token)
    check_ok((await house.call("POST", "/v1/auth/logout", token)).json)
    assert await works(house, token)


async def test_the_recorded_challenge_is_that_of_the_recorded_verifier() -> None:
    assert challenge_of(VERIFIER) == CHALLENGE


# what is refused on the way


@pytest.mark.parametrize(
    "body",
    [
        {"email": "me@localhost"},
        {"email": "nobody"},
        {"email": "a b@example.com"},
        {"email": ""},
        {"email": None},
        {"email": "<x>@@example.com"},
        {"codeChallenge": "short"},
        {"codeChallenge": None},
        {"cliCallbackUrl": "https://evil.example/x"},
        {"cliCallbackUrl": "http://evil.example:80/x"},
        {"cliCallbackUrl": "http://127.0.0.1/x"},
        {"cliCallbackUrl": "http://127.0.0.1:99999/x"},
        {"cliCallbackUrl": "http://user@127.0.0.1:1/x"},
        {"cliCallbackUrl": "javascript:alert(1)"},
        {"cliCallbackUrl": 'http://127.0.0.1:1/"><script>\n'},
    ],
)
async def test_starts_that_are_refused(house: LeasedHouse, mock_clock: MockClock, body: dict[str, object]) -> None:
    answer = await house.call(
        "POST", "/v1/auth/slack/start", None, json={"email": "dev@example.com", "codeChallenge": CHALLENGE} | body
    )
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    assert list(answer.json["details"]["fieldErrors"]) == list(body)


async def test_status_is_strict_and_knows_its_states(house: LeasedHouse, mock_clock: MockClock) -> None:
    for body in ({}, {"state": "short"}, {"state": "x" * 20, "more": 1}, {"state": 5}):
        answer = await house.call("POST", "/v1/auth/slack/status", None, json=body)
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    answer = await house.call("POST", "/v1/auth/slack/status", None, json={"state": "x" * 43})
    assert (answer.status, answer.code) == (400, "INVALID_STATE")


async def test_codes_and_verifiers(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house))["state"]
    await house.logins.approve(state, Secret(ADMIN_TOKEN), PEER)
    code = (await status(house, state))["loginCode"]
    for sent, verifier, expected in [
        ("x" * 43, VERIFIER, "INVALID_LOGIN_CODE"),
        (code, "x" * 43, "INVALID_CODE_VERIFIER"),
        (code, "x" * 42, "INVALID_INPUT"),
        (code, "x" * 129, "INVALID_INPUT"),
        ("short", VERIFIER, "INVALID_INPUT"),
        (state, VERIFIER, "INVALID_LOGIN_CODE"),
    ]:
        answer = await exchange(house, sent, verifier)
        assert (answer.status, answer.code) == (400, expected)
    assert (await exchange(house, code)).status == 200


async def test_a_challenge_that_is_none(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house, codeChallenge="ü🚇" * 20))["state"]
    await house.logins.approve(state, Secret(ADMIN_TOKEN), PEER)
    code = (await status(house, state))["loginCode"]
    for verifier in (VERIFIER, "ü🚇" * 30):
        answer = await exchange(house, code, verifier)
        assert (answer.status, answer.code) == (400, "INVALID_CODE_VERIFIER")


async def test_ten_minutes_for_all_of_it(house: LeasedHouse, mock_clock: MockClock) -> None:
    first, second = (await start(house))["state"], (await start(house))["state"]
    await house.logins.approve(second, Secret(ADMIN_TOKEN), PEER)
    code = (await status(house, second))["loginCode"]
    house.clock.jump(599.9)
    assert await status(house, first) == {"status": "pending"}
    house.clock.jump(0.1)
    assert await status(house, first) == {"status": "expired"}
    answer = await exchange(house, code)
    assert (answer.status, answer.code) == (400, "LOGIN_CODE_EXPIRED")
    page = await Page(house, first).open()
    assert (page.status, "has expired" in page.text) == (400, True)
    await house.pass_time(2900)
    assert await status(house, first) == {"status": "expired"}  # still known
    await house.pass_time(200)
    answer = await house.call("POST", "/v1/auth/slack/status", None, json={"state": first})
    assert (answer.status, answer.code) == (400, "INVALID_STATE")


async def test_a_token_that_is_revoked_between_approval_and_exchange(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    state = (await start(house))["state"]
    await house.logins.approve(state, Secret(token), PEER)
    code = (await status(house, state))["loginCode"]
    assert caller.token_id is not None
    await house.accounts.delete_token(caller.token_id)
    answer = await exchange(house, code)
    assert (answer.status, answer.code) == (404, "USER_NOT_FOUND")


async def test_waiting_logins_are_bounded(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins_module, "FLOWS_MAX", 2)
    await start(house)
    await start(house)
    answer = await house.call(
        "POST", "/v1/auth/slack/start", None, json={"email": "dev@example.com", "codeChallenge": CHALLENGE}
    )
    assert (answer.status, answer.code) == (503, "LOGIN_UNAVAILABLE")
    await house.pass_time(600)
    await start(house)


# the page


async def test_the_page_has_a_strict_policy_and_no_outside(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await Page(house, (await start(house))["state"]).open()
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert re.findall(r'(?:src|href)="([^"]*)"', answer.text) == [
        "/static/mark.svg",
        "/static/look.css",
        "/static/mark.svg",
    ]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Path=/v1/auth/approve" in cookie
    for path, kind in (("/static/look.css", "text/css; charset=utf-8"), ("/static/mark.svg", "image/svg+xml")):
        static = await house.call("GET", path, None)
        assert (static.status, static.headers["content-type"]) == (200, kind)
        assert "url(" not in static.text.replace("url(#", "")
    assert (await house.call("GET", "/static/app.py", None)).status == 404


async def test_an_email_is_shown_as_text(house: LeasedHouse, mock_clock: MockClock) -> None:
    email = "\"'><b>x</b>&@example.com"
    flow = house.logins.start(email, CHALLENGE, None, PEER)  # the API takes no such address
    page = await Page(house, flow.state).open()
    assert "<b>" not in page.text
    assert email in unescape(page.text)


async def test_a_page_of_an_unknown_login(house: LeasedHouse, mock_clock: MockClock) -> None:
    for state in ("", "x" * 43, '"><script>'):
        page = await Page(house, state).open()
        assert page.status == 400
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<script" not in page.text


async def test_refusing_needs_no_token(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house))["state"]
    page = Page(house, state)
    await page.open()
    answer = await page.send(answer="refuse")
    assert (answer.status, "Login refused" in answer.text) == (200, True)
    assert await status(house, state) == {"status": "expired"}
    answer = await page.send(token=ADMIN_TOKEN, answer="approve")
    assert (answer.status, "answered already" in answer.text) == (400, True)


async def test_a_wrong_token_can_be_corrected(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house))["state"]
    page = Page(house, state)
    await page.open()
    answer = await page.send(token="wrong", answer="approve")
    assert (answer.status, "not valid here" in answer.text) == (403, True)
    assert await status(house, state) == {"status": "pending"}
    assert (await page.send(token=ADMIN_TOKEN, answer="approve")).status == 200
    assert (await status(house, state))["status"] == "authorized"


@pytest.mark.parametrize(
    "forged",
    [
        {"header_Cookie": "rustunnel_approval=" + "x" * 43},
        {"header_Cookie": ""},
        {"bound": ""},
        {"bound": "é" * 64},
        {"header_Origin": "https://evil.example"},
        {"header_Origin": "null"},
        {"header_Origin": "http://localhost:4042"},
        {"header_Origin": "http://[localhost:4041"},
        {"header_Origin": "ftp://localhost:4041"},
        {"header_Sec_Fetch_Site": "cross-site"},
        {"header_Sec_Fetch_Site": "same-site"},
    ],
)
async def test_forms_of_others_are_refused(house: LeasedHouse, mock_clock: MockClock, forged: dict[str, str]) -> None:
    state = (await start(house))["state"]
    page = Page(house, state)
    await page.open()
    for answer in ("approve", "refuse"):
        assert (await page.send(token=ADMIN_TOKEN, answer=answer, **forged)).status == 403
    assert await status(house, state) == {"status": "pending"}


@pytest.mark.parametrize(
    ("site", "expected"),
    [("https://dash.example.com", 200), ("https://dash.example.com:8443", 403), ("null", 403), ("https://", 403)],
)
async def test_a_proxy_may_change_the_host(tmp_path: Path, mock_clock: MockClock, site: str, expected: int) -> None:
    async with leased_house(tmp_path, origin="https://dash.example.com") as house:
        started = await start(house)
        assert started["authorizeUrl"].startswith("https://dash.example.com/v1/auth/approve?")
        page = Page(house, started["state"])
        opened = await page.open()
        assert "; secure" in opened.headers["set-cookie"].lower()
        sent = await page.send(token=ADMIN_TOKEN, answer="approve", header_Origin=site)
        assert sent.status == expected


async def test_a_form_is_bound_to_its_login(house: LeasedHouse, mock_clock: MockClock) -> None:
    mine, other = Page(house, (await start(house))["state"]), (await start(house))["state"]
    await mine.open()
    mine.state = other
    assert (await mine.send(token=ADMIN_TOKEN, answer="approve")).status == 403


async def test_forms_that_are_none(house: LeasedHouse, mock_clock: MockClock) -> None:
    page = Page(house, (await start(house))["state"])
    await page.open()
    answer = await page.send(answer="refuse", header_Content_Type="application/json")
    assert answer.status == 415
    answer = await page.send(answer="x" * 20_000)
    assert answer.status == 413


async def test_links_may_come_from_elsewhere(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house))["state"]
    answer = await house.call("GET", f"/v1/auth/approve?state={state}", None, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 200
    answer = await house.call("GET", f"/v1/auth/approve?state={state}", None, headers={"Host": "evil.example"})
    assert answer.status == 421


async def test_older_clients_are_called_back(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house, cliCallbackUrl="http://127.0.0.1:45678/callback?x=1"))["state"]
    page = Page(house, state)
    await page.open()
    answer = await page.send(token=ADMIN_TOKEN, answer="approve")
    found = re.search(r'content="0;url=([^"]*)"', answer.text)
    assert found is not None
    url = urlsplit(unescape(found[1]))
    query = parse_qs(url.query)
    assert (url.netloc, query["x"], query["state"]) == ("127.0.0.1:45678", ["1"], [state])
    assert (await exchange(house, query["code"][0])).status == 200


# pairs


async def test_a_refresh_replaces_both(house: LeasedHouse, mock_clock: MockClock) -> None:
    first = await logged_in(house)
    answer = await refresh(house, first["refreshToken"])
    assert answer.status == 200
    check_pair(answer.json)
    second = answer.json
    assert second["accessToken"] != first["accessToken"]
    assert second["refreshToken"] != first["refreshToken"]
    assert await works(house, second["accessToken"])
    assert await works(house, first["accessToken"])  # a running `up` never reads the new one
    for token in ("x" * 64, first["accessToken"], ADMIN_TOKEN):
        answer = await refresh(house, token)
        assert (answer.status, answer.code) == (401, "INVALID_REFRESH_TOKEN")
    answer = await refresh(house, "short")
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")


async def test_a_lost_answer_may_be_asked_for_again(house: LeasedHouse, mock_clock: MockClock) -> None:
    first = await logged_in(house)
    await refresh(house, first["refreshToken"])  # lost on its way
    house.clock.jump(3600)
    second = (await refresh(house, first["refreshToken"])).json
    assert await works(house, second["accessToken"])


async def test_two_commands_at_once_both_get_one(house: LeasedHouse, mock_clock: MockClock) -> None:
    first = await logged_in(house)
    second = (await refresh(house, first["refreshToken"])).json
    assert await works(house, second["accessToken"])
    house.clock.jump(59)
    third = await refresh(house, first["refreshToken"])
    assert third.status == 200
    assert (await refresh(house, second["refreshToken"])).status == 200


async def test_the_grace_counts_from_the_first_use(house: LeasedHouse, mock_clock: MockClock) -> None:
    first = await logged_in(house)
    await refresh(house, first["refreshToken"])
    house.clock.jump(50)
    second = (await refresh(house, first["refreshToken"])).json
    assert await works(house, second["accessToken"])
    house.clock.jump(11)
    assert (await refresh(house, first["refreshToken"])).status == 401


async def test_a_login_lives_no_longer_than_the_token_that_approved(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token(expires_at=house.now() + timedelta(hours=1))
    pair = await logged_in(house, token)
    house.clock.jump(3599)
    assert await works(house, pair["accessToken"])
    house.clock.jump(1)
    assert not await works(house, pair["accessToken"])
    assert (await refresh(house, pair["refreshToken"])).status == 401


@pytest.mark.parametrize("restart", [False, True])
async def test_reuse_ends_the_whole_login(tmp_path: Path, mock_clock: MockClock, restart: bool) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        bystander = await logged_in(house)
        first = await logged_in(house)
        second = (await refresh(house, first["refreshToken"])).json
        assert await works(house, second["accessToken"])
        if not restart:
            await reused(house, bystander, first, second)
    if restart:
        async with leased_house(tmp_path, began=began) as house:
            await reused(house, bystander, first, second)


async def reused(house: LeasedHouse, bystander: Any, first: Any, second: Any) -> None:
    house.clock.jump(61)
    answer = await refresh(house, first["refreshToken"])
    assert (answer.status, answer.code) == (401, "INVALID_REFRESH_TOKEN")
    assert not await works(house, second["accessToken"])
    assert not await works(house, first["accessToken"])
    assert (await refresh(house, second["refreshToken"])).status == 401
    assert await works(house, bystander["accessToken"])


async def test_pairs_outlive_a_restart_and_end_with_their_time(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        pair = await logged_in(house)
    mock_clock.jump(30 * DAY - 1)
    async with leased_house(tmp_path, began=began) as house:
        assert await works(house, pair["accessToken"])
        house.clock.jump(1)
        assert not await works(house, pair["accessToken"])
        answer = await refresh(house, pair["refreshToken"])
        assert (answer.status, answer.code) == (401, "INVALID_REFRESH_TOKEN")
        await house.pass_time(6)
    async with leased_house(tmp_path, began=began) as house:
        assert (await house.store.logins.load()) == ([], [])


async def test_secrets_are_kept_as_hashes_only(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        pair = await logged_in(house)
        made = await house.created("app")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (pair["accessToken"], pair["refreshToken"], made["tunnelRunToken"], made["cloudflaredToken"]):
        assert secret.encode() not in content


async def test_logging_out_ends_one_login(house: LeasedHouse, mock_clock: MockClock) -> None:
    one, two = await logged_in(house), await logged_in(house)
    other_token, _ = await house.token()
    stranger = await logged_in(house, other_token)
    body = {"refreshToken": stranger["refreshToken"]}
    check_ok((await house.call("POST", "/v1/auth/logout", one["accessToken"], json=body)).json)
    assert await works(house, stranger["accessToken"])
    body = {"refreshToken": one["refreshToken"]}
    check_ok((await house.call("POST", "/v1/auth/logout", one["accessToken"], json=body)).json)
    assert not await works(house, one["accessToken"])
    assert (await refresh(house, one["refreshToken"])).status == 401
    assert await works(house, two["accessToken"])


@pytest.mark.parametrize("body", [None, "{}", ""])
async def test_logging_out_without_a_refresh_token_ends_all(
    house: LeasedHouse, mock_clock: MockClock, body: str | None
) -> None:
    one, two = await logged_in(house), await logged_in(house)
    other_token, _ = await house.token()
    stranger = await logged_in(house, other_token)
    check_ok((await house.call("POST", "/v1/auth/logout", one["accessToken"], text=body)).json)
    assert [await works(house, pair["accessToken"]) for pair in (one, two, stranger)] == [False, False, True]


async def test_revoking_the_token_ends_its_logins(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    pair = await logged_in(house, token)
    assert caller.token_id is not None
    await house.accounts.delete_token(caller.token_id)
    assert not await works(house, pair["accessToken"])
    assert (await refresh(house, pair["refreshToken"])).status == 401


async def test_a_refresh_works_while_nothing_can_be_stored(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails for any reason costs the CLI its session."""

    async def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    async with leased_house(tmp_path) as house:
        began = house.began
        pair = await logged_in(house)
        monkeypatch.setattr(house.store.logins, "add", fail)
        for _ in range(3):
            answer = await refresh(house, pair["refreshToken"])
            check_pair(answer.json)
            pair = answer.json
            assert await works(house, pair["accessToken"])
        gone = await refresh(house, pair["refreshToken"])
        await house.call("POST", "/v1/auth/logout", gone.json["accessToken"])
        pair = await house_login(house, monkeypatch, fail)
        answer = await refresh(house, pair["refreshToken"])
        await house.pass_time(6)  # tried again, in vain
        monkeypatch.undo()
        await house.pass_time(6)
    async with leased_house(tmp_path, began=began) as house:
        assert await works(house, answer.json["accessToken"])
        assert not await works(house, gone.json["accessToken"])
        house.clock.jump(61)
        assert (await refresh(house, answer.json["refreshToken"])).status == 200
        assert (await refresh(house, pair["refreshToken"])).status == 401  # reuse is known


async def house_login(house: LeasedHouse, monkeypatch: pytest.MonkeyPatch, fail: Any) -> Any:
    """A login needs the disk; afterwards it fails again."""
    monkeypatch.undo()
    pair = await logged_in(house)
    monkeypatch.setattr(house.store.logins, "add", fail)
    return pair


async def test_refreshes_that_wait_for_the_disk_are_bounded(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await logged_in(house)

    async def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(logins_module, "UNWRITTEN_MAX", 1)
    monkeypatch.setattr(house.store.logins, "add", fail)
    pair = (await refresh(house, pair["refreshToken"])).json
    answer = await refresh(house, pair["refreshToken"])
    assert (answer.status, answer.code) == (503, "STORAGE_UNAVAILABLE")
    monkeypatch.undo()
    house.clock.jump(3600)
    assert (await refresh(house, pair["refreshToken"])).status == 200  # the refusal changed nothing


async def test_pairs_and_logins_are_bounded(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins_module, "PAIRS_PER_LOGIN_MAX", 3)
    monkeypatch.setattr(logins_module, "LOGINS_MAX", 2)
    pair = oldest = await logged_in(house)
    for _ in range(4):
        pair = (await refresh(house, pair["refreshToken"])).json
    assert not await works(house, oldest["accessToken"])
    assert await works(house, pair["accessToken"])
    for _ in range(2):
        await logged_in(house)
    assert not await works(house, pair["accessToken"])
    await house.pass_time(6)
    logins, pairs = await house.store.logins.load()
    assert all(isinstance(login, Login) for login in logins)
    assert (len(logins), len(pairs)) == (2, 2)


# what the audit hears


def kinds(house: LeasedHouse) -> list[str]:
    """The names of its events since the last call."""
    found = [type(event).__name__ for event in house.events]
    house.events.clear()
    return found


async def test_every_step_of_a_login_is_audited_without_a_secret(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    kinds(house)
    state = (await start(house))["state"]
    page = Page(house, state)
    await page.open()
    assert (await page.send(token="wrong-token", answer="approve")).status == 403
    assert kinds(house) == ["LoginRefused"]
    await page.send(token=token, answer="approve")
    (approved,) = house.events
    who, at = audit.who_is(caller), "192.0.2.1:40000"
    assert approved == audit.LoginApproved(who=who, peer=at, email="dev@example.com", started_from=at)
    code = (await status(house, state))["loginCode"]
    assert (await exchange(house, code, "w" * 43)).code == "INVALID_CODE_VERIFIER"
    first = (await exchange(house, code)).json
    assert (await exchange(house, code)).code == "LOGIN_CODE_USED"
    second = (await refresh(house, first["refreshToken"])).json
    assert await works(house, second["accessToken"])
    house.clock.jump(GRACE_SECONDS)
    assert (await refresh(house, first["refreshToken"])).status == 401
    third = await logged_in(house, token)
    await house.call("POST", "/v1/auth/logout", third["accessToken"], json={"refreshToken": third["refreshToken"]})
    texts = [msgspec.json.encode(event).decode() for event in house.events]
    exchanged = house.events[2]
    assert isinstance(exchanged, audit.LoginExchanged)
    about: dict[str, Any] = {"who": who, "peer": at, "login": exchanged.login, "email": "dev@example.com"}
    assert house.events[:6] == [
        approved,
        audit.ExchangeRefused(peer=at, email="dev@example.com", reason="Code verifier does not match."),
        audit.LoginExchanged(**about),
        audit.ExchangeRefused(peer=at, email="dev@example.com", reason="Login code was used already."),
        audit.LoginRefreshed(**about),
        audit.RefreshReused(**about),
    ]
    assert house.events[-1] == audit.LoggedOut(who=who, peer=at, logins=1)
    secrets = [token, state, page.bound, page.cookie, code, VERIFIER, CHALLENGE]
    for pair in (first, second, third):
        secrets += [pair["accessToken"], pair["refreshToken"]]
    assert not [secret for secret in secrets for text in texts if secret in text]


async def test_a_refused_login_is_audited(house: LeasedHouse, mock_clock: MockClock) -> None:
    page = Page(house, (await start(house))["state"])
    await page.open()
    await page.send(answer="refuse")
    at = "192.0.2.1:40000"
    assert house.events == [audit.LoginDeclined(peer=at, email="dev@example.com", started_from=at)]


async def test_logging_out_of_everything_says_how_many(house: LeasedHouse, mock_clock: MockClock) -> None:
    pairs = [await logged_in(house) for _ in range(3)]
    house.events.clear()
    await house.call("POST", "/v1/auth/logout", pairs[0]["accessToken"])
    (event,) = house.events
    assert isinstance(event, audit.LoggedOut)
    assert event.logins == 3


async def test_a_token_that_only_reads_ends_no_login_of_its_user_but_its_own(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    reader, _ = await house.token("reader", role=Role.READ, reads="admin")
    theirs, own = await logged_in(house), await logged_in(house, reader)
    body = {"refreshToken": theirs["refreshToken"]}
    check_ok((await house.call("POST", "/v1/auth/logout", own["accessToken"], json=body)).json)
    check_ok((await house.call("POST", "/v1/auth/logout", own["accessToken"])).json)
    assert house.logins.find(Secret(own["accessToken"])) is None
    assert house.logins.find(Secret(theirs["accessToken"])) is not None


async def test_the_callback_of_slack(house: LeasedHouse, mock_clock: MockClock) -> None:
    state = (await start(house))["state"]
    for query, code in [
        ("", "MISSING_OAUTH_PARAMS"),
        (f"?state={state}", "MISSING_OAUTH_PARAMS"),
        ("?code=x&state=", "MISSING_OAUTH_PARAMS"),
        (f"?error=access_denied&state={state}&code=x", "SLACK_OAUTH_DENIED"),
        ("?state=0123456789&code=x", "INVALID_STATE"),
    ]:
        answer = await house.call("GET", f"/v1/auth/slack/callback{query}", None)
        assert (answer.status, answer.code) == (400, code)
    answer = await house.call("GET", f"/v1/auth/slack/callback?code=x&state={state}", None)
    assert (answer.status, answer.headers["location"]) == (303, f"/v1/auth/approve?state={state}")
    assert await status(house, state) == {"status": "pending"}  # it approves nothing
    await house.logins.approve(state, Secret(ADMIN_TOKEN), PEER)
    answer = await house.call("GET", f"/v1/auth/slack/callback?code=x&state={state}", None)
    assert (answer.status, answer.code) == (400, "OAUTH_ALREADY_USED")
    state = (await start(house))["state"]
    house.clock.jump(600)
    answer = await house.call("GET", f"/v1/auth/slack/callback?code=x&state={state}", None)
    assert (answer.status, answer.code) == (400, "OAUTH_EXPIRED")


# what JavaScript's schemas say


@pytest.mark.parametrize(
    "email",
    [
        "",
        "me@localhost",
        "@example.com",
        "a@b.c",
        ".a@example.com",
        "a..b@example.com",
        "a.@example.com",
        "a b@example.com",
        "ü@example.com",
        "a@exa_mple.com",
        "a@-x.com",
        "a@example..com",
        "a@example.com\n",
        f"{'a' * 250}@x.com",
    ],
)
async def test_addresses_that_the_cli_would_not_take_back(
    house: LeasedHouse, mock_clock: MockClock, email: str
) -> None:
    answer = await house.call("POST", "/v1/auth/slack/start", None, json={"email": email, "codeChallenge": CHALLENGE})
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    assert answer.json["details"]["fieldErrors"] == {"email": ["an address such as me@example.com"]}
    assert answer.json["message"] == "email: an address such as me@example.com"


@pytest.mark.parametrize("email", ["me@example.com", "O'Brien+x@Sub.Example.ORG", "_@a-b.co", "1.2@x.info"])
async def test_addresses_that_it_takes(house: LeasedHouse, mock_clock: MockClock, email: str) -> None:
    await start(house, email=email)


@pytest.mark.parametrize(
    ("text", "expected", "ends"),
    [
        (None, 200, True),
        ("", 200, True),
        ("{}", 200, True),
        ('{"refreshToken": ""}', 200, True),
        ('{"refreshToken": "short"}', 200, False),
        ('{"refreshToken": null}', 400, False),
        ('{"refreshToken": 5}', 400, False),
        ("null", 400, False),
        ("[]", 400, False),
    ],
)
async def test_bodies_of_a_logout(
    house: LeasedHouse, mock_clock: MockClock, text: str | None, expected: int, ends: bool
) -> None:
    pair = await logged_in(house)
    answer = await house.call("POST", "/v1/auth/logout", pair["accessToken"], text=text)
    assert answer.status == expected
    assert await works(house, pair["accessToken"]) is not ends
