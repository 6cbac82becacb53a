from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustunnel_py.store.instants import from_micros, to_micros


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_comes_back_as_it_was(instant: datetime) -> None:
    assert from_micros(to_micros(instant)) == instant


@pytest.mark.parametrize(
    ("instant", "back"),
    [
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=23))), datetime.max),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=23))), datetime.min),
    ],
)
def test_what_is_no_date_in_utc_can_be_read_all_the_same(instant: datetime, back: datetime) -> None:
    assert from_micros(to_micros(instant)) == back.replace(tzinfo=UTC)
