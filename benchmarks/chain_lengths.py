"""FID and Inception Score along a model's chains, by the Langevin step's constants: how long to go on, and how boldly.

    python benchmarks/chain_lengths.py WORKSPACE/models/ebm/teacher.safetensors --workspace WORKSPACE

The workspace (`lowenergy profile cifar100-energy; dvc repro scorer`) has the scorer, and its statistics of the
validation images: what is chosen by this is chosen without the test images. Few samples make the FID larger than that
of many; compare within the table. Rows of the same model's file are replaced.
"""

import argparse
import json
from pathlib import Path

import torch
from record import RECORDS, write

from lowenergy.base.params import Sampler
from lowenergy.energies import langevin_chain, uniform_noise
from lowenergy.runtimes import loading, sampling
from lowenergy.scoring import generation
from lowenergy.storage import artifact

CONSTANTS = ((0.05, 0.015), (0.1, 0.015))  # step size, noise: the first are those of the shipped params
LOOKED_AT = (25, 50, 100, 200)  # after so many steps
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--samples", type=int, default=250)
    args = parser.parse_args()
    model, _ = artifact.read(args.model)
    steps = len(CONSTANTS) * LOOKED_AT[-1]
    energy = sampling.fastest(model, loading.network_of(model), images=args.samples * steps)
    scorer = loading.dense_network(artifact.read(args.workspace / "models/scorer.safetensors")[0])
    reference = args.workspace / "models/reference.safetensors"
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
                rows.append(
                    {"step_size": step_size, "noise": noise, "steps": step, "spread": round(spread, 3), **found}
                )
                print(rows[-1], flush=True)
    path = RECORDS / "chain_lengths.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    sha256 = artifact.sha256(args.model)
    own = [{"sha256": sha256, "network": f"{model.spec.name} of width {model.spec.width}", **row} for row in rows]
    write("chain_lengths", [*(old for old in before if old["sha256"] != sha256), *own], seed=SEED, samples=args.samples)


if __name__ == "__main__":
    main()
