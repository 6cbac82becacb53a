"""The pin of a key."""

from __future__ import annotations

import pytest

from rustunnel_py.wire.pin import is_pin, pin_of, pin_of_certificate


def test_pin_is_the_hash_in_hex() -> None:
    # FIPS 180-2, appendix B.1
    assert pin_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 64 + "\n"]
)
def test_no_pin(text: str) -> None:
    assert not is_pin(text)


def test_pin_itself() -> None:
    assert is_pin(pin_of(b""))


def test_what_is_no_certificate() -> None:
    with pytest.raises(ValueError):
        pin_of_certificate(b"\x30\x00")
