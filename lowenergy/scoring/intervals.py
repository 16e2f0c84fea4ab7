"""How sure a figure is: intervals of shares, of paired answers, and of whatever is computed from samples.

Every function is pure: numbers in, an Interval out; random ones take a seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowenergy.base.intervals import CONFIDENCE, Interval, standard_errors, wilson

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Interval",
    "Paired",
    "around",
    "bootstrap",
    "mcnemar",
    "resampled",
    "standard_errors",
    "wilson",
]

RESAMPLES = 200  # enough for the ends of a 95 % interval to a tenth of its width


@dataclass(frozen=True)
class Paired:
    """How much better one classifier answers than another on the same images, see `mcnemar`."""

    difference: Interval  # of their accuracies, first minus second
    p_value: float  # of a difference as large if neither is better

    @property
    def told_apart(self) -> bool:
        return self.p_value < 1 - CONFIDENCE


def mcnemar(first: Tensor, second: Tensor) -> Paired:
    """Compare two classifiers by their answers to the same images (McNemar 1947).

    Only images that exactly one of them answers right tell them apart: b only the first, c only the second. The p-value
    is that of b in an exact two-sided binomial test of b + c at one half. The difference (b - c) / n has Agresti &
    Min's (2005) interval: Wald's, after half an image is added to each of the four counts.

    Args:
        first, second: (n,) bool, whether each answers an image right.
    Raises:
        ValueError: one has more answers than the other, or there are none.

    >>> right = torch.tensor([True] * 95 + [False] * 5)
    >>> paired = mcnemar(right, right.roll(1))
    >>> print(paired.difference, round(paired.p_value, 3))
    0 (-0.03328 to 0.03328) 1.0
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"answers of {tuple(first.shape)} and {tuple(second.shape)}; give two of the same images")
    n = len(first)
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = min(1.0, 2 * _binomial_tail(min(b, c), b + c))
    more, fewer, total = b + 0.5, c + 0.5, n + 2
    centre = (more - fewer) / total
    half = standard_errors() * math.sqrt(max(0.0, more + fewer - (more - fewer) ** 2 / total)) / total
    value = (b - c) / n
    return Paired(Interval(value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half))), p_value)


def _binomial_tail(k: int, n: int) -> float:
    """P(X <= k) for n fair coins, by logarithms, so that no n is too large."""
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def bootstrap(
    statistic: Callable[[Tensor], float],
    n: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    value: float | None = None,
    least: float = -math.inf,
) -> Interval:
    """A statistic of n samples, and how it would vary if others of their kind had been drawn (Efron 1979).

    Args:
        statistic: computed from the samples with these indices, (n,) int64, some of which occur more than once.
        resamples: how many sets of n indices are drawn with replacement.
        value: the statistic of all samples, if it is known.
        least: see around.
    Raises:
        ValueError: n is less than 2, or a resample's figure is not finite.
    """
    figures = resampled(statistic, n, seed=seed, resamples=resamples)
    return around(statistic(torch.arange(n)) if value is None else value, figures, least)


def resampled(statistic: Callable[[Tensor], float], n: int, *, seed: int, resamples: int = RESAMPLES) -> list[float]:
    """The figures of the resamples of `bootstrap`.

    The same n and seed give the same sets of indices. For samples that come in pairs, the differences of two
    statistics' figures are therefore the resamples of their difference.

    Raises:
        ValueError: n is less than 2.
    """
    if n < 2:
        raise ValueError(f"{n} samples; an interval needs at least 2")
    generator = torch.Generator().manual_seed(seed)
    return [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(resamples)]


def around(value: float, found: Sequence[float], least: float = -math.inf) -> Interval:
    """The interval of a figure, from the figures of resamples.

    These are moved so that their mean is the figure itself: FID and Inception Score are biased by the number of
    different samples, and resamples have fewer.

    Args:
        least: the least that such a figure can be, and so its interval's lower end.
    Raises:
        ValueError: a resample's figure is not finite.
    """
    if not all(map(math.isfinite, found)):
        raise ValueError("a resample's figure is not finite")
    shift = value - math.fsum(found) / len(found)
    low, high = _quantile(found, (1 - CONFIDENCE) / 2), _quantile(found, (1 + CONFIDENCE) / 2)
    return Interval(value, min(value, max(least, low + shift)), max(value, high + shift))


def _quantile(values: Sequence[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
