from __future__ import annotations

import gzip
import json
import re
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.model import redact
from rustunnel_py.model.capture import Message
from rustunnel_py.model.redact import MARK, PIECE, Judged, Redactor, masked_names
from tests.support import secrets40

TEXT = Judged((), b"text/plain", b"")


def body(redactor: Redactor, text: bytes, media: str = "", coding: str = "") -> bytes | None:
    return redactor.body(text, Judged((), media.encode(), coding.encode()))


@pytest.fixture
def standard() -> Redactor:
    return Redactor()


@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        (b"authorization", b"Bearer abc.def", b"Bearer [redacted]"),
        (b"authorization", b"abc", b"[redacted]"),
        (b"cookie", b"a=1; b=2", b"a=[redacted]; b=[redacted]"),
        (b"set-cookie", b"a=1; Path=/; HttpOnly", b"a=[redacted]; Path=/; HttpOnly"),
        (b"x-api-key", b"1", b"[redacted]"),
        (b"referer", b"https://x/?q=1&token=abc", b"https://x/?q=1&token=[redacted]"),
        (b"location", b"/cb#access_token=abc&x=1", b"/cb#access_token=[redacted]&x=1"),
        (b"user-agent", b"curl/8.0", b"curl/8.0"),
        (b"content-type", b"application/json", b"application/json"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"x-note", b"see AKIAIOSFODNN7EXAMPLE", b"see [redacted]"),
    ],
)
def test_headers(standard: Redactor, name: bytes, value: bytes, masked: bytes) -> None:
    assert standard.header(name, value) == masked


def test_blocks_without_a_secret_are_the_same_object(standard: Redactor) -> None:
    headers = ((b"Host", b"a.example"), (b"Accept", b"*/*"))
    assert standard.judge(headers).headers is headers
    secret = ((b"Host", b"a.example"), (b"Authorization", b"Bearer x"))
    assert standard.judge(secret) is standard.judge(secret)


def test_json_keeps_what_is_no_secret(standard: Redactor) -> None:
    text = b'{"user":"ann","password":"hunter 2","n":{"api_key":["a",{"b":"c"}]},"max_tokens":5,"total_tokens":7}'
    assert body(standard, text, "application/json") == (
        b'{"user":"ann","password":"[redacted]","n":{"api_key":["[redacted]",{"b":"[redacted]"}]},'
        b'"max_tokens":5,"total_tokens":7}'
    )
    harmless = b'{ "user" : "ann",\n "keyboard": "qwerty" }'
    assert body(standard, harmless, "application/json") == harmless


