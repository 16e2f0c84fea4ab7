"""FID (Heusel et al. 2017) and Inception Score (Salimans et al. 2016) through the project's scorer.

The scorer is a classifier of the same data set, trained once and for nothing else: its penultimate features take the
place of Inception's, which know nothing of 8x8 or 28x28 images. Figures are therefore only comparable within a data
set. Both agree with torchmetrics' to six digits (a test compares them), without the seconds that its import takes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from lowenergy import networks
from lowenergy.base import UserError, files
from lowenergy.base.device import measured
from lowenergy.data import at_a_time, to_bytes, to_float
from lowenergy.networks import Network, features_and_logits
from lowenergy.scoring.intervals import Interval, around, bootstrap, resampled

SPLITS = 10  # of the Inception Score, as published
BATCH = 1000
PROBE = "probe"
FEWEST = 2  # images: one has no covariance

Moments = dict[
    str, Tensor
]  # of features, float64: their sum (d,), the sum of their outer products (d, d), their number


def _moments(features: Tensor) -> Moments:
    features = features.double()
    return {"sum": features.sum(0), "cov_sum": features.T @ features, "num_samples": torch.tensor(len(features))}


@dataclass(frozen=True)
class Generation:
    """How good the images are that a model has drawn, and how sure that is; see `measure_surely`."""

    fid: Interval
    inception_score: Interval
    images: int

    def __str__(self) -> str:
        return f"FID {self.fid}, Inception Score {self.inception_score}, {self.images:,} images"


def _seen(scorer: Network, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features, (batch, width), and logits, (batch, classes), of uint8 images (n, c, h, w), on the CPU."""
    with measured(scorer) as device, torch.no_grad():
        for batch in images.split(at_a_time(images, BATCH)):
            features, logits = features_and_logits(scorer, to_float(batch.to(device)))
            assert features is not None
            yield features.cpu(), logits.cpu()


def _looked_at(scorer: Network, images: Tensor) -> tuple[Moments, Tensor]:
    """The moments of the features, and the logits, (n, classes), of uint8 images (n, c, h, w)."""
    totals: Moments = {}
    logits = []
    for features, batch_logits in _seen(scorer, images):
        logits.append(batch_logits)
        totals = {name: totals.get(name, 0) + part for name, part in _moments(features).items()}
    return totals, torch.cat(logits)


