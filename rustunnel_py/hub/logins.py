"""Logins of people: a browser approves what a terminal started; then token pairs that replace each other.

    start ──> pending ──approve──> approved ──the status is asked──> handed over ──exchange──> over
                     └──refuse───> refused

* A flow lives FLOW_SECONDS, and is remembered a while longer, in memory. Whoever finishes it must show the verifier
  of the challenge that started it (PKCE, RFC 7636, S256); the state alone, which is in a URL, opens nothing.
* A login gives pairs. A refresh token is good once; it brings a new pair. One that was replaced is taken again while
  nothing of a newer pair has been seen (the answer may have been lost) and for GRACE_SECONDS (two commands may run
  at once). Later it is a stolen or a stale copy, and nobody can tell: the whole login ends (RFC 9700, 4.14.2).
* An access token lives as long as its refresh token, or a long run of the CLI, which never reads a newer one, could
  not close its tunnel. Logging out, revoking the API token that approved, and reuse end it at once.

Secrets are kept as SHA-256; all pairs are in memory, as API tokens are. A refresh that cannot be written succeeds all
the same, and is written when the disk is back: the CLI throws its session away when a refresh fails for any reason.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import secrets
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import Denied, StoreError
from rustunnel_py.hub import audit
from rustunnel_py.hub.accounts import hash_of
from rustunnel_py.hub.audit import unheard
from rustunnel_py.model.access import Role, Secret
from rustunnel_py.model.text import escape
from rustunnel_py.store.instants import utc_now
from rustunnel_py.store.logins import Login, Pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Note
    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.store.logins import LoginBook

FLOW_SECONDS = 600.0
FLOW_KEPT_SECONDS = 3600.0  # so long one that is over is told so; afterwards, and where there is no room, it is unknown
FLOWS_MAX = 1000  # waiting at a time; a start costs its sender a call of ten a minute
PAIR_SECONDS = 30 * 24 * 3600  # both tokens of a pair
GRACE_SECONDS = 60.0
PAIRS_PER_LOGIN_MAX = 32  # older ones of one login go; each was good for PAIR_SECONDS
LOGINS_MAX = 10_000  # the oldest goes
UNWRITTEN_MAX = 1000  # refreshes that wait for the disk; past that they fail
WRITE_SECONDS = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Fault(enum.Enum):
    """What is wrong with a step of a login."""

    UNKNOWN_STATE = enum.auto()
    OVER = enum.auto()  # the flow was answered before
    EXPIRED = enum.auto()
    TOO_MANY = enum.auto()
    UNKNOWN_CODE = enum.auto()
    USED_CODE = enum.auto()
    EXPIRED_CODE = enum.auto()
    WRONG_VERIFIER = enum.auto()
    NO_SUCH_USER = enum.auto()
    WRONG_REFRESH_TOKEN = enum.auto()


class LoginRefused(Denied):
    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class FlowState(enum.Enum):
    PENDING = "pending"
    APPROVED = "approved"
    HANDED_OVER = "handed over"
    REFUSED = "refused"


@dataclass(slots=True)
class Flow:
    """One login on its way. `callback`: where older clients wait for the code; a loopback URL."""

    state: str
    email: str
    challenge: str
    callback: str | None
    peer: Peer
    began: float
    progress: FlowState = FlowState.PENDING
    token_id: str | None = None
    code_hash: str = ""
    exchanged: bool = False


@dataclass(frozen=True, slots=True)
class _Refreshed:
    """A pair that is not in the book yet."""

    pair: Pair
    parent: Pair
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewPair:
    """What a client is given, once."""

    access: Secret
    refresh: Secret
    seconds: int
    email: str


class Logins:
    """`clock` is monotonic seconds, `now` the wall clock."""

    def __init__(
        self,
        book: LoginBook,
        accounts: Accounts,
        *,
        clock: Callable[[], float] = trio.current_time,
        now: Callable[[], datetime] = utc_now,
        note: Note = unheard,
    ) -> None:
        self._book = book
        self._accounts = accounts
        self._note = note
        self._clock = clock
        self._now = now
        self._flows: dict[str, Flow] = {}
        self._by_code: dict[str, Flow] = {}
        self._logins: dict[str, Login] = {}
        self._pairs: dict[str, dict[str, Pair]] = {}  # by login id, then by pair id, oldest first
        self._by_access: dict[str, Pair] = {}
        self._by_refresh: dict[str, Pair] = {}
        self._used: set[str] = set()  # ids of pairs whose use is not written yet
        self._unwanted: set[str] = set()  # ids of logins that are over and still in the book
        self._unwritten: deque[_Refreshed] = deque()
        self._issuing = trio.Lock()  # a refresh token is judged and replaced in one piece
        self._writing = trio.Lock()
        accounts.on_ended(self._token_ended)

    async def load(self) -> None:
        """At start. Raises StoreError."""
        logins, pairs = await self._book.load()
        for login in logins:
            self._logins[login.id] = login
            self._pairs[login.id] = {}
        for pair in pairs:
            if pair.expires_at > self._now():
                self._remember(pair)
        for login in logins:
            if not self._pairs[login.id]:
                self._forget(login.id)
        await self.flush()

    async def run(self) -> None:
        """Write what can wait, and drop what has run out."""
        try:
            while True:
                await trio.sleep(WRITE_SECONDS)
                self._drop_old()
                await self.flush()
        finally:
            await self.flush()

    def _drop_old(self) -> None:
        now = self._now()
        self._drop_flows(FLOW_KEPT_SECONDS)
        for login_id, pairs in list(self._pairs.items()):
            if all(pair.expires_at <= now for pair in pairs.values()):
                self._forget(login_id)

    async def flush(self) -> None:
        used, self._used = self._used, set()
        unwanted, self._unwanted = self._unwanted, set()
        with trio.CancelScope(shield=True):
            try:
                await self._write_refreshed()
                if unwanted:
                    await self._book.delete(sorted(unwanted))
                if used:
                    await self._book.mark_used(sorted(used))
            except StoreError as error:
                self._used |= used
                self._unwanted |= unwanted
                log.warning("logins could not be written", error=str(error))

    async def _write_refreshed(self) -> None:
        """What waits for the disk, in order. Raises StoreError."""
        async with self._writing:
            while self._unwritten:
                waiting = self._unwritten[0]
                if waiting.pair.login_id in self._logins:
                    await self._book.add(None, waiting.pair, waiting.parent, waiting.dropped)
                if self._unwritten and self._unwritten[0] is waiting:
                    self._unwritten.popleft()

    # the flow

    def start(self, email: str, challenge: str, callback: str | None, peer: Peer) -> Flow:
        """Raises LoginRefused(TOO_MANY)."""
        if len(self._flows) >= FLOWS_MAX:
            self._drop_flows(FLOW_SECONDS)
        if len(self._flows) >= FLOWS_MAX:
            raise LoginRefused(Fault.TOO_MANY, "Too many logins are waiting; try again in a few minutes.")
        flow = Flow(secrets.token_urlsafe(32), email, challenge, callback, peer, self._clock())
        self._flows[flow.state] = flow
        return flow

    def _is_old(self, flow: Flow) -> bool:
        return self._clock() - flow.began >= FLOW_SECONDS

    def _drop_flows(self, seconds: float) -> None:
        """Those that began so long ago."""
        now = self._clock()
        for flow in [flow for flow in self._flows.values() if now - flow.began >= seconds]:
            del self._flows[flow.state]
            self._by_code.pop(flow.code_hash, None)

    def pending(self, state: str) -> Flow:
        """The flow that waits for an answer. Raises LoginRefused."""
        flow = self._flows.get(state)
        if flow is None:
            raise LoginRefused(Fault.UNKNOWN_STATE, "This login is not known. It may have expired; start it again.")
        if self._is_old(flow):
            raise LoginRefused(Fault.EXPIRED, "This login has expired; start it again.")
        if flow.progress is not FlowState.PENDING:
            raise LoginRefused(Fault.OVER, "This login was answered already.")
        return flow

    async def approve(self, state: str, token: Secret, peer: Peer) -> Flow:
        """The holder of `token` lets the flow log in as its user. Raises LoginRefused, BadCredentials."""
        self.pending(state)
        caller = await self._accounts.authenticate(token, peer)
        flow = self.pending(state)  # somebody else may have answered meanwhile
        flow.progress = FlowState.APPROVED
        flow.token_id = caller.token_id
        log.info("login approved", email=escape(flow.email), owner=caller.owner)
        self._note(
            audit.LoginApproved(who=audit.who_is(caller), peer=str(peer), email=flow.email, started_from=str(flow.peer))
        )
        return flow

    def refuse(self, state: str, peer: Peer) -> Flow:
        """Raises LoginRefused."""
        flow = self.pending(state)
        flow.progress = FlowState.REFUSED
        self._note(audit.LoginDeclined(peer=str(peer), email=flow.email, started_from=str(flow.peer)))
        return flow

    def hand_over(self, state: str) -> tuple[FlowState, Secret | None]:
        """What the terminal hears: with an approval, once, the code. REFUSED stands for all that is over.

        Raises LoginRefused(UNKNOWN_STATE).
        """
        flow = self._flows.get(state)
        if flow is None:
            raise LoginRefused(Fault.UNKNOWN_STATE, "This login is not known. It may have expired; start it again.")
        if self._is_old(flow):
            return FlowState.REFUSED, None
        match flow.progress:
            case FlowState.PENDING:
                return FlowState.PENDING, None
            case FlowState.APPROVED:
                return FlowState.APPROVED, self.code_of(flow)
            case _:
                return FlowState.REFUSED, None

    def code_of(self, flow: Flow) -> Secret:
        """The login code of an approved flow; it is made now and shown only here."""
        code = Secret(secrets.token_urlsafe(32))
        flow.code_hash = hash_of(code)
        flow.progress = FlowState.HANDED_OVER
        self._by_code[flow.code_hash] = flow
        return code

    async def exchange(self, code: Secret, verifier: str, peer: Peer) -> NewPair:
        """A code and the verifier for a pair; a code is good once. Raises LoginRefused, StoreError."""
        flow = self._by_code.get(hash_of(code))
        if flow is None:
            raise LoginRefused(Fault.UNKNOWN_CODE, "Login code is invalid.")
        try:
            caller = self._judge_exchange(flow, verifier)
        except LoginRefused as refused:
            self._note(audit.ExchangeRefused(peer=str(peer), email=flow.email, reason=str(refused)))
            raise
        flow.exchanged = True
        login = Login(str(uuid.uuid4()), flow.token_id, flow.email, self._now())
        try:
            async with self._issuing:
                pair = await self._issue(login, None)
        except StoreError:
            flow.exchanged = False
            raise
        self._note(audit.LoginExchanged(who=audit.who_is(caller), peer=str(peer), login=login.id, email=login.email))
        return pair

    def _judge_exchange(self, flow: Flow, verifier: str) -> Caller:
        if flow.exchanged:
            raise LoginRefused(Fault.USED_CODE, "Login code was used already.")
        if self._is_old(flow):
            raise LoginRefused(Fault.EXPIRED_CODE, "Login code has expired.")
        if not hmac.compare_digest(challenge_of(verifier).encode(), flow.challenge.encode("utf-8", "surrogatepass")):
            raise LoginRefused(Fault.WRONG_VERIFIER, "Code verifier does not match.")
        caller = self._accounts.caller_of(flow.token_id)
        if caller is None:
            raise LoginRefused(Fault.NO_SUCH_USER, "The token that approved this login is gone.")
        return caller

    # pairs

    async def refresh(self, token: Secret, peer: Peer) -> NewPair:
        """A refresh token for a new pair. Raises LoginRefused(WRONG_REFRESH_TOKEN), StoreError (UNWRITTEN_MAX)."""
        async with self._issuing:
            pair = self._by_refresh.get(hash_of(token))
            caller = None if pair is None else self._caller_of(pair.login_id)
            if pair is None or caller is None or pair.expires_at <= self._now():
                raise LoginRefused(Fault.WRONG_REFRESH_TOKEN, "Refresh token is invalid or expired.")
            login = self._logins[pair.login_id]
            who, at = audit.who_is(caller), str(peer)
            if pair.replaced_at is not None and not self._has_grace(pair, pair.replaced_at):
                log.warning("a replaced refresh token came back; its login ends", email=escape(login.email), peer=at)
                self._note(audit.RefreshReused(who=who, peer=at, login=login.id, email=login.email))
                self._forget(login.id)
                await self.flush()
                raise LoginRefused(Fault.WRONG_REFRESH_TOKEN, "Refresh token was used before; log in again.")
            made = await self._issue(login, pair)
            self._note(audit.LoginRefreshed(who=who, peer=at, login=login.id, email=login.email))
            return made

    def _has_grace(self, pair: Pair, replaced_at: datetime) -> bool:
        if (self._now() - replaced_at).total_seconds() < GRACE_SECONDS:
            return True
        return not any(other.used for other in self._pairs[pair.login_id].values() if other.parent_id == pair.id)

    async def _issue(self, login: Login, parent: Pair | None) -> NewPair:
        now = self._now()
        access, refresh = Secret(secrets.token_urlsafe(48)), Secret(secrets.token_urlsafe(48))
        pair = Pair(
            id=str(uuid.uuid4()),
            login_id=login.id,
            parent_id=None if parent is None else parent.id,
            access_hash=hash_of(access),
            refresh_hash=hash_of(refresh),
            issued_at=now,
            expires_at=now + timedelta(seconds=PAIR_SECONDS),
        )
        known = self._pairs.get(login.id, {})
        dropped = list(known.values())[: max(0, len(known) + 1 - PAIRS_PER_LOGIN_MAX)]
        dropped = [old for old in dropped if old is not parent]
        was = None if parent is None else (parent.replaced_at, parent.used)
        if parent is not None:
            parent.replaced_at = parent.replaced_at or now
            parent.used = True
        ids = tuple(old.id for old in dropped)
        with trio.CancelScope(shield=True):  # memory and book must not part
            try:
                await self._write_refreshed()
                await self._book.add(None if login.id in self._logins else login, pair, parent, ids)
            except StoreError as error:
                if parent is None or was is None:
                    raise
                if len(self._unwritten) >= UNWRITTEN_MAX:
                    parent.replaced_at, parent.used = was
                    raise
                log.warning("a refresh could not be written yet", error=str(error))
                self._unwritten.append(_Refreshed(pair, parent, ids))
        if login.id not in self._logins:
            while len(self._logins) >= LOGINS_MAX:
                self._forget(next(iter(self._logins)))
            self._logins[login.id] = login
            self._pairs[login.id] = {}
        for old in dropped:
            self._drop_pair(old)
        self._remember(pair)
        return NewPair(access, refresh, PAIR_SECONDS, login.email)

    def _remember(self, pair: Pair) -> None:
        self._pairs[pair.login_id][pair.id] = pair
        self._by_access[pair.access_hash] = pair
        self._by_refresh[pair.refresh_hash] = pair

    def _drop_pair(self, pair: Pair) -> None:
        self._pairs[pair.login_id].pop(pair.id, None)
        self._by_access.pop(pair.access_hash, None)
        self._by_refresh.pop(pair.refresh_hash, None)

    def _forget(self, login_id: str) -> None:
        """A login is over: none of its tokens opens anything any more."""
        if self._logins.pop(login_id, None) is None:
            return
        for pair in self._pairs.pop(login_id).values():
            self._by_access.pop(pair.access_hash, None)
            self._by_refresh.pop(pair.refresh_hash, None)
        self._unwritten = deque(waiting for waiting in self._unwritten if waiting.pair.login_id != login_id)
        self._unwanted.add(login_id)

    def _caller_of(self, login_id: str) -> Caller | None:
        """Whoever a login stands for, while it lives."""
        login = self._logins.get(login_id)
        return None if login is None else self._accounts.caller_of(login.token_id)

    # who is it

    def find(self, access: Secret) -> Caller | None:
        """Whoever an access token stands for; None for any other text."""
        pair = self._by_access.get(hash_of(access))
        if pair is None or pair.expires_at <= self._now():
            return None
        if not pair.used:
            pair.used = True
            self._used.add(pair.id)
        return self._caller_of(pair.login_id)

    async def authenticate(self, token: Secret, peer: Peer) -> Caller:
        """An access token, or an API token in its place. Raises BadCredentials."""
        return self.find(token) or await self._accounts.authenticate(token, peer)

    async def log_out(self, caller: Caller, refresh: Secret | None, peer: Peer) -> None:
        """End the login that a refresh token belongs to; without one every login of the caller's user."""
        if refresh is not None:
            pair = self._by_refresh.get(hash_of(refresh))
            over = [] if pair is None or not self._may_end(caller, pair.login_id) else [pair.login_id]
        else:
            over = [login_id for login_id in self._logins if self._may_end(caller, login_id)]
        for login_id in over:
            self._forget(login_id)
        self._note(audit.LoggedOut(who=audit.who_is(caller), peer=str(peer), logins=len(over)))
        await self.flush()

    def _may_end(self, caller: Caller, login_id: str) -> bool:
        """A token that only reads may look at another's user: it ends the logins that it approved itself."""
        other = self._caller_of(login_id)
        if other is None or other.owner != caller.owner:
            return False
        return caller.role is not Role.READ or caller.token_id == other.token_id

    def _token_ended(self, token_id: str) -> None:
        for login in [login for login in self._logins.values() if login.token_id == token_id]:
            self._forget(login.id)


def challenge_of(verifier: str) -> str:
    """RFC 7636, section 4.2: base64url without padding of the SHA-256 of the verifier."""
    digest = hashlib.sha256(verifier.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
