"""FID and Inception Score along a model's chains, by the Langevin step's constants: how long to go on, and how boldly.

    python benchmarks/chain_lengths.py pretrained/mnist-ebm-77k.safetensors --scorer pretrained/mnist-scorer.safetensors

The scorer's statistics of the validation images are used: what is chosen by this is chosen without the test images.
In colour, scorer and statistics are made by `lowenergy profile cifar100-energy; dvc repro scorer`. Few samples make the
FID larger than that of many; compare within the rows of a model. Rows of the same model's file are replaced.
"""

import argparse
from pathlib import Path

import torch
from record import rows as recorded
from record import write

from lowenergy.energies import langevin_chain, uniform_noise
from lowenergy.params import Sampler
from lowenergy.runtimes import loading, sampling
from lowenergy.scoring import generation
from lowenergy.storage import artifact

CONSTANTS = ((0.05, 0.015), (0.1, 0.015), (0.2, 0.015))  # step size, noise: the first are those of the shipped params
LOOKED_AT = (25, 50, 100, 200)  # after so many steps
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scorer", type=Path, default=Path("models/scorer.safetensors"))
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    model, _ = artifact.read(args.model)
    steps = len(CONSTANTS) * LOOKED_AT[-1]
    energy = sampling.fastest(model, loading.network_of(model), images=args.samples * steps)
    scorer = loading.dense_network(artifact.read(args.scorer)[0])
    reference = args.scorer.with_name(args.scorer.name.replace("scorer", "reference"))
    rows = []
    for step_size, noise in CONSTANTS:
        generator = torch.Generator().manual_seed(SEED)
        images = uniform_noise((args.samples, *model.spec.input_shape), generator)
        constants = Sampler(step_size=step_size, noise=noise, gradient_clamp=5.0)
        chain = langevin_chain(energy, images, LOOKED_AT[-1], constants, generator)
        for step, state in enumerate(chain, start=1):
            if step in LOOKED_AT:
                spread = float(state.std(0).mean())
                found = generation.measure(scorer, reference, state, SEED, "validation")
                row = {"step_size": step_size, "noise": noise, "steps": step, "samples": args.samples}
                rows.append({**row, "spread": round(spread, 3), **found})
                print(rows[-1], flush=True)
    sha256 = artifact.sha256(args.model)
    named = {"sha256": sha256, "model": args.model.name, "network": f"{model.spec.name} of width {model.spec.width}"}
    own = [{**named, **row} for row in rows]
    write("chain_lengths", [*(old for old in recorded("chain_lengths") if old["sha256"] != sha256), *own], seed=SEED)


if __name__ == "__main__":
    main()
