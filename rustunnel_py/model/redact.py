"""What of a capture is hidden, and where it is looked for.

A secret is known by the name it goes under (a header, a query or form field, a JSON member, an XML element, a line of
text) or by its own look (a JWT, a private key, tokens with a known beginning). What is found becomes MARK, so that a
replay can say what is missing. The tiers:

    none       nothing is hidden
    standard   secrets are masked; a body that may hold text but cannot be read (a coding unknown here) is withheld
    strict     every query value, cookie, body, message and every header value that is not known to be harmless

Nothing is parsed twice and no expression backtracks without a bound. The common capture without any secret costs some
searches for short words, in C.
"""

from __future__ import annotations

import fnmatch
import json
import re
import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rustunnel_py.model.capture import Headers, Message

Tier: TypeAlias = Literal["none", "standard", "strict"]

MARK = b"[redacted]"
REMEMBERED = 4096  # header blocks and names whose judgement is kept; then it begins anew
INFLATED_MAX = 1024 * 1024  # bytes a compressed body is read to: the inspector is no victim of zip bombs (H67)
LOOKED_AT_MAX = 5000  # places in one body that look like a secret's name; whoever has more gets the body withheld
CLEAN_REMEMBERED = 512  # bodies without a secret, by content: pollers and static files repeat them
CLEAN_BYTES_MAX = 8192  # longer ones are not remembered

# A name is known by these letters anywhere in it, in lower case and without `-`, `_`, `.` and blanks.
_STEMS = (
    "token", "secret", "passw", "passphrase", "pwd", "apikey", "accesskey", "privatekey", "signingkey", "encryptionkey",
    "subscriptionkey", "authorization", "credential", "sessionid", "sessionkey", "sessid", "jwt", "bearer", "signature",
    "cookie", "xsrf", "csrf", "otp", "cvv", "cardnumber", "clientassertion", "codeverifier", "authkey",
)  # fmt: skip
# These only as the whole name.
_NAMES = frozenset(
    {"auth", "sid", "sig", "pin", "session", "key", "pass", "hmac", "ssn", "nonce", "xauth", "authentication"}
)
_IN_ADDRESSES = frozenset({"code"})  # a secret of OAuth in an address, a harmless name in a body
_HARMLESS = ("publickey", "tokentype", "tokenendpoint", "secretname", "maxtokens", "secwebsocketkey", "idempotencykey")
_COUNTED = ("tokens", "count", "length", "limit")  # numbers under such a name are numbers

# What lower-cased text is searched for before anything else looks at it: short, few first letters, no backtracking. A
# name in _STEMS or _NAMES has one of them in it.
_WORD = (
    rb"token|secret|passw|passp|pass[\"'=:]|pwd|pin[\"'=:]|key|auth|cred|cook|code[=v_-]|cvv|card|client.?asse|sess"
    rb"|sid[\"'=:]|sig[\"'=:]|sign|srf|ssn|jwt|bear|basic |otp|hmac|nonce"
)
# What text is searched for before _LOOK is.
_LOOKS = (
    b"eyJ", b"IA", b"AIza", b"github_pat_", b"glpat-", b"k_live_", b"k_test_", b"sk-", b"xox", b"-----BEGIN", b"hf_",
    b"npm_", b"SG.",
)  # fmt: skip
# An expression holds the interpreter for as long as it runs, 15 ms over the 256 KiB of a large body, and visitors would
# wait for that: so it is run over so much at a time.
PIECE = 8 * 1024
STEM_MAX = 64  # bytes of the longest of our own stems, with what is looked at around it
# Bytes after which it is clear that one of _LOOK has begun; the longest is a JWT's head.
LOOK_BEGUN_MAX = 4096 + 64
_GITHUB = re.compile(rb"gh[opusr]_")
_LOOK = re.compile(
    rb"eyJ[\w-]{5,4096}\.[\w-]{5,65536}(?:\.[\w-]{0,8192})?"  # a JWT
    rb"|A[KS]IA[0-9A-Z]{16}"
    rb"|gh[pousr]_\w{20,255}|github_pat_\w{20,255}|glpat-[\w-]{20,64}"
    rb"|[sr]k_(?:live|test)_\w{10,255}|sk-[\w-]{20,255}"
    rb"|xox[abeoprs]-[\w-]{10,255}|AIza[\w-]{35}|hf_\w{20,64}|npm_\w{30,64}|SG\.[\w-]{16,64}\.[\w-]{16,128}"
    rb"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[^-]{0,65536}(?:-----END [A-Z ]{0,32}PRIVATE KEY-----)?"
    rb"|(?<=://)[^/\s:@\"'<>]{0,256}:[^/\s@\"'<>]{1,256}(?=@)"  # user:password@
    rb"|(?<=[Bb]earer )[\w.~+/=-]{8,8192}|(?<=[Bb]asic )[\w+/=-]{8,4096}"
)
_VALUE = (
    rb"(?:\\*\"((?:[^\"\\\n]|\\(?!\")[^\n])*)|\\*'([^'\\\n]*+)"
    rb"|((?:(?:[Bb]earer|[Bb]asic|[Tt]oken|[Dd]igest|[Nn]egotiate)\s++)?[^\s&;,<>\"'}\])\\]++))"
)
# Behind a stem: the rest of the name, and a value that is given to it in one of the ways people write that.
_GIVEN = re.compile(
    rb"[\w.\-\[\]%]{0,64}+(?:"
    rb"\\*[\"']?\s{0,8}(?:=>|[:=])\s{0,8}" + _VALUE  # name: value, "name": "value", name=value
    + rb"|[\"'][^<>\n]{0,128}?\s(?:value|content)\s{0,4}=\s{0,4}" + _VALUE  # name="name" … value="value"
    + rb"|[^<>\n]{0,128}>\s{0,64}([^<\s][^<]*+)<"  # <name>value<
    rb"|[\"'][^\n]{0,256}\r\n(?:[^\r\n]{1,256}\r\n){0,8}\r\n((?:(?!\r\n--).){1,65536})"  # a part of a form
    rb")",
    re.DOTALL,
)  # fmt: skip

