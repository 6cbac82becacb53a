"""Who may see and close what, and secrets that never show themselves."""

from __future__ import annotations

import pytest

from rustunnel_py.model.access import Caller, Role, Secret, may_close, may_see


@pytest.mark.parametrize(
    ("caller", "owner", "sees", "closes"),
    [
        (Caller("u1", Role.ADMIN), "u2", True, True),
        (Caller("u1", Role.AGENT), "u1", True, True),
        (Caller("u1", Role.AGENT), "u2", False, False),
        (Caller("u1", Role.READ), "u1", True, False),
        (Caller("u1", Role.READ), "u2", False, False),
        (Caller("anonymous:x", Role.AGENT, anonymous=True), "anonymous:x", False, False),
    ],
)
def test_what_a_caller_sees_and_closes(caller: Caller, owner: str, sees: bool, closes: bool) -> None:
    assert may_see(caller, owner) is sees
    assert may_close(caller, owner) is closes


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("swordfish")
    assert "swordfish" not in f"{secret} {secret!r} {[secret]} {vars(type(secret))}"
    assert secret.reveal() == "swordfish"


def test_secrets_cannot_be_compared_by_accident() -> None:
    with pytest.raises(TypeError, match="compare_digest"):
        assert Secret("a") == Secret("a")
    with pytest.raises(TypeError):
        hash(Secret("a"))
