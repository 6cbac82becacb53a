"""Token buckets and what counts as one source."""

from __future__ import annotations

import pytest

from rustunnel_py.model.bucket import Bucket, Buckets, source_of


def test_a_burst_is_one_second_s_worth_and_it_fills_at_the_rate() -> None:
    bucket = Bucket(4.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(0.0) == pytest.approx(0.25)
    assert bucket.take(0.25) == 0.0
    assert bucket.take(0.25) > 0


def test_a_rate_below_one_still_lets_one_through() -> None:
    bucket = Bucket(0.1, now=0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(1.0) == pytest.approx(9.0)
    assert bucket.take(10.0) == 0.0


def test_a_long_pause_gives_no_more_than_a_burst() -> None:
    bucket = Bucket(2.0, now=0.0)
    assert [bucket.take(1000.0) == 0.0 for _ in range(3)] == [True, True, False]


def test_a_bucket_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="rate"):
        Bucket(0.0, now=0.0)


def test_sources_do_not_share_and_the_map_is_bounded() -> None:
    buckets = Buckets(1.0, most=3)
    assert [buckets.take(source, 0.0) for source in "abc"] == [0.0] * 3
    assert buckets.take("a", 0.0) > 0
    buckets.take("d", 0.0)
    assert len(buckets) == 3
    assert buckets.take("a", 0.0) > 0  # used last but one: "b" made room
    assert buckets.take("b", 0.0) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_T12_ipv6_counts_by_64(one: str, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same
