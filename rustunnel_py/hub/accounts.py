"""Who is who: the admin token, API tokens, and what their holders may do.

A credential is judged in memory: its SHA-256 is looked up among all live tokens and compared in constant time,
the same work for every failure. That look-up costs nothing, so it is never refused: however many wrong tokens come
in, who has an API token gets in at once (122 random bits cannot be guessed). What is slowed down and capped is
the wrong answer:

* per address (an IPv6 /64 is one), after a burst of wrong tokens each further one is answered late;
* the late ones are bounded in number over all addresses; past that the answer comes at once, and unlogged;
* an admin token short enough to be guessed is not accepted from an address in that state, nor, while a global
  budget of wrong answers is used up, from an address it has not come from before.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections import OrderedDict
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import structlog
import trio

from rustunnel_py.errors import BadCredentials, BadRequest, Forbidden, NotFound, Unavailable
from rustunnel_py.hub import audit
from rustunnel_py.hub.audit import unheard
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.bucket import Bucket, source_of
from rustunnel_py.model.scope import parse_scope
from rustunnel_py.model.text import escape
from rustunnel_py.store.instants import utc_now
from rustunnel_py.store.tokens import READS_ADMIN, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from rustunnel_py.hub.audit import Actor, Note
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.store.store import Store

T = TypeVar("T")

TOKENS_MAX = 10_000  # all of them are in memory, about half a KiB each
LABEL_MAX = 200  # characters; it is shown in a column
NOT_BLANK = r"[^\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # what `strip` leaves
TUNNELS_MAX = 1_000_000  # of one token; a number that no server reaches
PROTOCOLS = frozenset({"http", "tcp"})  # what a token may be limited to
SCOPE_MAX = 4096  # characters; some hundred patterns
CREDENTIAL_MAX = 4096  # characters; more is no token, and hashing it would only cost time
UNGUESSABLE = 22  # characters: 128 bits in base 64; what the server makes has 43

WRONG_PER_SECOND = 0.2  # per address, once its burst is used up: one mistyped token in five seconds
WRONG_BURST = 10.0  # a handful of agents behind one address with an old token each
ADDRESSES_MAX = 10_000  # remembered with wrong or with right tokens; who is pushed out starts anew
ALL_WRONG_PER_SECOND = 50.0  # over all addresses
ALL_WRONG_BURST = 500.0
LATE_SECONDS = 0.5  # how late the answer comes; below the 1 s in which those with a token are in
LATE_MAX = 256  # answers that wait at a time; each holds a socket

CHORE_SECONDS = 0.5  # expiry ends live sessions within a second
FLUSH_EVERY = 10  # chores: uses of tokens are written every five seconds

INVALID = "invalid token"  # the wire's and the REST page's own words, for every failure
_NOBODY = hashlib.sha256(b"").hexdigest()  # stands in for the hash that was not found: same work

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Accounts:
    """`clock` is monotonic seconds, `now` the wall clock: expiry is a promise about dates, budgets are not."""

    def __init__(
        self,
        store: Store,
        admin_token: Secret,
        require_auth: bool,
        *,
        clock: Callable[[], float] = trio.current_time,
        now: Callable[[], datetime] = utc_now,
        note: Note = unheard,
    ) -> None:
        self._tokens = store.tokens
        self._admin = Caller(owner=store.accounts.first, role=Role.ADMIN)
        self._admin_hash = hash_of(admin_token)
        self._admin_guessable = len(admin_token.reveal()) < UNGUESSABLE
        self._require_auth = require_auth
        self._now = now
        self._note = note
        self._callbacks: list[Callable[[str], None]] = []
        self._expiring: dict[str, datetime] = {}  # tokens that were used here and will end by themselves
        self._throttle = _Throttle(clock)

    # who is it

    async def authenticate_agent(self, token: Secret, peer: Peer) -> Caller:
        """Whoever an agent's token stands for; anybody where no token is required. Raises BadCredentials."""
        caller = self._judge(token, peer)
        if caller is None and not self._require_auth:
            return _anonymous(token, peer)
        if caller is None:
            await self._refuse(peer, "agents")
        if caller.role is Role.READ:
            raise BadCredentials("this token may read, not open tunnels")
        return caller

    async def authenticate(self, token: Secret, peer: Peer) -> Caller:
        """Whoever an API caller's token stands for; a token is always required. Raises BadCredentials."""
        caller = self._judge(token, peer)
        if caller is None:
            await self._refuse(peer, "api")
        return caller

    def _judge(self, secret: Secret, peer: Peer) -> Caller | None:
        digest = hash_of(secret)
        token = self._tokens.find(digest)
        known = hmac.compare_digest(digest, _NOBODY if token is None else token.hash)
        is_admin = hmac.compare_digest(digest, self._admin_hash)
        if is_admin:
            if self._admin_guessable and not self._throttle.is_calm(peer):
                return None
            self._throttle.welcome(peer)
            return self._admin
        if token is None or not known or self._is_over(token):
            return None
        self._tokens.note_use(token.id, self._now())
        return self._caller(token)

    def caller_of(self, token_id: str | None) -> Caller | None:
        """Whoever a token stands for (None: the admin), while it lives; for what was opened with it and goes on."""
        if token_id is None:
            return self._admin
        token = self._tokens.get(token_id)
        if token is None or self._is_over(token):
            return None
        return self._caller(token)

    def _caller(self, token: Token) -> Caller:
        if token.expires_at is not None:
            self._expiring[token.id] = token.expires_at
        return Caller(
            owner=token.owner,
            role=token.role,
            token_id=token.id,
            token_label=token.label,
            scope=token.scope,
            max_tunnels=token.max_tunnels,
            protocols=token.protocols,
        )

    def is_live(self, caller: Caller) -> bool:
        """Whether what the caller came with still stands: asked again at each use, not only at login."""
        if caller.token_id is None:
            return True
        token = self._tokens.get(caller.token_id)
        return token is not None and not self._is_over(token)

    def _is_over(self, token: Token) -> bool:
        return token.expires_at is not None and token.expires_at <= self._now()

    async def _refuse(self, peer: Peer, at: Literal["agents", "api"]) -> NoReturn:
        """The one answer to all wrong credentials, late for those who ask too often."""
        logged, late = self._throttle.wrong(peer)
        if logged:
            log.warning("a token was refused", peer=str(peer))
            self._note(audit.LoginRefused(peer=str(peer), at=at))
        if late:
            with self._throttle.waiting():
                await trio.sleep(LATE_SECONDS)
        raise BadCredentials(INVALID)

    # what may they do

    def require_writer(self, caller: Caller) -> None:
        if caller.role is Role.READ:
            raise Forbidden("this token may only read")

    def require_admin(self, caller: Caller) -> None:
        if not caller.is_admin:
            raise Forbidden("admin only")

    # tokens

    async def create_token(
        self,
        label: str,
        scope: str | None = None,
        *,
        role: Role = Role.AGENT,
        expires_at: datetime | None = None,
        max_tunnels: int | None = None,
        protocols: tuple[str, ...] | None = None,
        reads: str | None = None,
        by: Actor | None = None,
    ) -> tuple[Token, Secret]:
        """A new token with a user of its own, and its secret, which nobody sees again.

        `reads`, with role READ: it acts for the user of the token with this id, or of the admin token (READS_ADMIN),
        and so sees what that one sees. It outlives that token: its end is its own, and so is what it may see of the
        past. Raises BadRequest for a value that cannot be used, NotFound, Unavailable(limit), StoreError.
        """
        if not re.search(NOT_BLANK, label) or len(label) > LABEL_MAX:
            raise BadRequest(f"label: 1 to {LABEL_MAX} characters, and not only blanks")
        if scope is not None:
            if len(scope) > SCOPE_MAX:
                raise BadRequest(f"scope: at most {SCOPE_MAX} characters")
            parse_scope(scope)
        if max_tunnels is not None and not 1 <= max_tunnels <= TUNNELS_MAX:
            raise BadRequest(f"max_tunnels: 1 to {TUNNELS_MAX}, or null")
        if protocols is not None and not (protocols and set(protocols) <= PROTOCOLS):
            raise BadRequest("protocols: some of http, tcp, or null for all")
        if expires_at is not None:
            expires_at = _in_utc(expires_at)
        if reads is not None and role is not Role.READ:
            raise BadRequest("reads: goes with the role read")
        owner = str(uuid.uuid4()) if reads is None else self._user_of(reads)
        if len(self._tokens) >= TOKENS_MAX:
            raise Unavailable("limit", f"there are {TOKENS_MAX} tokens; delete some first")
        secret = Secret(str(uuid.uuid4()))
        token = Token(
            id=str(uuid.uuid4()),
            hash=hash_of(secret),
            label=label,
            owner=owner,
            scope=scope,
            role=role,
            created_at=self._now(),
            expires_at=expires_at,
            max_tunnels=max_tunnels,
            protocols=None if protocols is None else tuple(dict.fromkeys(protocols)),
            reads=reads,
        )
        await self._tokens.create(token)
        log.info("token created", token=token.id, label=escape(label))
        self._note(
            audit.TokenCreated(
                who=None if by is None else by.who,
                peer="" if by is None else str(by.peer),
                token=token.id,
                label=label,
                role=role.value,
                scope=scope,
                expires_at=None if expires_at is None else expires_at.isoformat(),
                reads=reads,
            )
        )
        return token, secret

    def _user_of(self, token_id: str) -> str:
        if token_id == READS_ADMIN:
            return self._admin.owner
        token = self._tokens.get(token_id)
        if token is None:
            raise NotFound("reads: no such token")
        return token.owner

    def list_tokens(self) -> list[Token]:
        """All of them, expired ones too, in the order in which they were made."""
        return self._tokens.all()

    async def delete_token(self, token_id: str, *, by: Actor | None = None) -> None:
        """Revoke a token; its sessions end at once. Raises NotFound, StoreError."""
        token = self._tokens.get(token_id)
        if token is None:
            raise NotFound("token not found")
        await self._tokens.delete(token_id)
        log.info("token deleted", token=token_id)
        self._note(
            audit.TokenDeleted(
                who=None if by is None else by.who,
                peer="" if by is None else str(by.peer),
                token=token_id,
                label=token.label,
            )
        )
        self._ended(token_id)

    def tunnel_registered(self, caller: Caller) -> None:
        if caller.token_id is not None:
            self._tokens.note_tunnel(caller.token_id)

    def on_ended(self, callback: Callable[[str], None]) -> None:
        """`callback(token_id)` is called when a token was deleted or has expired."""
        self._callbacks.append(callback)

    def _ended(self, token_id: str) -> None:
        self._expiring.pop(token_id, None)
        for callback in self._callbacks:
            callback(token_id)

    async def run(self) -> None:
        """End what has expired, and write the uses of tokens now and then; once more when cancelled."""
        try:
            while True:
                for _ in range(FLUSH_EVERY):
                    await trio.sleep(CHORE_SECONDS)
                    self.expire()
                await self._tokens.flush()
        finally:
            await self._tokens.flush()

    def expire(self) -> None:
        """Tell of tokens whose date has passed."""
        now = self._now()
        for token_id in [token_id for token_id, end in self._expiring.items() if end <= now]:
            log.info("token expired", token=token_id)
            self._note(audit.TokenExpired(token=token_id))
            self._ended(token_id)


