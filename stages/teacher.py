"""Train the uncompressed model of one target. DVC stage `teacher@<target>`."""

from pathlib import Path

from lowenergy import data, targets
from lowenergy.base import params
from lowenergy.base.stage import run as run_stage
from lowenergy.storage import artifact
from lowenergy.training import Run, disband, finished


def main(target: str) -> None:
    p = params.load()
    section = getattr(p, target)
    splits = data.load(data.SPLITS)
    inputs = [section.architecture, section.train, splits.train.images, Path(p.networks)]
    run = Run(f"{target}/teacher", p.seed, inputs)
    teacher = targets.get(target).train(splits, section, run)
    disband(run)
    provenance = {"stage": "teacher", "data": splits.source, "seed": p.seed}
    if teacher.spec.head is not None:
        provenance |= {"sampler": section.train.recorded_sampler, "recoveries": run.recoveries}
    artifact.save(artifact.dense(teacher, target), f"models/{target}/teacher.safetensors", provenance)
    finished(run)


if __name__ == "__main__":
    run_stage(main)
