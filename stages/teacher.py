"""Train the uncompressed model of one target. DVC stage `teacher@<target>`."""

import sys

from lowenergy import data, targets
from lowenergy.base import params
from lowenergy.storage import artifact
from lowenergy.training import Run, finished


def main(target: str) -> None:
    p = params.load()
    section = getattr(p, target)
    splits = data.load("data/splits.safetensors")
    inputs = [section.architecture, section.train, splits.train.images]
    run = Run(f"{target}/teacher", p.seed, inputs)
    teacher = targets.get(target).train(splits, section, run)
    provenance = {"stage": "teacher", "data": splits.source, "seed": p.seed}
    if target != "classifier":
        provenance |= {"sampler": section.train.sampler, "recoveries": run.recoveries}
    artifact.save(artifact.dense(teacher, target), f"models/{target}/teacher.safetensors", provenance)
    finished(run)


if __name__ == "__main__":
    main(sys.argv[1])
