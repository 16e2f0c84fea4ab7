"""Measure a model from its file. DVC stages `evaluate-teacher@NAME` and `evaluate@NAME`."""

from pathlib import Path

from lowenergy import data, params
from lowenergy.base import cards, files
from lowenergy.base.stage import run as run_stage
from lowenergy.params import recipes
from lowenergy.scoring import report_card


@params.held("seed")
def main(name: str) -> None:
    p = params.load()
    target = p.target_of(name)
    card = report_card.measure(
        path=f"models/{name}.safetensors",
        teacher=f"models/{target}.safetensors",
        said=f"said/{target}.safetensors",
        scorer="models/scorer.safetensors",
        reference="models/reference.safetensors",
        splits=data.load(data.SPLITS),
        p=recipes.read(target, "evaluate").evaluate,
        seed=p.seed,
        plots=Path(f"plots/models/{name}"),
        trust=p.trusted,
        networks=Path(p.networks),
    )
    files.write_json(cards.FOLDER / f"{name}.json", card)


if __name__ == "__main__":
    run_stage(main)
