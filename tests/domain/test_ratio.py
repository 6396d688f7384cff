"""Rates as exact fractions."""

import pytest

from app.domain.comparison import Ratio


@pytest.mark.parametrize(
    ("part", "whole", "percent"),
    ((2, 3, 66), (1, 3, 33), (0, 3, 0), (3, 3, 100), (199, 200, 99), (29, 100, 29), (0, 0, None)),
)
def test_percent_is_cut(part: int, whole: int, percent: int | None) -> None:
    """R10: 2 of 3 is 66; of nothing there is no share."""
    assert Ratio(part, whole).percent == percent