_PLAIN_MEDIA = (b"image/", b"video/", b"audio/", b"font/")
_FORM = b"application/x-www-form-urlencoded"
_INFLATABLE = frozenset({b"gzip", b"x-gzip", b"deflate"})
_HARMLESS_HEADERS = frozenset({
    b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"content-type", b"content-length",
    b"content-encoding", b"content-language", b"transfer-encoding", b"connection", b"date", b"server", b"vary",
    b"cache-control", b"expires", b"age", b"last-modified", b"accept-ranges", b"content-range", b"range", b"upgrade",
    b"keep-alive", b"te", b"trailer", b"allow", b"retry-after", b"dnt", b"pragma", b"sec-fetch-site", b"sec-fetch-mode",
    b"sec-fetch-dest", b"x-content-type-options", b"x-frame-options", b"strict-transport-security", b"expect",
    b"sec-websocket-version", b"upgrade-insecure-requests",
})  # fmt: skip
_SCHEMES = re.compile(rb"(?i)(basic|bearer|digest|negotiate|ntlm|token|apikey|aws4-hmac-sha256|hawk|signature) +")
_SQUEEZE = str.maketrans("", "", "-_. \t[]$@")


class Judged(NamedTuple):
    """A header block, masked, and what it says of the body behind it."""

    headers: Headers
    media: bytes  # lower case, without parameters
    coding: bytes  # of the content, lower case; b"" for none


