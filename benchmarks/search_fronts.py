"""What a search finds, beside the default branches and beside random trials: one target of this workspace.

    .venv/bin/python benchmarks/search_fronts.py classifier --trials 40 --max-loss 0.5

Needs a workspace whose pipeline has run. Searches by Optuna's TPE and at random, with as many trials each; what both
have in common is computed once. The figures that count are validation's; those of the test set are looked at for the
smallest model of each way alone.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import rows as recorded
from record import write

from lowenergy import params
from lowenergy.base import cards
from lowenergy.running import experiments, pipeline
from lowenergy.searching import trials
from lowenergy.searching.goal import QUALITIES, Goal, Limit


def searched(target: str, sampler: str, trials: int, max_loss: str, jobs: int) -> tuple[str, float | None]:
    """The search's name, and the seconds it took; None if it was begun before and went on."""
    name = f"{target}-{sampler}"
    goes_on = (Path("searches") / f"{name}.log").exists()
    command = ["lowenergy.cli", "search", "--target", target, "--trials", str(trials), "--max-loss", max_loss]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", *command, "--sampler", sampler, "--name", name, "--jobs", str(jobs)], check=True
    )
    return name, None if goes_on else round(time.monotonic() - started)


def rows_of(name: str) -> list[dict[str, Any]]:
    import pandas as pd

    rows = pd.read_csv(Path("searches") / f"{name}.csv").to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def tested(model: dict[str, Any]) -> dict[str, float]:
    """Test figures of a default branch, or of an experiment."""
    if "experiment" not in model:
        return {key: model[key] for key in ("accuracy", "fid") if key in model}
    repo = pipeline.opened()
    revision = experiments.revisions(repo, [model["experiment"]])[model["experiment"]]
    return tested(trials.card_of(repo, revision, model["branch"]))


def _validation(row: dict[str, Any]) -> dict[str, Any]:
    """The figures of a card that a search's table has."""
    names = [name for name in QUALITIES if f"validation.{name}" in row]
    lost = {f"{name}_interval": [row[f"validation.lost.{name}_{end}"] for end in ("low", "high")] for name in names}
    return {**{name: row[f"validation.{name}"] for name in names}, "lost": lost}


def hypervolume(points: list[tuple[float, float]], worst: tuple[float, float]) -> float:
    """The area that points (loss, logarithm of bytes) leave behind them, up to the worst corner."""
    area, low = 0.0, worst[0]
    for loss, size in sorted(points, key=lambda point: (point[1], point[0])):
        if loss < low and size < worst[1]:
            area += (low - loss) * (worst[1] - size)
            low = loss
    return area


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--max-loss", default="10%")
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    goal = Goal(max_loss=Limit.parse(args.max_loss))
    p = params.load()
    found: dict[str, Any] = dict(cards.collect(name for name in p.models if p.target_of(name) == args.target))
    teacher = found.pop(args.target)
    ways: dict[str, list[dict[str, Any]]] = {
        "default branches": [{"model": name, **card} for name, card in found.items()]
    }
    seconds: dict[str, float | None] = {}
    for sampler in args.samplers:
        name, seconds[sampler] = searched(args.target, sampler, args.trials, args.max_loss, args.jobs)
        ways[sampler] = [
            {
                "experiment": row["experiment"],
                "model": row["chain"],
                "branch": row["model"],
                "size_bytes": row["size_bytes"],
                "macs": row["macs"],
                "validation": _validation(row),
            }
            for row in rows_of(name)
        ]
    worst = (math.log(2), math.log(teacher["size_bytes"]))  # twice the teacher's FID, or half its accuracy; its bytes
    rows = []
    for way, models in ways.items():
        points = [(goal.loss(model, teacher), math.log(model["size_bytes"])) for model in models]
        within = [model for model in models if all(v <= 0 for v in goal.violations(model, teacher))]
        best = min(within, key=lambda model: model["size_bytes"], default=None)
        rows.append(
            {
                "target": args.target,
                "way": way,
                "max_loss": args.max_loss,
                "models": len(models),
                "seconds": seconds.get(way, 0),
                "hypervolume": round(hypervolume(points, worst), 3),
                "smallest_within": best
                and {
                    **{key: best[key] for key in ("experiment", "model", "size_bytes", "validation") if key in best},
                    "test": tested(best),
                },
                "times_smaller_than_teacher": best and round(teacher["size_bytes"] / best["size_bytes"], 1),
            }
        )
        print(rows[-1], flush=True)
    others = [row for row in recorded("search_fronts") if row["target"] != args.target or row["way"] not in ways]
    write("search_fronts", [*others, *rows])


if __name__ == "__main__":
    main()
