"""What a search is after: the least of something, at no more than so much loss of quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lowenergy.base.errors import UserError

Minimized = Literal["bytes", "macs", "latency", "flash", "ram"]
QUALITIES = ("accuracy", "fid")
UNITS = {"accuracy": 100, "fid": 1}  # accuracy is lost in points
COSTS = {
    "bytes": "size_bytes",
    "macs": "macs",
    "latency": "share_of_time",
    "flash": "flash",
    "ram": "ram",
}  # of a trial's figures
HOPELESS = 10.0  # log of the loss that a trial is given which was stopped, or could not be done
HUGE = 2**30  # bytes of flash or RAM that such a trial is said to take

Figures = Mapping[str, Any]  # of a trial: its card's validation, size_bytes, macs; and if measured share_of_time, flash


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

    def excess(self, name: str, lost: float, teacher: float) -> float:
        """How far a loss is beyond the limit; at most 0 if it is within.

        Args:
            lost: how much worse the figure is than the teacher's.
        """
        if self.relative:
            return lost / max(teacher, 1e-9) - self.amount
        return lost * UNITS[name] - self.amount


@dataclass(frozen=True)
class Goal:
    minimize: Minimized = "bytes"
    max_loss: Limit | None = None
    max_bytes: int | None = None
    max_macs: int | None = None
    max_flash: int | None = None
    max_ram: int | None = None

    @property
    def of_device(self) -> bool:
        """Whether it asks what a model takes as C on a device."""
        return self.minimize in ("flash", "ram") or self.max_flash is not None or self.max_ram is not None

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
        """How far each limit is exceeded, at most 0 where it is kept; one of each limit that there is.

        A loss counts by the upper end of its interval: of many trials the best is a lucky one.
        """
        found = []
        if self.max_loss is not None:
            found += [
                self.max_loss.excess(name, bound_of(figures, name), float(teacher["validation"][name]))
                for name in qualities(figures)
            ]
        limits = [
            (self.max_bytes, "size_bytes"),
            (self.max_macs, "macs"),
            (self.max_flash, "flash"),
            (self.max_ram, "ram"),
        ]
        for limit, name in limits:
            if limit is not None:
                found.append(math.log(figures[name] / limit))
        return found


def bound_of(figures: Figures, name: str) -> float:
    """The most that a model may have lost, against its teacher, of this figure of validation."""
    return float(figures["validation"]["lost"][f"{name}_interval"][1])


def too_few(goal: "Goal", teacher: Figures) -> list[str]:
    """Where the validation images cannot show that a branch keeps the limit, even if each answer is its teacher's."""
    if goal.max_loss is None or "accuracy" not in qualities(teacher):
        return []
    from torch import ones

    from lowenergy.scoring.intervals import mcnemar

    right = ones(int(teacher["validation"]["images"])).bool()
    least, theirs = mcnemar(right, right).difference.high, float(teacher["validation"]["accuracy"])
    if goal.max_loss.excess("accuracy", least, theirs) <= 0:
        return []
    return [
        f"{len(right):,} validation images cannot show a loss below {100 * least:.1f} points of accuracy; "
        "hold out more (data.validation), or allow more"
    ]


def qualities(figures: Figures) -> list[str]:
    return [name for name in QUALITIES if name in figures["validation"]]
