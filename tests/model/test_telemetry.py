"""The formulas of telemetry, with the contract's own vectors."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.model.telemetry import (
    SAMPLES_MAX,
    Samples,
    clean_method,
    clean_path,
    clean_region,
    mean,
    nearest_rank,
)


def test_ten_at_one_instant() -> None:
    samples = Samples()
    for duration in range(10, 101, 10):
        samples.add(0.0, float(duration))
    assert samples.read(0.0) == (55.0, 55.0, 50.0, 90.0)


def test_the_edges_of_both_windows_are_inclusive() -> None:
    samples = Samples()
    samples.add(0.0, 5.0)
    samples.add(240.0, 40.0)
    assert samples.read(300.0)[:2] == (40.0, 22.5)
    assert samples.read(300.001) == (None, 40.0, 40.0, 40.0)
    assert samples.read(540.001) == (None, None, None, None)
    assert len(samples) == 0


def test_nothing_was_measured() -> None:
    assert Samples().read(0.0) == (None, None, None, None)


def test_a_request_counts_where_it_started() -> None:
    samples = Samples()
    samples.add(200.0, 1.0)  # the short one ended first
    samples.add(0.0, 200_000.0)
    assert samples.read(261.0) == (None, 100_000.5, 1.0, 200_000.0)
    assert samples.read(301.0) == (None, 1.0, 1.0, 1.0)


def test_the_buffer_is_bounded() -> None:
    samples = Samples()
    for number in range(SAMPLES_MAX + 1):
        samples.add(0.0, float(number))
    assert len(samples) == SAMPLES_MAX
    assert samples.read(0.0)[2] == SAMPLES_MAX / 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0.5, 0.9]))
def test_the_nearest_rank_is_a_sample_that_so_many_do_not_exceed(values: list[float], quantile: float) -> None:
    ordered = sorted(values)
    found = nearest_rank(ordered, quantile)
    assert found in ordered
    not_above = sum(value <= found for value in ordered)
    assert not_above >= round(quantile * len(ordered), 9)
    assert sum(value < found for value in ordered) < round(quantile * len(ordered), 9)


def test_no_values() -> None:
    assert mean([]) is None
    assert nearest_rank([], 0.5) is None


def test_what_is_cleaned() -> None:
    assert [clean_region(text) for text in (None, "", "  ", " us-east ", "x" * 20)] == [
        None,
        None,
        None,
        "US-EAST",
        "X" * 16,
    ]
    assert [clean_path(text) for text in ("/a?b=1#c", " /a\ufeff", "a", "", "#x", "/" + "p" * 600)] == [
        "/a",
        "/a",
        "/a",
        "/",
        "/",
        "/" + "p" * 511,
    ]
    assert clean_method(" get ") == "GET"
