"""FID (Heusel et al. 2017) and Inception Score (Salimans et al. 2016) through the project's scorer.

The scorer is a classifier of the same data set, trained once and for nothing else: its penultimate features take the
place of Inception's, which know nothing of 8x8 or 28x28 images. Figures are therefore comparable within a data set.
Both are torchmetrics' to six digits (a test compares), without the seconds that its import takes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from lowenergy.base import files
from lowenergy.base.device import measured
from lowenergy.data import at_a_time, to_bytes, to_float
from lowenergy.networks import AnyNetwork, features_and_logits

SPLITS = 10  # of the Inception Score, as published
BATCH = 1000

Moments = dict[
    str, Tensor
]  # of features, float64: their sum (d,), the sum of their outer products (d, d), their number


def _moments(features: Tensor) -> Moments:
    features = features.double()
    return {"sum": features.sum(0), "cov_sum": features.T @ features, "num_samples": torch.tensor(len(features))}


def _looked_at(scorer: AnyNetwork, images: Tensor) -> tuple[Moments, Tensor]:
    """Moments of the features, and the logits, (n, classes), of images uint8 (n, c, h, w)."""
    totals: Moments = {}
    logits = []
    with measured(scorer) as device, torch.inference_mode():
        for batch in images.split(at_a_time(images, BATCH)):
            features, found = features_and_logits(scorer, to_float(batch.to(device)))
            assert features is not None
            logits.append(found.cpu())
            totals = {name: totals.get(name, 0) + part for name, part in _moments(features.cpu()).items()}
    return totals, torch.cat(logits)


def write_reference(scorer: AnyNetwork, images: Mapping[str, Tensor], path: str | Path) -> None:
    """The moments of the scorer's features over real images: every FID is measured against these.

    Args:
        images: uint8 (n, c, h, w) by the name of their split; `train` is what figures that are shown are measured
            against, `validation` what models are chosen by.
    """
    moments = {split: _looked_at(scorer, found)[0] for split, found in images.items()}
    tensors = {f"{split}.{name}": part for split, parts in moments.items() for name, part in parts.items()}
    files.write_safetensors(path, tensors, {})


def read_reference(path: str | Path, split: str) -> Moments:
    """What `write_reference` wrote of one split.

    Raises:
        files.FileError: the file is missing, or was made before splits had names.
    """
    tensors = files.read_safetensors(path)[0]
    found = {name.removeprefix(f"{split}."): part for name, part in tensors.items() if name.startswith(f"{split}.")}
    if not found:
        raise files.FileError(f"{path}: no statistics of the {split} images; `dvc repro scorer` makes them")
    return found


def measure(
    scorer: AnyNetwork, reference: str | Path, images: Tensor, seed: int, split: str = "train"
) -> dict[str, float]:
    """FID against the reference and Inception Score (mean over 10 splits) of images (n, c, h, w), uint8 or in [-1, 1].

    Images are rounded to 8 bits first: that is how they would be looked at.

    Args:
        split: whose real images the FID compares with, train or validation.
    """
    moments, logits = _looked_at(scorer, images if images.dtype == torch.uint8 else to_bytes(images))
    return {
        "fid": frechet_distance(read_reference(reference, split), moments),
        "inception_score": inception_score(logits, torch.Generator().manual_seed(seed)),
    }


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of two normal distributions with these means and covariances."""
    means, covariances = [], []
    for moments in (first, second):
        n, mean = moments["num_samples"].double(), moments["sum"].double() / moments["num_samples"]
        means.append(mean)
        covariances.append((moments["cov_sum"].double() - n * mean.outer(mean)) / (n - 1))
    # (C1 C2)^½ has the trace of (C1^½ C2 C1^½)^½, which is symmetric.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    distance = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * overlap
    return float(distance)


def inception_score(logits: Tensor, generator: Generator) -> float:
    """exp E KL(p(y|x) ‖ p(y)), the mean over SPLITS random parts of the images."""
    logits = logits[torch.randperm(len(logits), generator=generator)].double()
    scores = []
    for part in logits.chunk(SPLITS):
        each, whole = part.log_softmax(1), part.softmax(1).mean(0)
        scores.append((each.exp() * (each - whole.log())).sum(1).mean().exp())
    return float(torch.stack(scores).mean())
