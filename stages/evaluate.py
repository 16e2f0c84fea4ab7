"""Measure one branch of one target by its file. DVC stage `evaluate@<target>-<branch>`."""

import sys
from pathlib import Path

from lowenergy import data
from lowenergy.base import files, params
from lowenergy.scoring import report_card


def main(target: str, branch: str) -> None:
    p = params.load()
    card = report_card.measure(
        path=f"models/{target}/{branch}.safetensors",
        teacher=f"models/{target}/teacher.safetensors",
        scorer="models/scorer.safetensors",
        reference="models/reference.safetensors",
        splits=data.load("data/splits.safetensors"),
        p=getattr(p, target).evaluate,
        seed=p.seed,
        plots=Path(f"plots/branches/{target}/{branch}"),
    )
    files.write_json(f"metrics/{target}/{branch}.json", card)


if __name__ == "__main__":
    main(*sys.argv[1:])
