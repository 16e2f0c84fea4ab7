"""What an FID means: of images that anyone can make without a model, through a workspace's scorer.

    dvc repro scorer && python benchmarks/fid_scale.py cifar100_scale

- test: real images that neither the scorer nor the reference has seen;
- gaussian: of the training images' mean and covariance, clamped; an energy that is not below it has learnt nothing;
- centroids: of k-means, each with noise of its cluster's spread by pixel;
- noise: uniform, where chains start.

--workspace names another clone of this repository that the scorer was made in.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from record import write
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from lowenergy import data
from lowenergy.energies import uniform_noise
from lowenergy.runtimes.loading import dense_network
from lowenergy.scoring import generation
from lowenergy.storage import artifact

CLUSTERS = 100


def gaussian(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """From the Gaussian with the images' mean and covariance: mean + Σ w_i (x_i - mean) / √(n - 1), w ~ N(0, I)."""
    flat = images.flatten(1)
    mean = flat.mean(0)
    white = torch.randn(count, len(flat), generator=generator)
    return (mean + white @ (flat - mean) / (len(flat) - 1) ** 0.5).view(count, *images.shape[1:])


def centroids(images: Tensor, count: int, generator: torch.Generator, seed: int) -> Tensor:
    flat = images.flatten(1).numpy()
    found = MiniBatchKMeans(CLUSTERS, random_state=seed, batch_size=4096, n_init=1).fit(flat)
    spread = np.stack([flat[found.labels_ == k].std(0) for k in range(CLUSTERS)])
    drawn = torch.randint(CLUSTERS, (count,), generator=generator)
    centers, spreads = (torch.from_numpy(part)[drawn] for part in (found.cluster_centers_, spread))
    return (centers + spreads * torch.randn(centers.shape, generator=generator)).float().view(count, *images.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record")
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--samples", type=int, default=5000)
    args = parser.parse_args()
    splits = data.load(args.workspace / data.SPLITS)
    scorer = dense_network(artifact.read(args.workspace / "models/scorer.safetensors")[0])
    seed, generator = 0, torch.Generator().manual_seed(0)
    train = data.to_float(splits.train.images)
    made = {
        "test": data.to_float(splits.test.images[: args.samples]),
        "gaussian": gaussian(train, args.samples, generator),
        "centroids": centroids(train, args.samples, generator, seed),
        "noise": uniform_noise((args.samples, *train.shape[1:]), generator),
    }
    rows = []
    for name, images in made.items():
        found = generation.measure(scorer, args.workspace / "models/reference.safetensors", images, seed)
        rows.append({"images": name, "samples": args.samples, **found})
        print(rows[-1], flush=True)
    accuracy = json.loads((args.workspace / "metrics/scorer.json").read_text())["accuracy"]
    write(args.record, rows, seed=seed, scorer_accuracy=accuracy, clusters=CLUSTERS)


if __name__ == "__main__":
    main()
