"""Statistics against values that were worked out elsewhere or by hand."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.statistic import Moments, cohens_d, effect, fill, quantile, wilson


@pytest.mark.parametrize(
    ("good", "n", "low", "high"),
    [
        # R: prop.test(x, n, correct = FALSE)$conf.int
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_examples(good: int, n: int, low: float, high: float) -> None:
    assert wilson(good, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_holds_the_share_and_mirrors(n: int, share: float) -> None:
    good = round(n * share)
    low, high = wilson(good, n)
    assert 0 <= low <= good / n + 1e-9 and good / n - 1e-9 <= high <= 1
    assert wilson(n - good, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_cohens_d_by_hand() -> None:
    # means 4 and 2, both variances 1 (n - 1), so d = 2 / 1
    assert cohens_d([3, 4, 5], [1, 2, 3]) == pytest.approx(2.0)
    assert cohens_d([1, 2, 3], [3, 4, 5]) == pytest.approx(-2.0)


def test_cohens_d_of_unequal_sizes_pools_by_degrees_of_freedom() -> None:
    a, b = [10, 12, 14, 20], [9, 11]
    pooled = math.sqrt((3 * statistics.variance(a) + 1 * statistics.variance(b)) / 4)
    assert cohens_d(a, b) == pytest.approx((14 - 10) / pooled)


@pytest.mark.parametrize(
    ("a", "b", "d"), [([1], [2], None), ([], [], None), ([5, 5], [7, 7], None), ([5, 5], [5], None)]
)
def test_cohens_d_that_says_nothing_is_none(a: list[int], b: list[int], d: None) -> None:
    assert cohens_d(a, b) is d


def test_cohens_d_of_equal_constants_is_zero() -> None:
    assert cohens_d([5, 5], [5, 5]) == 0.0


def test_moments_of_a_hundred_million_long_answers_lose_no_digit() -> None:
    # Half of them 30,000 tokens long and half 30,001: variance 1/4, which floating-point sums of squares would lose.
    n = 10**8
    half = n // 2
    many = Moments(n, half * 30_000 + half * 30_001, half * 30_000**2 + half * 30_001**2)
    assert many.variance == pytest.approx(0.25, rel=1e-6)
    assert effect(many, many) == 0.0


def test_quantile_of_counts() -> None:
    counts = {-5: 1, 0: 2, 3: 1}
    assert [quantile(counts, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [-5, -5, 0, 0, 3]
    assert quantile({}, 0.5) is None


@pytest.mark.parametrize(
    ("sizes", "room", "shared"),
    [
        ({"a": 1000, "b": 3, "c": 40}, 100, {"a": 57, "b": 3, "c": 40}),  # the rare ones whole, the rest to the largest
        ({"a": 1000, "b": 1000}, 10, {"a": 5, "b": 5}),
        ({"a": 4, "b": 5}, 100, {"a": 4, "b": 5}),
        ({}, 10, {}),
    ],
)
def test_fill_shares_the_room(sizes: dict[str, int], room: int, shared: dict[str, int]) -> None:
    assert fill(sizes, room) == shared