def looked_at(scorer: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features, (n, width), and logits, (n, classes), of images (n, c, h, w), uint8 or in [-1, 1].

    Raises:
        UserError: there are fewer than two images.
    """
    if len(images) < FEWEST:
        raise UserError(f"{len(images)} images: FID needs at least {FEWEST}")
    parts = list(_seen(scorer, images if images.dtype == torch.uint8 else to_bytes(images)))
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits


def moments_of(scorer: Network, images: Tensor) -> Moments:
    """The moments of uint8 images (n, c, h, w), by which FID compares them.

    Raises:
        UserError: there are fewer than two images.
    """
    if len(images) < FEWEST:
        raise UserError(f"{len(images)} images to compare with: FID needs at least {FEWEST}")
    return _looked_at(scorer, images)[0]


def write_reference(scorer: Network, images: Mapping[str, Tensor], path: str | Path) -> None:
    """Write the moments of the scorer's features over real images, against which every FID is measured.

    Args:
        images: uint8 (n, c, h, w) by the name of their split; figures that are shown are measured against `train`,
            figures that models are chosen by against `validation`.
    """
    moments = {split: _looked_at(scorer, real)[0] for split, real in images.items()}
    tensors = {f"{split}.{name}": part for split, parts in moments.items() for name, part in parts.items()}
    files.write_safetensors(path, {**tensors, PROBE: _probed(scorer)}, {})


def _probed(scorer: Network) -> Tensor:
    """The scorer's features of an image of noise, (1, width), by which it is known again."""
    noise = torch.randint(256, (1, *scorer.spec.input_shape), generator=torch.Generator().manual_seed(0))
    return next(_seen(scorer, noise.to(torch.uint8)))[0]


def read_reference(path: str | Path, split: str, scorer: Network) -> Moments:
    """Read what `write_reference` wrote of one split.

    Raises:
        files.FileError: the file is missing, lacks this split (old ones do not name their splits), or is of another
            scorer.
    """
    tensors = files.read_safetensors(path)[0]
    wanted = _probed(scorer)
    if PROBE in tensors and not networks.distance(tensors[PROBE], wanted) <= networks.SAME:
        raise files.FileError(f"{path}: statistics of other features than the scorer's; `dvc repro scorer`")
    moments = {name.removeprefix(f"{split}."): part for name, part in tensors.items() if name.startswith(f"{split}.")}
    if not moments:
        raise files.FileError(f"{path}: no statistics of the {split} images; `dvc repro scorer` makes them")
    return moments


def measure(
    scorer: Network, reference: str | Path, images: Tensor, seed: int, split: str = "train"
) -> dict[str, float]:
    """FID against the reference and Inception Score (mean over 10 splits) of images (n, c, h, w), uint8 or in [-1, 1].

    Images are rounded to 8 bits first, since that is how they would be looked at.

    Args:
        split: the split whose real images the FID compares with, train or validation.
    Raises:
        UserError: there are fewer than two images, or the reference is not this scorer's.
    """
    if len(images) < FEWEST:
        raise UserError(f"{len(images)} images: FID needs at least {FEWEST}")
    real = read_reference(reference, split, scorer)
    moments, logits = _looked_at(scorer, images if images.dtype == torch.uint8 else to_bytes(images))
    if len(real["sum"]) != len(moments["sum"]):
        raise files.FileError(f"{reference}: statistics of other features than the scorer's; `dvc repro scorer`")
    return {
        "fid": frechet_distance(real, moments),
        "inception_score": inception_score(logits, torch.Generator().manual_seed(seed)),
    }


def measure_surely(scorer: Network, real: Moments, images: Tensor, seed: int) -> Generation:
    """The figures of `measure`, each with its interval from a bootstrap of the images.

    Args:
        real: moments of the images to compare with, see read_reference and moments_of.
    Raises:
        UserError: there are fewer than two images, or the moments are of other features than the scorer's.
    """
    features, logits = looked_at(scorer, images)
    value, *again = distances(real, features, seed).tolist()
    return Generation(around(value, again, 0.0), score_surely(logits, seed), len(images))


def distances(real: Moments, features: Tensor, seed: int) -> Tensor:
    """The FID of images from their features, (n, width), followed by the FIDs of resamples, see intervals.resampled.

    Raises:
        UserError: the moments are of other features.
    """
    if len(real["sum"]) != features.shape[1]:
        raise UserError("statistics of other features than the scorer's; give those that were made with it")
    distance = distance_from(real)
    each = [_moments(part) for part in features.split(BATCH)]
    whole: Moments = {name: sum(part[name] for part in each) for name in each[0]}  # type: ignore[misc] # as in `measure`
    again = resampled(lambda index: distance(_moments(features[index])), len(features), seed=seed)
    return torch.tensor([distance(whole), *again], dtype=torch.float64)


def distance_between(first: Tensor, second: Tensor) -> float:
    """The FID of two sets of features, (n, width)."""
    return frechet_distance(_moments(first), _moments(second))


def score_surely(logits: Tensor, seed: int) -> Interval:
    """The Inception Score as in `measure`, with its interval."""

    def score(index: Tensor) -> float:
        return inception_score(logits[index], torch.Generator().manual_seed(seed))

    return bootstrap(score, len(logits), seed=seed, least=1.0)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of two normal distributions with these means and covariances."""
    return distance_from(first)(second)


def distance_from(first: Moments) -> Callable[[Moments], float]:
    """Return frechet_distance from `first` as a function, which takes the square root of its covariance only once."""
    mean, covariance = _normal(first)
    # (C1 C2)^½ has the trace of (C1^½ C2 C1^½)^½, which is symmetric.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T

    def distance(second: Moments) -> float:
        other, spread = _normal(second)
        overlap = torch.linalg.eigvalsh(root @ spread @ root).clamp_min(0).sqrt().sum()
        value = (mean - other).square().sum() + covariance.trace() + spread.trace() - 2 * overlap
        return float(value.clamp_min(0))  # rounding puts that of equal images below

    return distance


def _normal(moments: Moments) -> tuple[Tensor, Tensor]:
    """The mean and covariance."""
    n, mean = moments["num_samples"].double(), moments["sum"].double() / moments["num_samples"]
    return mean, (moments["cov_sum"].double() - n * mean.outer(mean)) / (n - 1)


def inception_score(logits: Tensor, generator: Generator) -> float:
    """exp E KL(p(y|x) ‖ p(y)), the mean over SPLITS random parts of the images."""
    logits = logits[torch.randperm(len(logits), generator=generator)].double()
    scores = []
    for part in logits.chunk(SPLITS):
        each = part.log_softmax(1)
        whole = each.logsumexp(0) - math.log(len(part))  # log p(y), finite even for a class that no image shows
        scores.append((each.exp() * (each - whole)).sum(1).mean().exp())
    return float(torch.stack(scores).mean())
