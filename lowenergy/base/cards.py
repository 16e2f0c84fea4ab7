"""A model's card: every figure measured for it, and the few that decisions are based on.

Stage `evaluate` writes cards/NAME.json, which DVC keeps. From these, the last stage makes what git keeps: cards.json
and metrics/NAME.json.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lowenergy.base import files
from lowenergy.base.nested import value_at

FOLDER, ALL, METRICS = Path("cards"), Path("cards.json"), Path("metrics")
SCORER = "scorer"
DECISIVE = ("accuracy", "fid", "size_bytes")  # what decisions are based on: quality, and what it costs

Bounds = Sequence[float]  # [low, high] of a 95 % interval


class Lost(TypedDict, total=False):
    """How much worse a branch is than its teacher, on the same images or from the same noise; below 0 is better."""

    accuracy: float
    accuracy_interval: Bounds
    p_value: float  # McNemar's: the probability of so large a difference in accuracy by chance
    fid: float
    fid_interval: Bounds


class Figures(TypedDict, total=False):
    """How good a model is on one split. The figures of an energy describe the images it draws."""

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
    lost: Lost  # branches only


class Changed(TypedDict):
    """The class that lost most: the share of its test images that branch and teacher each answer correctly."""

    label: str
    own: float
    teacher: float
    images: int


class Card(Figures, total=False):
    """The figures on the test split and on the validation split, and what the model costs to store and run."""

    validation: Figures
    ood_auroc: dict[str, float]
    agreement: float  # branches only: the share of test images that get the teacher's answer
    lost_most: Changed
    fid_to_teacher: float  # a branch's samples against the teacher's
    energy_correlation: float  # Spearman's, between branch and teacher over the test images
    recoveries: int
    pruned: Any  # the amount requested and the amount reached
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
    """Return True if two models of one target differ by more than chance, given the intervals of what each has lost.

    Both were measured against the teacher, which itself has lost nothing and has no interval. If neither model has an
    interval, the figures count as they are: True. Two branches share the teacher's chance, so this errs towards False.
    """
    if first is None and second is None:
        return True
    (low, high), (other_low, other_high) = first or (0.0, 0.0), second or (0.0, 0.0)
    apart = abs(low + high - other_low - other_high) / 2
    return apart > math.hypot(high - low, other_high - other_low) / 2


def decisive(card: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that DVC's tables show; the card has all of them."""
    few = {key: card[key] for key in DECISIVE if key in card}
    return few | {"validation": decisive(card["validation"])} if "validation" in card else few


def collect(names: Iterable[str], root: str | Path = ".") -> dict[str, Card]:
    """The cards of those of these models that have one: as last measured here, otherwise as git has them."""
    root = Path(root)
    own = {name: root / FOLDER / f"{name}.json" for name in names}
    known = _in_git([name for name, path in own.items() if not path.exists()], root)
    cards = {name: _read(path, _is_card) if path.exists() else known.get(name) for name, path in own.items()}
    return {name: card for name, card in cards.items() if card is not None}


def remarks(names: Sequence[str], root: str | Path = ".") -> list[str]:
    """What the figures of these models do not show, a line each: which have none, and which are of other values of
    params.yaml than it has now, as after a run that failed."""
    root, there = Path(root), collect(names, root)
    values, stages = _now_and_then(root)
    here = [name for name in there if (root / FOLDER / f"{name}.json").exists()]
    changed = [name for name in here if stages and _changed(name, values, stages, root)]
    written = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
    cards = {name: FOLDER / f"{name}.json" for name in here}
    lines = {
        "cards that their stages did not write": [
            name for name, card in cards.items() if written.get(str(card)) not in (None, _md5(root / card))
        ],
        "no figures yet": [name for name in names if name not in there],
        "figures from before a change of what they are made from": changed,
    }
    return [f"{said}: {', '.join(found)}" for said, found in lines.items() if found]


def _read(path: Path, is_right: Callable[[Any], bool]) -> Any:
    """
    Raises:
        FileError: the file holds no JSON object, or no number where one belongs.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not is_right(content):
        raise files.FileError(f"{path}: damaged, there are no figures in it; `dvc repro` makes it again")
    return content


def _is_card(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    decisive = (part.get(name, 0) for part in (content, content.get("validation") or {}) for name in DECISIVE)
    return all(isinstance(figure, int | float) and not isinstance(figure, bool) for figure in decisive)


def _are_cards(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(map(_is_card, content.values()))


def _now_and_then(root: Path) -> tuple[Any, Any]:
    """The values of params.yaml and the stages of dvc.lock; of both nothing, if one of them is not there."""
    if not all((root / file).exists() for file in ("params.yaml", "dvc.lock")):
        return {}, {}
    from ruamel.yaml import YAML  # as DVC and the stages read them: to YAML 1.1, 2e-3 is a text and 010 is 8

    values, lock = (YAML(typ="safe").load(root / file) for file in ("params.yaml", "dvc.lock"))
    return values, lock.get("stages") or {}


def _in_git(names: Sequence[str], root: Path) -> dict[str, Card]:
    """The cards in git of models that were made with the current values of params.yaml.

    Without params.yaml or dvc.lock, nothing can be checked: all cards in git are returned.
    """
    if not (names and (root / ALL).exists()):
        return {}
    known: dict[str, Card] = _read(root / ALL, _are_cards)
    values, stages = _now_and_then(root)
    if not stages:
        return known
    return {name: known[name] for name in names if name in known and not _changed(name, values, stages, root)}


def _changed(name: str, values: Mapping[str, Any], stages: Mapping[str, Any], root: Path) -> bool:
    """Return True if a stage on the way to this model has read something that has changed since, according to dvc.lock.

    That is a value that is different in params.yaml now, or a file that an earlier stage has since made differently.
    """
    made_by, branches = ["prepare", "recipes", "scorer"], values.get("branches") or {}
    while name in branches:
        made_by += [f"compress@{name}", f"evaluate@{name}", f"teacher@{branches[name].get('target')}"]
        name = branches[name].get("start")
    made_by += [f"teacher@{name}", f"evaluate-teacher@{name}"]
    there = [stages.get(stage, {}) for stage in made_by]
    read = [(stage.get("params") or {}).get("params.yaml", {}) for stage in there]
    if any(value_at(values, place) != value for each in read for place, value in each.items()):
        return True
    made = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
    for needed in (needed for stage in there for needed in stage.get("deps", ())):
        path = root / needed["path"]
        if str(Path(needed["path"]).parent) in made and path.exists():  # in a folder, whose sum hides its files
            now = _md5(path)
        else:
            now = made.get(needed["path"], needed["md5"])
        if now != needed["md5"]:
            return True
    return False


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def publish(names: Iterable[str]) -> None:
    """Write the files that git keeps, from the cards of these models and of the scorer."""
    cards = {name: _read(FOLDER / f"{name}.json", _is_card) for name in (SCORER, *names)}
    files.write_json(ALL, cards)
    for name, card in cards.items():
        files.write_json(METRICS / f"{name}.json", card if name == SCORER else decisive(card))
