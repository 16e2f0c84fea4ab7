"""The card of a model: every figure that was measured of it; and the few that one decides by.

Stage `evaluate` writes cards/NAME.json, which DVC keeps; the last stage makes of them what git keeps, cards.json and
metrics/NAME.json.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lowenergy.base import files

FOLDER, ALL, METRICS = Path("cards"), Path("cards.json"), Path("metrics")
SCORER = "scorer"
DECISIVE = ("accuracy", "fid", "size_bytes")  # what one decides by: quality, and what it costs

Bounds = Sequence[float]  # [low, high] of an interval of 95 %


class Lost(TypedDict, total=False):
    """How much worse a branch is than its teacher, on the same images or from the same noise; below 0: better."""

    accuracy: float
    accuracy_interval: Bounds
    p_value: float  # McNemar's: of as large a difference in accuracy by chance
    fid: float
    fid_interval: Bounds


class Figures(TypedDict, total=False):
    """How good a model is on one split. Those of energies are of images that they draw."""

    images: int  # classified
    accuracy: float
    accuracy_interval: Bounds
    nll: float
    calibration_error: float
    samples: int  # drawn
    fid: float
    fid_interval: Bounds
    inception_score: float
    inception_score_interval: Bounds
    lost: Lost  # of a branch


class Changed(TypedDict):
    """The class that lost most: which share of its test images each of the two answers right."""

    label: str
    own: float
    teacher: float
    images: int


class Card(Figures, total=False):
    """The figures of the test split, those of the validation split, and what the model takes."""

    validation: Figures
    ood_auroc: dict[str, float]
    agreement: float  # of a branch: the share of test images that get the teacher's answer
    lost_most: Changed
    fid_to_teacher: float  # of a branch's samples, against the teacher's
    energy_correlation: float  # Spearman's, of branch and teacher over test images
    recoveries: int
    pruned: Any  # the amount asked for, and what was reached
    warnings: str
    size_bytes: int
    compression_ratio: float
    bits_per_weight: float
    codes_bytes: int
    codebooks_bytes: int
    other_bytes: int
    parameters: int
    nonzero_parameters: int
    macs: int
    micronet: dict[str, float]


def told_apart(first: Bounds | None, second: Bounds | None) -> bool:
    """Whether two models of one target differ by more than chance, given the intervals of what each has lost.

    The teacher, against which both were measured, has lost nothing and has no interval. Without any, figures count as
    they are. Two branches have the teacher's chance in common, so this errs towards "no".
    """
    if first is None and second is None:
        return True
    (low, high), (other_low, other_high) = first or (0.0, 0.0), second or (0.0, 0.0)
    apart = abs(low + high - other_low - other_high) / 2
    return apart > math.hypot(high - low, other_high - other_low) / 2


def decisive(card: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that DVC's tables show; the card has all."""
    few = {key: card[key] for key in DECISIVE if key in card}
    return few | {"validation": decisive(card["validation"])} if "validation" in card else few


def collect(names: Iterable[str], root: str | Path = ".") -> dict[str, Card]:
    """The cards of these models, of those that have one: as last measured here, or else as git has them."""
    root = Path(root)
    known = json.loads((root / ALL).read_text()) if (root / ALL).exists() else {}
    own = {name: root / FOLDER / f"{name}.json" for name in names}
    cards = {name: json.loads(path.read_text()) if path.exists() else known.get(name) for name, path in own.items()}
    return {name: card for name, card in cards.items() if card is not None}


def publish(names: Iterable[str]) -> None:
    """Write what git keeps, from the cards of these models and of the scorer."""
    cards = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in (SCORER, *names)}
    files.write_json(ALL, cards)
    for name, card in cards.items():
        files.write_json(METRICS / f"{name}.json", card if name == SCORER else decisive(card))