def hash_of(secret: Secret) -> str:
    """The SHA-256 of a credential, in hex; of one that is too long to be any, of its first part and a mark."""
    text = secret.reveal()
    if len(text) > CREDENTIAL_MAX:
        text = text[:CREDENTIAL_MAX] + "\N{HORIZONTAL ELLIPSIS}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _in_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:  # in the year 0 or 10000 there
        raise BadRequest("expires_at: a time from the year 1 to 9999, in UTC") from None


def _anonymous(token: Secret, peer: Peer) -> Caller:
    """The owner of what an unknown token registers where none is required (wire spec, section 3.1)."""
    name = hash_of(token) if token.reveal() else peer.ip
    return Caller(owner=f"anonymous:{name}", role=Role.AGENT, anonymous=True)


class _Budget:
    """A bucket that remembers for how long it is empty."""

    __slots__ = ("_bucket", "_empty_until")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._bucket = Bucket(rate, now, burst)
        self._empty_until = now

    def take(self, now: float) -> bool:
        wait = self._bucket.take(now)
        self._empty_until = now + wait
        return wait == 0.0

    def is_used_up(self, now: float) -> bool:
        return now < self._empty_until


class _Throttle:
    """Who sent wrong tokens lately, in bounded maps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, _Budget] = OrderedDict()
        self._admins: OrderedDict[str, None] = OrderedDict()  # addresses that the admin token came from
        self._all_wrong = _Budget(ALL_WRONG_PER_SECOND, ALL_WRONG_BURST, clock())
        self._late = 0

    def wrong(self, peer: Peer) -> tuple[bool, bool]:
        """Count a wrong token: whether to log it, and whether to answer late."""
        now = self._clock()
        source = source_of(peer.ip)
        budget = self._wrong.pop(source, None) or _Budget(WRONG_PER_SECOND, WRONG_BURST, now)
        _put(self._wrong, source, budget)
        within = budget.take(now)
        all_within = self._all_wrong.take(now)
        return within and all_within, not within and self._late < LATE_MAX

    def welcome(self, peer: Peer) -> None:
        source = source_of(peer.ip)
        self._admins.pop(source, None)
        _put(self._admins, source, None)

    def is_calm(self, peer: Peer) -> bool:
        """Whether a secret that could be guessed may be tried from there now."""
        now = self._clock()
        source = source_of(peer.ip)
        budget = self._wrong.get(source)
        if budget is not None and budget.is_used_up(now):
            return False
        return source in self._admins or not self._all_wrong.is_used_up(now)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._late += 1
        try:
            yield
        finally:
            self._late -= 1


def _put(addresses: OrderedDict[str, T], source: str, value: T) -> None:
    """As the newest; the oldest makes room."""
    if len(addresses) >= ADDRESSES_MAX:
        addresses.popitem(last=False)
    addresses[source] = value
