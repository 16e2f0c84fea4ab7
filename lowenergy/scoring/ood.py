"""Out-of-distribution detection: does the energy tell test images from transformed ones?"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from lowenergy.energies import BATCH, Energy, uniform_noise

TRANSFORMS = ("noise", "rotation", "reduction")
ROTATION, REDUCTION = 90.0, 0.5  # degrees, share of the side: nothing of it occurs in the data


def transformed(images: Tensor, generator: Generator) -> dict[str, Tensor]:
    """The out-of-distribution counterparts of images (n, c, h, w) in [-1, 1], as many of each kind.

    noise: uniform noise; rotation: turned by ROTATION degrees; reduction: shrunk to REDUCTION of their side and framed in black.
    """
    # Imported where they are used, here and below: seconds that a classifier's evaluation need not wait.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as V

    bilinear = InterpolationMode.BILINEAR
    size = images.shape[-1]
    small = max(1, round(REDUCTION * size))
    shrunk = V.resize(images, [small, small], antialias=True)
    before, after = (size - small) // 2, size - small - (size - small) // 2
    return {
        "noise": uniform_noise(tuple(images.shape), generator),
        "rotation": V.rotate(images, ROTATION, interpolation=bilinear, fill=-1.0),
        "reduction": V.pad(shrunk, [before, before, after, after], fill=-1.0),
    }


def energies(energy: Energy, images: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """Energies, (n,) on the CPU, of each kind of images, and of what is made of the kind `test`."""

    def of(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([energy(part) for part in images.split(BATCH)]).cpu()

    return {kind: of(found) for kind, found in {**images, **transformed(images["test"], generator)}.items()}


def auroc(energies: Mapping[str, Tensor]) -> dict[str, float]:
    """AUROC of the energy, test images against each transformed kind; 0.5 is chance, 1 is perfect."""
    from sklearn.metrics import roc_auc_score

    inside = energies["test"]
    return {
        kind: float(
            roc_auc_score(
                torch.cat([torch.zeros(len(inside)), torch.ones(len(energies[kind]))]).numpy(),
                torch.cat([inside, energies[kind]]).numpy(),
            )
        )
        for kind in TRANSFORMS
    }
