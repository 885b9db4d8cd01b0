from __future__ import annotations

import math

import pytest
from scipy.stats import linregress, t

from hiergen.benchmarks.measuring.fits import fit_power


def test_a_power_is_found_exactly() -> None:
    found = fit_power([1, 10, 100], [3.0, 300.0, 30_000.0])
    assert found == pytest.approx({"exponent": 2.0, "low": 2.0, "high": 2.0, "last": 2.0})
    assert fit_power([2, 4], [1.0, 8.0]) == {
        "exponent": pytest.approx(3),
        "low": None,
        "high": None,
        "last": pytest.approx(3),
    }


def test_the_interval_is_that_of_a_regression() -> None:
    sizes, values = [1, 2, 4, 8, 16], [1.1, 1.8, 4.5, 7.6, 20.0]
    found = fit_power(sizes, values)
    wanted = linregress([math.log(x) for x in sizes], [math.log(y) for y in values])
    half = t.ppf(0.975, 3) * wanted.stderr
    assert found["exponent"] == pytest.approx(wanted.slope)
    assert (found["low"], found["high"]) == pytest.approx((wanted.slope - half, wanted.slope + half))
    assert found["last"] == pytest.approx(math.log2(20.0 / 7.6))


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1, 2], [1.0], "sizes and values are 2 and 1 numbers, expected two or more, as many"),
        ([1], [1.0], "sizes and values are 1 and 1 numbers"),
        ([1, 2], [0.0, 1.0], r"sizes are \[1, 2\] and values \[0.0, 1.0\], expected all above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power(sizes, values)
