"""The curves of a training, for whoever watches it: point by point while it runs, as a whole once it has ended."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

GROWING = "points.jsonl"  # in a curve's folder while the curve grows
DRAWN = Path("plots") / "metrics" / "loss.tsv"  # where DVCLive puts the curve


@dataclass(frozen=True)
class Point:
    """The mean loss over the steps since the previous point."""

    curve: str  # its folder, relative to the folder searched for curves; "." for that folder itself
    step: int
    steps: int
    loss: float


def grow(folder: Path, steps: int, losses: Iterable[tuple[int, float]]) -> None:
    """Show the points (step, loss) of a curve so far; `ended` removes them, since the folder is a stage's output."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{GROWING}.part"
    part.write_text("".join(json.dumps(asdict(Point(".", step, steps, loss))) + "\n" for step, loss in losses))
    part.replace(folder / GROWING)


def ended(folder: Path) -> None:
    (folder / GROWING).unlink(missing_ok=True)


def so_far(folder: Path) -> Iterator[Point]:
    """The points of all growing curves below a folder."""
    for path in sorted(folder.rglob(GROWING)):
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:  # it has just ended
            continue
        for line in lines:
            yield Point(**json.loads(line) | {"curve": str(path.parent.relative_to(folder))})


def drawn(folder: Path) -> Iterator[Point]:
    """The points of all finished curves below a folder."""
    for path in sorted(folder.rglob(str(DRAWN))):
        with path.open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        curve = str(path.parents[len(DRAWN.parts) - 1].relative_to(folder))
        for row in rows:
            yield Point(curve, int(row["step"]), int(rows[-1]["step"]), float(row["loss"]))
