"""Measure one branch of one target by its file. DVC stage `evaluate@<target>-<branch>`."""

from pathlib import Path

from lowenergy import data
from lowenergy.base import files, params
from lowenergy.base.stage import run as run_stage
from lowenergy.scoring import report_card


def main(target: str, branch: str) -> None:
    p = params.load()
    card = report_card.measure(
        path=f"models/{target}/{branch}.safetensors",
        teacher=f"models/{target}/teacher.safetensors",
        scorer="models/scorer.safetensors",
        reference="models/reference.safetensors",
        splits=data.load(data.SPLITS),
        p=getattr(p, target).evaluate,
        seed=p.seed,
        plots=Path(f"plots/branches/{target}/{branch}"),
        trust=p.trusted,
    )
    files.write_json(f"metrics/{target}/{branch}.card.json", card)
    files.write_json(f"metrics/{target}/{branch}.json", report_card.decisive(card))


if __name__ == "__main__":
    run_stage(main)
