"""Train the classifier that FID and Inception Score are measured with. DVC stage `scorer`."""

from pathlib import Path

import torch

from lowenergy import data, params
from lowenergy.base import files
from lowenergy.base.stage import run as run_stage
from lowenergy.energies import uniform_noise
from lowenergy.scoring import accuracy, generation
from lowenergy.storage import artifact
from lowenergy.targets import classifier
from lowenergy.training import disband, running

REFERENCE = "models/reference.safetensors"


@params.held("seed", "scorer")
def main() -> None:
    p = params.load()
    splits = data.load(data.SPLITS)
    inputs = [p.scorer, splits.digest, Path(p.networks), Path(__file__)]
    with running("scorer", p.seed, inputs, code=["targets/classifier"]) as run:
        scorer = classifier.train(splits, p.scorer, run)
        disband(run)
        provenance = {**splits.provenance, "seed": p.seed, **run.provenance}
        artifact.save(artifact.dense(scorer, "scorer"), "models/scorer.safetensors", provenance)
        real = {"train": splits.train.images, "validation": splits.validation.images}
        generation.write_reference(scorer, real, REFERENCE)

        # They give every later FID its scale: real images that the scorer has not seen, and noise.
        test, logits = (
            splits.test,
            accuracy.predict(scorer, splits.test.images, data.at_a_time(splits.test.images, 1000)),
        )
        some = data.handful(test.images)
        noise = uniform_noise(tuple(some.shape), torch.Generator().manual_seed(p.seed))
        files.write_json(
            "cards/scorer.json",
            accuracy.measure(logits, test.labels)
            | {
                "test_images": generation.measure(scorer, REFERENCE, test.images, p.seed),
                "uniform_noise": generation.measure(scorer, REFERENCE, noise, p.seed),
                "validation": {"fid": generation.measure(scorer, REFERENCE, test.images, p.seed, "validation")["fid"]},
            },
        )


if __name__ == "__main__":
    run_stage(main)
