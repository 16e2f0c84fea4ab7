"""Out-of-distribution detection: does the energy tell test images from transformed ones?"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from lowenergy.data import at_a_time
from lowenergy.energies import BATCH, Energy, auroc_of, transformed

TRANSFORMS = ("noise", "rotation", "reduction")


def energies(energy: Energy, images: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """The energies, (n,) on the CPU, of each kind of images, and of the kinds made from `test`, see transformed."""

    def of(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([energy(part) for part in images.split(at_a_time(images, BATCH))]).cpu()

    return {kind: of(members) for kind, members in {**images, **transformed(images["test"], generator)}.items()}


def auroc(energies: Mapping[str, Tensor]) -> dict[str, float]:
    """AUROC of the energy, test images against each transformed kind; 0.5 is chance, 1 is perfect."""
    return {kind: auroc_of(energies["test"], energies[kind]) for kind in TRANSFORMS}


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two energies' values, (n,), for the same images: 1 if they order them alike.

    Equal values share the mean of their ranks. An energy with a single value orders nothing: 0.
    """
    ranks = torch.stack([_ranks(first), _ranks(second)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num(0.0))


def _ranks(values: Tensor) -> Tensor:
    ordered = values.sort().values
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True) - 1).double() / 2
