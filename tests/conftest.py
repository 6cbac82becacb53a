"""What every test may count on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _log_as_structlog_does_by_default() -> Iterator[None]:
    """A command that a test runs in this process sets the log up for all of it: that ends with the test."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
