"""The statistics that reports are made of, pure functions of numbers: shares with intervals, and effect sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959964  # the standard normal's 97.5 % quantile: two-sided 95 %


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for the share ``successes / n`` (Wilson 1927); of nothing it is (0, 1)."""
    if not n:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


@dataclass(frozen=True, slots=True)
class Moments:
    """A set of whole numbers, by what mean and variance need; exact however many there are."""

    n: int
    total: int
    squares: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Moments:
        return cls(len(values), sum(values), sum(value * value for value in values))

    @property
    def mean(self) -> float:
        """Of nothing it is 0."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """Of the population, estimated: divided by n - 1; below two numbers it is 0."""
        # In whole numbers, because the difference of two large sums of squares loses all digits in floating point.
        return (self.n * self.squares - self.total * self.total) / (self.n * (self.n - 1)) if self.n > 1 else 0.0


def effect(a: Moments, b: Moments) -> float | None:
    """Cohen's d: the difference of the means over the pooled standard deviation (Cohen 1988, section 2.2).

    Above 0 where ``a`` is larger; 0.2 is called small, 0.5 medium, 0.8 large. None where it says nothing: below two
    numbers on a side, or no spread at all around means that differ.
    """
    if a.n < 2 or b.n < 2:
        return None
    difference = a.mean - b.mean
    pooled = math.sqrt(((a.n - 1) * a.variance + (b.n - 1) * b.variance) / (a.n + b.n - 2))
    if not pooled:
        return None if difference else 0.0
    return difference / pooled


def cohens_d(a: Sequence[int], b: Sequence[int]) -> float | None:
    """Cohen's d of two lists of whole numbers; see ``effect``."""
    return effect(Moments.of(a), Moments.of(b))


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """The smallest value that at least this share of the counted values does not exceed; None of nothing."""
    total = sum(counts.values())
    reached = 0
    for value in sorted(counts):
        reached += counts[value]
        if reached >= share * total:
            return value
    return None


def fill(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """How ``room`` places are shared among groups: each gets as many as the others, or all that it has.

    The rarest groups come out whole, and no place is left empty while some group could use it, except where fewer
    places are left than groups that could.
    """
    out = dict.fromkeys(sizes, 0)
    left = room
    for rank, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        out[name] = min(sizes[name], left // (len(sizes) - rank))
        left -= out[name]
    return out
