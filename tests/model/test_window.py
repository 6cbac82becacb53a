from __future__ import annotations

from rustunnel_py.model.window import Allowance, Windows


def test_a_window_counts_and_begins_anew() -> None:
    windows = Windows(2, 60.0)
    assert windows.take("a", 0.0) == Allowance(True, 2, 1, 60.0)
    assert windows.take("a", 10.0) == Allowance(True, 2, 0, 50.0)
    assert windows.take("a", 59.0) == Allowance(False, 2, 0, 1.0)
    assert windows.take("b", 59.0) == Allowance(True, 2, 1, 60.0)
    assert windows.take("a", 60.0) == Allowance(True, 2, 1, 60.0)


def test_sources_are_bounded_and_the_longest_silent_one_goes() -> None:
    windows = Windows(1, 60.0, most=2)
    for source in ("a", "b", "a", "c"):
        windows.take(source, 0.0)
    assert len(windows) == 2
    assert not windows.take("a", 0.0).allowed
    assert windows.take("b", 0.0).allowed
