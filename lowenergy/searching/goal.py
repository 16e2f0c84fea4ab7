"""What a search is after: the least of something, at no more than so much loss of quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lowenergy.base.errors import UserError

Minimized = Literal["bytes", "macs", "latency"]
QUALITIES = ("accuracy", "fid")
COSTS = {"bytes": "size_bytes", "macs": "macs", "latency": "share_of_time"}  # what they are called in a trial's figures
HOPELESS = 10.0  # log of the loss that a trial is given which was stopped, or could not be done

Figures = Mapping[str, Any]  # of a trial: those of its validation, size_bytes, macs, and if measured share_of_time


class GoalError(UserError):
    """The goal makes no sense; the message names the option."""


@dataclass(frozen=True)
class Limit:
    """How much of a figure may be lost."""

    amount: float
    relative: bool  # a share of the teacher's own figure; else points of accuracy, or FID

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """`5%` of the teacher's figure, or `0.5` in its own unit.

        Raises:
            GoalError: neither.
        """
        try:
            limit = cls(float(text.removesuffix("%")) / (100 if text.endswith("%") else 1), text.endswith("%"))
        except ValueError:
            limit = cls(math.nan, False)
        if not 0 <= limit.amount < math.inf:
            raise GoalError(f"--max-loss {text}: give 5% (of the teacher's figure) or 0.5 (points of accuracy, or FID)")
        return limit

    def excess(self, name: str, value: float, teacher: float) -> float:
        """How far a figure is beyond the limit; at most 0 if it is within."""
        lost = value - teacher if name == "fid" else teacher - value
        if self.relative:
            return lost / max(teacher, 1e-9) - self.amount
        return lost * (1 if name == "fid" else 100) - self.amount


@dataclass(frozen=True)
class Goal:
    minimize: Minimized = "bytes"
    max_loss: Limit | None = None
    max_bytes: int | None = None
    max_macs: int | None = None

    def loss(self, figures: Figures, teacher: Figures) -> float:
        """Logarithm of how many times worse the quality is than the teacher's: of several figures, the worst."""
        found = []
        for name in qualities(figures):
            mine, theirs = (max(1e-9, float(f["validation"][name])) for f in (figures, teacher))
            found.append(math.log(mine / theirs) if name == "fid" else math.log(theirs / mine))
        return max(found)

    def cost(self, figures: Figures) -> float:
        """Of which the least is wanted."""
        return float(figures[COSTS[self.minimize]])

    def violations(self, figures: Figures, teacher: Figures) -> list[float]:
        """How far each limit is exceeded, at most 0 where it is kept; one of each limit that there is."""
        found = []
        if self.max_loss is not None:
            found += [
                self.max_loss.excess(name, float(figures["validation"][name]), float(teacher["validation"][name]))
                for name in qualities(figures)
            ]
        for limit, name in ((self.max_bytes, "size_bytes"), (self.max_macs, "macs")):
            if limit is not None:
                found.append(math.log(figures[name] / limit))
        return found


def qualities(figures: Figures) -> list[str]:
    return [name for name in QUALITIES if name in figures["validation"]]
