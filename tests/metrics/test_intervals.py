from __future__ import annotations

import pytest

from hiergen.metrics.intervals import mean_half_width


def test_half_widths_are_those_of_students_table() -> None:
    """12.706 and 2.262 standard errors for 2 and 10 values; 1.96 for very many."""
    for count, quantile in ((2, 12.706), (10, 2.262), (100_000, 1.960)):
        assert mean_half_width(3.0, count) == pytest.approx(quantile * 3 / count**0.5, rel=1e-3)
