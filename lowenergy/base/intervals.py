"""A figure with its uncertainty, and intervals for shares."""

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure, and the range of values that the images it was measured on cannot tell apart from it.

    >>> print(Interval(0.97, 0.94, 0.985))
    0.97 (0.94 to 0.985)
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def standard_errors(confidence: float = CONFIDENCE) -> float:
    """How many standard errors to either side of its mean hold this share of a normal distribution.

    >>> round(standard_errors(0.95), 2)
    1.96
    """
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(hits: int, n: int, z: float | None = None) -> Interval:
    """The share hits / n with Wilson's score interval (Wilson 1927): within [0, 1], and honest near both ends.

    Args:
        z: standard errors to either side; None for as many as CONFIDENCE needs.
    Raises:
        ValueError: hits is not in 0..n, or n is not above 0.

    >>> print(wilson(139, 143))
    0.972 (0.9303 to 0.9891)
    """
    if not (0 <= hits <= n and n > 0):
        raise ValueError(f"{hits} of {n} is no share")
    z = standard_errors() if z is None else z
    share = hits / n
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return Interval(share, min(max(0.0, low), share), max(min(1.0, high), share))  # rounding may put it outside
