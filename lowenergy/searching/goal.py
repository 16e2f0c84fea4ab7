"""The goal of a search: the lowest cost, such as bytes, at no more than a given loss of quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lowenergy.base.errors import UserError

Minimized = Literal["bytes", "macs", "latency", "flash", "ram"]
QUALITIES = ("accuracy", "fid")
UNITS = {"accuracy": 100, "fid": 1}  # a loss of accuracy counts in points
COSTS = {
    "bytes": "size_bytes",
    "macs": "macs",
    "latency": "share_of_time",
    "flash": "flash",
    "ram": "ram",
}  # where they are in a trial's figures
HOPELESS = 10.0  # the loss, a logarithm, of a trial that was stopped or could not be done
HUGE = 2**30  # bytes of flash or RAM that such a trial counts as taking

# Of a trial: its card's validation, size_bytes and macs; if measured, share_of_time, flash and ram, too.
Figures = Mapping[str, Any]


class GoalError(UserError):
    """The goal makes no sense; the message names the option."""


@dataclass(frozen=True)
class Limit:
    """How much of a figure may be lost."""

    amount: float
    relative: bool  # a share of the teacher's own figure; else points of accuracy, or FID

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Parse `5%` of the teacher's figure, or `0.5` in the figure's own unit.

        Raises:
            GoalError: the text is neither, or below 0.
        """
        try:
            limit = cls(float(text.removesuffix("%")) / (100 if text.endswith("%") else 1), text.endswith("%"))
        except ValueError:
            limit = cls(math.nan, False)
        if not 0 <= limit.amount < math.inf:
            raise GoalError(f"--max-loss {text}: give 5% (of the teacher's figure) or 0.5 (points of accuracy, or FID)")
        return limit

    def excess(self, name: str, lost: float, teacher: float) -> float:
        """How far a loss exceeds the limit; at most 0 if it does not.

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
    def planned_for(self) -> int | bool:
        """Bytes of RAM for which models are planned; True for the fewest that each can do with, False for no device."""
        return self.of_device if self.max_ram is None or self.minimize == "ram" else self.max_ram

    @property
    def of_device(self) -> bool:
        """True if the goal concerns what a model takes as C on a device."""
        return self.minimize in ("flash", "ram") or self.max_flash is not None or self.max_ram is not None

    def loss(self, figures: Figures, teacher: Figures) -> float:
        """The logarithm of how many times worse the quality is than the teacher's, by the worst of several figures."""
        losses = []
        for name in qualities(figures):
            mine, theirs = (max(1e-9, float(f["validation"][name])) for f in (figures, teacher))
            losses.append(math.log(mine / theirs) if name == "fid" else math.log(theirs / mine))
        return max(losses)

    def cost(self, figures: Figures) -> float:
        """The figure to minimise."""
        return float(figures[COSTS[self.minimize]])

    def violations(self, figures: Figures, teacher: Figures) -> list[float]:
        """How far each limit is exceeded, at most 0 where it is kept; max_loss counts once per quality.

        A loss counts by the upper end of its interval, because the best of many trials is a lucky one.
        """
        excesses = []
        if self.max_loss is not None:
            excesses += [
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
                excesses.append(math.log(figures[name] / limit))
        return excesses


def bound_of(figures: Figures, name: str) -> float:
    """The most that a model may have lost of this validation figure against its teacher: the interval's upper end."""
    return float(figures["validation"]["lost"][f"{name}_interval"][1])


def too_few(goal: "Goal", teacher: Figures) -> list[str]:
    """A warning if the validation images cannot show that a branch keeps the limit even where it answers all of them as
    its teacher does; else an empty list."""
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
