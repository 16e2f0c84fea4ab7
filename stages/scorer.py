"""Train the classifier that FID and Inception Score look through. DVC stage `scorer`."""

from pathlib import Path

import torch

from lowenergy import data
from lowenergy.base import files, params
from lowenergy.base.stage import run as run_stage
from lowenergy.energies import uniform_noise
from lowenergy.scoring import accuracy, generation
from lowenergy.storage import artifact
from lowenergy.targets import classifier
from lowenergy.training import Run, disband, finished

REFERENCE = "models/reference.safetensors"


def main() -> None:
    p = params.load()
    splits = data.load(data.SPLITS)
    run = Run("scorer", p.seed, [p.scorer, splits.train.images, Path(p.networks)])
    scorer = classifier.train(splits, p.scorer, run)
    disband(run)
    artifact.save(
        artifact.dense(scorer, "scorer"), "models/scorer.safetensors", {"data": splits.source, "seed": p.seed}
    )
    real = {"train": splits.train.images, "validation": splits.validation.images}
    generation.write_reference(scorer, real, REFERENCE)

    # The scale of every FID to come: real images that the scorer has not seen, and noise.
    test, logits = splits.test, accuracy.predict(scorer, splits.test.images, data.at_a_time(splits.test.images, 1000))
    some = data.handful(test.images)
    noise = uniform_noise(tuple(some.shape), torch.Generator().manual_seed(p.seed))
    files.write_json(
        "metrics/scorer.json",
        accuracy.measure(logits, test.labels)
        | {
            "test_images": generation.measure(scorer, REFERENCE, test.images, p.seed),
            "uniform_noise": generation.measure(scorer, REFERENCE, noise, p.seed),
            "validation": {"fid": generation.measure(scorer, REFERENCE, test.images, p.seed, "validation")["fid"]},
        },
    )
    finished(run)


if __name__ == "__main__":
    run_stage(main)
