"""Ranges of addresses."""

from __future__ import annotations

import pytest

from rustunnel_py.model.networks import Networks


def test_an_address_is_in_its_range() -> None:
    networks = Networks.parse(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])
    for ip in ("10.1.2.3", "192.0.2.7", "2001:db8::1"):
        assert ip in networks
    for ip in ("11.0.0.1", "192.0.2.8", "2001:db9::1", "", "nonsense", "::ffff:10.0.0.1"):
        assert ip not in networks
    assert networks
    assert len(list(networks)) == 3


def test_no_range_holds_nobody() -> None:
    assert not Networks()
    assert "127.0.0.1" not in Networks()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "example.com", "", "::ffff:10.0.0.0/104", "10.0.0.0/33"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Networks.parse([text])
