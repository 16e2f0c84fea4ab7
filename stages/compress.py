"""Make a branch: compress the model that it starts from, so that it matches its target. DVC stage `compress@NAME`."""

from pathlib import Path

from lowenergy import data, params
from lowenergy.base.stage import run as run_stage
from lowenergy.compression import making
from lowenergy.params import recipes
from lowenergy.runtimes.loading import load
from lowenergy.storage import artifact
from lowenergy.training import running


def main(name: str) -> None:
    p = params.load()
    branch = p.branches[name]
    recipe = recipes.read(branch.target, "matching")
    start, target = (Path(f"models/{model}.safetensors") for model in (branch.start, branch.target))
    splits = data.load(data.SPLITS)
    inputs = [branch, recipe.train, recipe.matching, splits.digest, start, target, Path(p.networks), Path(__file__)]
    inherited = artifact.read(start, trust=None)[1]["provenance"]
    provenance = {key: inherited[key] for key in ("sampler",) if key in inherited} | {
        "stage": branch.by,
        **splits.provenance,
        "seed": p.seed,
        "start": {"name": branch.start, "sha256": artifact.sha256(start)},
    }
    # Loaded again, because the method changes what it starts from, even where that is the target.
    teacher = load(target, trust=p.trusted)
    source = teacher if start == target else load(start, trust=p.trusted)
    changed = load(start, trust=p.trusted)
    shared = [f"compression/{module}.py" for module in ("making", "budget", "channels")]
    code = ["targets", "runtimes", *shared, f"compression/{branch.by}"]
    held = params.held("seed", branch.by, f"branches.{name}")
    with held, running(name, p.seed, inputs, kind=recipe.kind, code=code) as run:
        model = making.make(changed, teacher, source, branch.by, branch.params, recipe.section, splits, run, provenance)
        path = f"models/{name}.safetensors"
        artifact.save(model, path, run.provenance)
        print(path, *(f"{part} {count:,}" for part, count in artifact.bytes_by_part(path).items()), "bytes")


if __name__ == "__main__":
    run_stage(main)
