"""Train an uncompressed model. DVC stage `teacher@NAME`."""

from pathlib import Path

from lowenergy import data, params, targets
from lowenergy.base.stage import run as run_stage
from lowenergy.params import recipes
from lowenergy.storage import artifact
from lowenergy.training import disband, running


@params.held("seed")
def main(name: str) -> None:
    p, recipe = params.load(), recipes.read(name, "train")
    splits = data.load(data.SPLITS)
    inputs = [recipe.architecture, recipe.train, splits.digest, Path(p.networks), Path(__file__)]
    with running(name, p.seed, inputs, kind=recipe.kind, code=[f"targets/{recipe.kind}"]) as run:
        teacher = targets.get(recipe.kind).train(splits, recipe.section, run)
        disband(run)
        provenance = {"stage": "teacher", **splits.provenance, "seed": p.seed, **run.provenance}
        if teacher.spec.head is not None:
            provenance |= {"sampler": recipe.train.recorded_sampler, "recoveries": run.recoveries}
        artifact.save(artifact.dense(teacher, recipe.kind), f"models/{name}.safetensors", provenance)


if __name__ == "__main__":
    run_stage(main)