class Redactor:
    """One tier with its patterns. `names` are wildcards for names of headers and fields, `patterns` expressions that
    values are searched for; raises re.error for one that is none. `pause` is called after each PIECE of a large text.
    """

    def __init__(
        self,
        tier: Tier = "standard",
        names: Sequence[str] = (),
        patterns: Sequence[str] = (),
        *,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.tier = tier
        self._pause = pause
        self._extra = [re.compile(fnmatch.translate(name.lower())) for name in names]
        self._extra_words = [
            word.encode() for name in names if (word := max(re.split(r"[*?\[\]]", name.lower()), key=len))
        ]
        self._patterns = [re.compile(pattern.encode()) for pattern in patterns]
        stems = [re.escape(stem).replace("_", "[_-]?") for stem in _spelled(_STEMS)]
        self._stem = re.compile(
            "|".join((*stems, *(re.escape(word.decode()) for word in self._extra_words))).encode()
            + rb"|(?<![a-z0-9_-])(?:" + b"|".join(sorted(name.encode() for name in _NAMES)) + rb")(?![a-z0-9_])"
        )  # fmt: skip
        self._stem_max = STEM_MAX + max(map(len, self._extra_words), default=0)
        self._word = re.compile(b"|".join((_WORD, *map(re.escape, self._extra_words))))
        self._known: dict[str, bool] = {}
        self._blocks: dict[Headers, Judged] = {}
        self._clean: dict[bytes, None] = {}
        self._targets: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"<Redactor {self.tier}>"

    # names

    def hides(self, name: str) -> bool:
        """Whether what goes under that name is a secret."""
        known = self._known.get(name)
        if known is None:
            known = self._judge_name(name)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[name[:256]] = known
        return known

    def _judge_name(self, name: str) -> bool:
        lowered = name.lower()
        if any(pattern.match(lowered) for pattern in self._extra):
            return True
        squeezed = lowered.translate(_SQUEEZE)
        if any(harmless in squeezed for harmless in _HARMLESS):
            return False
        return squeezed in _NAMES or any(stem in squeezed for stem in _STEMS)

    # headers and request lines

    def judge(self, headers: Headers) -> Judged:
        """The block masked; blocks that come again cost one look-up."""
        judged = self._blocks.get(headers)
        if judged is None:
            judged = self._judge(headers)
            if len(self._blocks) >= REMEMBERED:
                self._blocks.clear()
            self._blocks[headers] = judged
        return judged

    def _judge(self, headers: Headers) -> Judged:
        media = coding = b""
        masked = []
        for name, value in headers:
            key = name.lower()
            if key == b"content-type":
                media = value.partition(b";")[0].strip().lower()
            elif key == b"content-encoding":
                coding = value.strip().lower()
            masked.append((name, self.header(key, value)))
        changed = tuple(masked)
        return Judged(headers if changed == headers else changed, media, b"" if coding == b"identity" else coding)

    def header(self, key: bytes, value: bytes) -> bytes:
        """One header's value, masked; `key` is its name in lower case."""
        if self.tier == "none" or not value:
            return value
        if key in (b"cookie", b"set-cookie"):
            return _cookies(value, all_of_it=key == b"cookie")
        if self.hides(key.decode("latin-1")):
            scheme = _SCHEMES.match(value)
            return MARK if scheme is None else scheme[0] + MARK
        if self.tier == "strict" and key not in _HARMLESS_HEADERS:
            return MARK
        if b"?" in value or b"#" in value:
            value = self._address(value)
        return self.text(value) or MARK

    def target(self, target: bytes) -> bytes:
        """A request target or a URL, its secret query values masked; those that come again cost one look-up."""
        if self.tier == "none":
            return target
        masked = self._targets.get(target)
        if masked is None:
            masked = self._target(target)
            if len(self._targets) >= REMEMBERED:
                self._targets.clear()
            self._targets[target] = masked
        return masked

    def _target(self, target: bytes) -> bytes:
        if b"?" in target:
            target = self._address(target)
        return self.text(target) or MARK if self._looks_suspicious(target) else target

    def _address(self, url: bytes) -> bytes:
        path, mark, query = url.partition(b"?")
        if not mark:
            path, mark, query = url.partition(b"#")
        return path + mark + self.query(query)

    def query(self, query: bytes) -> bytes:
        """`a=1&token=2` (a query, a form), masked; a fragment behind it as well."""
        return b"".join(
            piece if index % 2 else self._pair(piece) for index, piece in enumerate(re.split(rb"([&;#?])", query))
        )

    def _pair(self, pair: bytes) -> bytes:
        name, given, value = pair.partition(b"=")
        if not value:
            return pair
        plain = unquote_to_bytes(name.replace(b"+", b" ")).decode("latin-1")
        hidden = self.tier == "strict" or self.hides(plain) or plain.lower() in _IN_ADDRESSES
        return name + given + MARK if hidden else pair

    # bodies

    def body(self, body: bytes, judged: Judged) -> bytes | None:
        """A body masked, still in its coding. None: it must be withheld."""
        if not body or self.tier == "none":
            return body
        if self.tier == "strict":
            return None
        if judged.media.startswith(_PLAIN_MEDIA):
            return body
        if not judged.coding:
            return self._plain(body, judged.media)
        if judged.coding not in _INFLATABLE:
            return None
        plain = _inflated(body, judged.coding)
        if plain is None:
            return None
        masked = self._decoded(plain, judged.media)
        return body if masked == plain else None if masked is None else _deflated(masked, judged.coding)

    def _plain(self, body: bytes, media: bytes) -> bytes | None:
        clean = self._clean
        if body in clean:
            return body
        masked = self._decoded(body, media)
        if masked == body and len(body) <= CLEAN_BYTES_MAX:
            if len(clean) >= CLEAN_REMEMBERED:
                clean.clear()
            clean[body] = None
        return masked

    def _decoded(self, body: bytes, media: bytes) -> bytes | None:
        lowered = body.lower()
        is_escaped = b"%" in body if media == _FORM else b"\\u" in body
        if not is_escaped and self._word.search(lowered) is None:
            return self._looks(body)
        if media == _FORM:
            return self._looks(self.query(body))
        if body[:64].lstrip()[:1] in (b"{", b"["):
            parsed = self._json(body)
            if parsed is not None:
                return self._looks(parsed)
        return self._looks(self._given(body, lowered))

    def text(self, text: bytes) -> bytes | None:
        """Any text masked. None: it has more secrets than anybody means."""
        return self._looks(self._given(text, text.lower()))

    def message(self, message: Message) -> bytes | None:
        """A message's content masked. None: it must be withheld."""
        if self.tier == "none" or not message.content:
            return message.content
        if self.tier == "strict" or message.compressed:
            return None
        return self._decoded(message.content, b"")

    def _json(self, body: bytes) -> bytes | None:
        """None: it is no JSON (it may be clipped)."""
        try:
            parsed = json.loads(body)
            if not self._mask_members(parsed):
                return body
            pretty = b'": ' in body
            separators = None if pretty else (",", ":")
            indent = 2 if b"\n" in body.rstrip() else None
            return json.dumps(parsed, ensure_ascii=False, separators=separators, indent=indent).encode(
                "utf-8", "surrogatepass"
            )
        except (ValueError, RecursionError):
            return None

    def _mask_members(self, tree: object) -> bool:
        """In place; whether anything was masked. Text inside is looked at like any text."""
        masked = False
        stack: list[dict[object, object] | list[object]] = [tree] if isinstance(tree, dict | list) else []
        while stack:
            node = stack.pop()
            members: Iterable[tuple[object, object]] = (
                list(node.items()) if isinstance(node, dict) else list(enumerate(node))
            )
            for name, value in members:
                replacement = value
                if isinstance(name, str) and self.hides(name):
                    replacement = _hidden(value, name)
                elif isinstance(value, str) and ("=" in value or ":" in value or "<" in value):
                    plain = value.encode("utf-8", "surrogatepass")
                    found = self.text(plain)
                    if found != plain:
                        replacement = (found or MARK).decode("utf-8", "surrogatepass")
                elif isinstance(value, dict | list):
                    stack.append(value)
                if replacement is not value:
                    node[name] = replacement  # type: ignore[call-overload]
                    masked = True
        return masked

    def _looks_suspicious(self, text: bytes) -> bool:
        return b"%" in text or self._word.search(text.lower()) is not None or _has_looks(text) or bool(self._patterns)

    def _given(self, text: bytes, lowered: bytes) -> bytes | None:
        """Masks what stands behind a secret's name. None: too many."""
        pieces: list[bytes] = []
        done = looked_at = 0
        for stem in _found_in_pieces(self._stem, lowered, self._stem_max, self._pause):
            if stem.start() < done:
                continue
            looked_at += 1
            if looked_at > LOOKED_AT_MAX:
                return None
            given = _GIVEN.match(text, stem.end())
            if given is None:
                continue
            start, end = given.span(given.lastindex or 0)
            if (
                start == end
                or text.startswith(MARK, start)
                or not self._is_named(text, stem.start(), stem.end(), start)
            ):
                continue
            pieces += text[done:start], MARK
            done = end
        if not pieces:
            return text
        pieces.append(text[done:])
        return b"".join(pieces)

    def _is_named(self, text: bytes, start: int, end: int, value: int) -> bool:
        """Whether the whole name around a stem is a secret's; numbers of things are none."""
        while start > 0 and end - start < 128 and chr(text[start - 1]) in _NAME_LETTERS:
            start -= 1
        while end < value and chr(text[end]) in _NAME_LETTERS:
            end += 1
        name = text[start:end].decode("latin-1")
        if _is_counted(name) and text[value : value + 1].isdigit():
            return False
        squeezed = name.lower().translate(_SQUEEZE)
        return not any(harmless in squeezed for harmless in _HARMLESS)

    def _looks(self, text: bytes | None) -> bytes | None:
        """Masks what is a secret by its own look."""
        if text is None:
            return None
        if _has_looks(text):
            text = _LOOK.sub(MARK, text) if len(text) <= PIECE else _masked_in_pieces(text, self._pause)
        for pattern in self._patterns:
            text = pattern.sub(MARK, text)
        return text


def _found_in_pieces(
    pattern: re.Pattern[bytes], text: bytes, longest: int, pause: Callable[[], None]
) -> Iterator[re.Match[bytes]]:
    """`finditer` for matches of at most `longest` bytes, with a pause after each piece."""
    if len(text) <= PIECE:
        yield from pattern.finditer(text)
        return
    at = 0
    for start in range(0, len(text), PIECE):
        at = max(at, start)
        while (found := pattern.search(text, at, start + PIECE + longest)) and found.start() < start + PIECE:
            yield found
            at = max(found.end(), at + 1)
        pause()


def _masked_in_pieces(text: bytes, pause: Callable[[], None]) -> bytes:
    """`_LOOK.sub(MARK, text)`. A piece shows where something begins, and there the whole of it is looked at."""
    pieces: list[bytes] = []
    done = at = 0
    for start in range(0, len(text), PIECE):
        at = max(at, start)
        while (begun := _LOOK.search(text, at, start + PIECE + LOOK_BEGUN_MAX)) and begun.start() < start + PIECE:
            found = _LOOK.match(text, begun.start()) or begun
            pieces += text[done : found.start()], MARK
            done = at = found.end()
        pause()
    pieces.append(text[done:])
    return b"".join(pieces)


def _has_looks(text: bytes) -> bool:
    for look in _LOOKS:
        if look in text:
            return True
    return (b"@" in text and b"://" in text) or b"earer " in text or _GITHUB.search(text) is not None


_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def _spelled(stems: tuple[str, ...]) -> list[str]:
    """Stems of two words as text spells them: `api_key`, `api-key`, `apikey`."""
    second = ("key", "id", "number", "assertion", "verifier")
    return [
        next((f"{stem.removesuffix(word)}_{word}" for word in second if stem != word and stem.endswith(word)), stem)
        for stem in stems
    ]


def _is_counted(name: str) -> bool:
    return name.lower().endswith(_COUNTED)


def _hidden(value: object, name: str) -> object:
    """What stands in a secret's place: of a structure everything in it but its shape."""
    if isinstance(value, dict):
        return {key: _hidden(member, name) for key, member in value.items()}
    if isinstance(value, list):
        return [_hidden(member, name) for member in value]
    if value is None or value == "" or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and _is_counted(name):
        return value
    return MARK.decode()


def _cookies(value: bytes, *, all_of_it: bool) -> bytes:
    """Of Cookie every value, of Set-Cookie the first: its attributes are no secret."""
    pairs = value.split(b";")
    for index, pair in enumerate(pairs):
        name, given, content = pair.partition(b"=")
        if not given:
            pairs[index] = pair if index else MARK
        elif content:
            pairs[index] = name + given + MARK
        if not all_of_it:
            break
    return b";".join(pairs)


def _inflated(body: bytes, coding: bytes) -> bytes | None:
    """The beginning of a compressed body; None: it is none, or larger than anybody reads."""
    for window in (15,) if coding != b"deflate" else (15, -15):
        inflater = zlib.decompressobj(window + 16 if coding != b"deflate" else window)
        try:
            plain = inflater.decompress(body, INFLATED_MAX)
        except zlib.error:
            continue
        return None if inflater.unconsumed_tail else plain
    return None


def _deflated(plain: bytes, coding: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, 15 if coding == b"deflate" else 31)
    return deflater.compress(plain) + deflater.flush()


def masked_names(headers: Headers, target: bytes, body: bytes) -> list[str]:
    """What of a request is masked, in words: `header Authorization`, `query token`, `body`."""
    names = [f"header {name.decode('latin-1')}" for name, value in headers if MARK in value]
    if MARK in target:
        pairs = [pair.partition(b"=") for pair in re.split(rb"[?&;#]", target)]
        named = [f"query {name.decode('latin-1')}" for name, given, value in pairs if given and MARK in value]
        names += named or ["path"]
    if MARK in body:
        names.append("body")
    return names
