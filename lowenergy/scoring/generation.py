"""FID (Heusel et al. 2017) and Inception Score (Salimans et al. 2016) by torchmetrics, through the project's scorer.

The scorer is a classifier of the same data set, trained once and for nothing else: its penultimate features take the
place of Inception's, which know nothing of 8x8 or 28x28 images. Figures are therefore comparable within a data set.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowenergy.base import files
from lowenergy.data import to_bytes, to_float
from lowenergy.networks import Network

STATES = ("sum", "cov_sum", "num_samples")


def _fid(scorer: Network) -> Any:
    # Imported here: torchmetrics takes seconds, and a classifier's evaluation needs none of it.
    from torchmetrics.image.fid import FrechetInceptionDistance

    features = scorer.features
    setattr(features, "num_features", scorer.fc.in_features)  # noqa: B010 torchmetrics asks for it
    return FrechetInceptionDistance(feature=features, reset_real_features=False)


def write_reference(scorer: Network, images: Tensor, path: str | Path, batch_size: int = 1000) -> None:
    """The sums of the scorer's features over the training images (uint8): every FID is measured against these."""
    fid = _fid(scorer)
    with torch.inference_mode():
        for batch in images.split(batch_size):
            fid.update(to_float(batch), real=True)
    files.write_safetensors(path, {name: getattr(fid, f"real_features_{name}") for name in STATES}, {})


def measure(
    scorer: Network, reference: str | Path, images: Tensor, seed: int, batch_size: int = 1000
) -> dict[str, float]:
    """FID against the reference and Inception Score (mean over 10 splits) of images (n, c, h, w) in [-1, 1].

    Images are rounded to 8 bits first: that is how they would be looked at.
    """
    from torchmetrics.image.inception import InceptionScore

    fid, inception = _fid(scorer), InceptionScore(feature=scorer)
    for name, value in files.read_safetensors(reference)[0].items():
        setattr(fid, f"real_features_{name}", value)
    with torch.inference_mode():
        for batch in to_float(to_bytes(images)).split(batch_size):
            fid.update(batch, real=False)
            inception.update(batch)
        with torch.random.fork_rng(devices=[]):  # the splits of the Inception Score are drawn at random
            torch.manual_seed(seed)
            return {"fid": float(fid.compute()), "inception_score": float(inception.compute()[0])}
