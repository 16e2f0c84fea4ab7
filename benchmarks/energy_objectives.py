"""What training costs until samples reach a given FID: persistent contrastive divergence against Energy Matching.

    lowenergy profile mnist && dvc repro scorer
    python benchmarks/energy_objectives.py --epochs 36 2           # of energy matching, of the study's recipe

Both train the network of params.yaml's ebm; the first by ebm.train as it is there, the second by the earlier study's
recipe (`lowenergy profile mnist-study`). While they train, their checkpoints are copied with the time they took;
afterwards 1,000 samples are drawn from each copy and looked at through the pipeline's scorer.
"""

import argparse
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch
from record import write

from lowenergy import data, energies, networks, params, profiles
from lowenergy.base import checkpoint
from lowenergy.runtimes import loading
from lowenergy.scoring import generation
from lowenergy.storage import artifact
from lowenergy.targets import ebm
from lowenergy.training import Run, loop


def recipes(epochs: list[int]) -> dict[str, ebm.Params]:
    ours = params.load().ebm
    study = params.check(profiles.composed("mnist-study")).ebm.model_copy(update={"architecture": ours.architecture})
    found = {"energy matching": ours, "persistent contrastive divergence": study}
    return {
        name: p.model_copy(update={"train": p.train.model_copy(update={"epochs": count})})
        for (name, p), count in zip(found.items(), epochs, strict=True)
    }


def train(p: ebm.Params, splits: data.Splits, every: float) -> list[tuple[float, int, dict[str, torch.Tensor]]]:
    """(seconds, step, weights) every so many seconds, by the weights' average where the recipe has one."""
    copies: list[tuple[float, int, dict[str, torch.Tensor]]] = []
    began = time.monotonic()

    def keep(run: Run, part: str, content: Mapping[str, Any]) -> None:
        of = content["parts"].get("average") or content["parts"]["network"]
        weights = {key.removeprefix("module."): value for key, value in of.items() if key != "n_averaged"}
        copies.append((time.monotonic() - began, content["step"], weights))

    kept, loop.keep, checkpoint.SECONDS = loop.keep, keep, every
    with TemporaryDirectory() as root:
        ebm.train(splits, p, Run("ebm", 0, [], root=root))
    loop.keep = kept
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs=2, default=[36, 2])
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two measurements")
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    splits = data.load("data/splits.safetensors")
    scorer = loading.dense_network(artifact.read("models/scorer.safetensors")[0])
    rows: list[dict[str, Any]] = []
    for name, p in recipes(args.epochs).items():
        spec = networks.Spec.of(p.architecture, splits.input_shape, p.architecture.logits or 1)
        for seconds, step, weights in train(p, splits, args.every):
            network = networks.build_with(spec, weights)
            of_images = energies.energy_of(network, p.architecture.head, frozen=True)
            generator = torch.Generator().manual_seed(0)
            drawn = energies.sample(
                of_images,
                splits.input_shape,
                args.samples,
                steps=p.evaluate.chain_steps,
                constants=p.train.sampler,
                generator=generator,
            )
            found = generation.measure(scorer, "models/reference.safetensors", drawn, 0)
            rows.append({"objective": name, "minutes": round(seconds / 60, 1), "updates": step, **found})
            print(rows[-1], flush=True)
    write("energy_objectives", rows, seed=0, samples=args.samples, epochs=args.epochs, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
