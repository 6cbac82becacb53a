"""Forty secrets, each where people put one. Every value has PLANTED in it, and a number."""

from __future__ import annotations

import gzip
import json

PLANTED = "s3cr3tPlanted"


def planted(number: int) -> str:
    return f"{PLANTED}{number:02d}Zz9"


_REQUEST_HEADERS = [
    ("Authorization", "Bearer {}"),
    ("Proxy-Authorization", "Basic {}"),
    ("Cookie", "theme=dark; sid={}"),
    ("X-Api-Key", "{}"),
    ("X-Auth-Token", "{}"),
    ("X-Csrf-Token", "{}"),
    ("X-Amz-Security-Token", "{}"),
    ("Ocp-Apim-Subscription-Key", "{}"),
    ("X-Gitlab-Token", "{}"),
    ("Referer", "https://other.example/login?access_token={}&x=1"),
    ("X-Vault-Token", "{}"),
    ("X-Forwarded-Authorization", "Digest {}"),
]
_QUERY = ["token", "api_key", "access_token", "password", "sig", "client_secret", "%74oken", "code"]
_JSON = {
    "password": 20,
    "clientSecret": 21,
    "nested": {"credentials": {"user": 22, "pins": [23]}},
    "accessToken": 24,
    "text": 25,
    "private_key": 26,
    "otp": 27,
}
_RESPONSE_HEADERS = [("Set-Cookie", "session={}; Path=/; HttpOnly"), ("Location", "https://a.example/cb#id_token={}")]


def request_headers() -> list[str]:
    return [f"{name}: {shape.format(planted(number))}" for number, (name, shape) in enumerate(_REQUEST_HEADERS)]


def target() -> str:
    return "/items?page=2&" + "&".join(f"{name}={planted(12 + at)}" for at, name in enumerate(_QUERY))


def request_body() -> bytes:
    """JSON, numbers 20 to 27."""

    def filled(tree: object, name: str = "") -> object:
        if isinstance(tree, dict):
            return {key: filled(value, key) for key, value in tree.items()}
        if isinstance(tree, list):
            return [filled(value) for value in tree]
        return f"login failed: password={planted(25)} given" if name == "text" else planted(int(str(tree)))

    return json.dumps(filled(_JSON)).encode()


def response_headers() -> list[str]:
    return [f"{name}: {shape.format(planted(28 + at))}" for at, (name, shape) in enumerate(_RESPONSE_HEADERS)]


def response_body() -> bytes:
    """gzip of HTML and text, numbers 30 to 34."""
    lines = [
        f'<input type="hidden" name="csrf_token" value="{planted(30)}">',
        f"<password>{planted(31)}</password>",
        f"DB_PASSWORD={planted(32)}",
        f"Authorization: Bearer {planted(33)}",
        f"postgres://app:{planted(34)}@db.example/app",
    ]
    return gzip.compress("\n".join(lines).encode())


def form() -> bytes:
    """A form, 35 and 36."""
    return f"user=a&passwd={planted(35)}&api%5Fkey={planted(36)}".encode()


def events() -> bytes:
    """An event stream, 37."""
    return f'data: {{"refresh_token": "{planted(37)}"}}\n\ndata: done\n\n'.encode()


def message() -> bytes:
    """A WebSocket message, 38."""
    return json.dumps({"type": "auth", "token": planted(38)}).encode()


def trailer() -> str:
    return f"X-Session-Token: {planted(39)}"