@pytest.mark.parametrize(
    ("text", "media"),
    [
        (b'{"p\\u0061ssword":"SECRET"}', "application/json"),
        (b'{"a":1,"password":"SEC RET","api-key": "SECRET', "application/json"),  # clipped
        (b'{"text":"{\\"token\\": \\"SECRET\\"}"}', "application/json"),
        (b'[{"Authorization":"Bearer SECRET"}]', ""),
        (b"a=1&api%5Fkey=SECRET&%70assword=SECRET", "application/x-www-form-urlencoded"),
        (b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\nSEC RET\r\n--b--', "multipart/form-data"),
        (b"<a><t:Password x='1'>SECRET</t:Password></a>", "text/xml"),
        (b'<input name="csrf_token" value="SECRET">', "text/html"),
        (b"AUTH_TOKEN=SECRET\nsecret: 'SEC RET'\n", "text/plain"),
        (b"Authorization: Bearer SECRETSECRET\r\n", ""),
        (b"https://ann:SECRET@host.example/", "text/plain"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----", ""),
    ],
)
def test_bodies(standard: Redactor, text: bytes, media: str) -> None:
    masked = body(standard, text, media)
    assert masked is not None
    assert MARK in masked
    assert b"SEC" not in masked
    assert b"RET" not in masked
    assert body(standard, masked, media) == masked


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_stays_compressed(standard: Redactor, coding: str) -> None:
    plain = b'{"token": "SECRET", "a": 1}'
    packed = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    masked = body(standard, packed, "application/json", coding)
    assert masked is not None
    unpacked = gzip.decompress(masked) if coding == "gzip" else zlib.decompress(masked)
    assert unpacked == b'{"token": "[redacted]", "a": 1}'
    clean = gzip.compress(b"nothing")
    assert body(standard, clean, "text/plain", "gzip") is clean


def test_H67_a_bomb_is_not_inflated_and_an_unknown_coding_is_withheld(standard: Redactor) -> None:
    assert body(standard, gzip.compress(b"\0" * 10_000_000), "text/plain", "gzip") is None
    assert body(standard, b"anything", "application/json", "br") is None
    assert body(standard, b"\x89PNG token=abc", "image/png", "br") == b"\x89PNG token=abc"


def test_the_tiers() -> None:
    secret = ((b"Authorization", b"Bearer x"), (b"X-Odd", b"y"), (b"Accept", b"*/*"))
    none, strict = Redactor("none"), Redactor("strict")
    assert none.judge(secret).headers is secret
    assert none.target(b"/?token=x") == b"/?token=x"
    assert none.body(b"token=x", TEXT) == b"token=x"
    assert strict.judge(secret).headers == ((b"Authorization", b"Bearer [redacted]"), (b"X-Odd", MARK), secret[2])
    assert strict.target(b"/a?x=1") == b"/a?x=[redacted]"
    assert strict.body(b"hello", TEXT) is None
    assert strict.message(Message(True, "text", 1, 0.0, b"x")) is None


def test_names_and_patterns_of_the_operator() -> None:
    redactor = Redactor("standard", ["x-internal-*", "kontonummer"], [r"corp-\d+"])
    assert redactor.header(b"x-internal-id", b"7") == MARK
    assert redactor.body(b'{"kontonummer": "123", "a": "see corp-77"}', TEXT) == (
        b'{"kontonummer": "[redacted]", "a": "see [redacted]"}'
    )
    with pytest.raises(re.error):
        Redactor("standard", [], ["("])


def test_a_compressed_message_is_withheld(standard: Redactor) -> None:
    assert standard.message(Message(True, "text", 3, 0.0, b"\x01\x02\x03", compressed=True)) is None
    assert standard.message(Message(True, "text", 11, 0.0, b'{"token":1}')) == b'{"token":"[redacted]"}'


def test_a_body_full_of_names_is_withheld(standard: Redactor) -> None:
    assert body(standard, b"token=a&" * 30_000, "text/plain") is None


def test_what_is_masked_can_be_named() -> None:
    headers = ((b"Authorization", b"Bearer [redacted]"), (b"Accept", b"*/*"))
    assert masked_names(headers, b"/?a=1&token=[redacted]", b"x [redacted]") == [
        "header Authorization",
        "query token",
        "body",
    ]


def test_forty_secrets(standard: Redactor) -> None:
    lines = [*secrets40.request_headers(), *secrets40.response_headers(), secrets40.trailer()]
    pairs = [line.split(": ", 1) for line in lines]
    shown = [standard.judge(tuple((name.encode(), value.encode()) for name, value in pairs)).headers]
    told: list[bytes] = [value for headers in shown for _, value in headers]
    told.append(standard.target(secrets40.target().encode()))
    told.append(body(standard, secrets40.request_body(), "application/json") or b"")
    told.append(gzip.decompress(body(standard, secrets40.response_body(), "text/html", "gzip") or b""))
    told.append(body(standard, secrets40.form(), "application/x-www-form-urlencoded") or b"")
    told.append(body(standard, secrets40.events(), "text/event-stream") or b"")
    told.append(standard.message(Message(True, "text", 1, 0.0, secrets40.message())) or b"")
    assert [number for number in range(40) if any(secrets40.planted(number).encode() in text for text in told)] == []


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(max_examples=100, deadline=None)
def test_any_json_stays_json(tree: object) -> None:
    masked = body(Redactor(), json.dumps({"token": 1, "tree": tree}).encode(), "application/json")
    assert masked is not None
    assert json.loads(masked)["token"] == "[redacted]"


@given(st.binary(max_size=300), st.sampled_from([b"token", b"password=", b'"secret":"', b"<apikey>", b""]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_taken(noise: bytes, word: bytes) -> None:
    redactor = Redactor()
    body(redactor, noise + word + noise)
    redactor.target(b"/" + word)
    redactor.header(b"x-any", noise)


@st.composite
def large_texts(draw: st.DrawFn) -> bytes:
    """Several pieces, with things that look like secrets where one piece ends and the next begins."""
    filler = draw(st.sampled_from([b" ", b"x", b"\n", b"token ", b"eyJ", b"-", b"key=", b"://a:", b"\xff"]))
    text = bytearray(filler * (3 * PIECE // len(filler)))
    for _ in range(draw(st.integers(1, 8))):
        secret = draw(st.sampled_from(LARGE))
        at = draw(st.sampled_from([PIECE, 2 * PIECE])) + draw(st.integers(-len(secret) - 40, 40))
        text[at : at + len(secret)] = secret
    return bytes(text)


LARGE = [
    b" eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl ",
    b" eyJ" + b"a" * 4000 + b"." + b"b" * 5000 + b".c ",
    b" AKIAIOSFODNN7EXAMPLE ",
    b" ghp_0123456789abcdefghij0123 ",
    b"\n-----BEGIN RSA PRIVATE KEY-----" + b"A" * 3000 + b"-----END RSA PRIVATE KEY-----\n",
    b" https://user:geheim@host/ ",
    b' "api_key": "geheim geheim" ',
    b" password=geheim&x=1 ",
    b" Authorization: Bearer geheim0123 ",
]


@given(large_texts())
@settings(max_examples=60, deadline=None)
def test_a_large_text_is_masked_in_pieces_as_in_one(text: bytes) -> None:
    redactor = Redactor()
    in_pieces = redactor.text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "PIECE", len(text))
        assert redactor.text(text) == in_pieces
