"""Out-of-distribution detection: does the energy tell test images from transformed ones?"""

import torch
from torch import Generator, Tensor

from lowenergy.energy import Energy, uniform_noise
from lowenergy.params import EnergyEvaluation


def transformed(images: Tensor, p: EnergyEvaluation, generator: Generator) -> dict[str, Tensor]:
    """The out-of-distribution counterparts of images (n, c, h, w) in [-1, 1], as many of each kind.

    noise: uniform noise; rotation: turned by p.rotation degrees; reduction: shrunk to p.reduction and framed in black.
    """
    # Imported where they are used, here and below: seconds that a classifier's evaluation need not wait.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as V

    bilinear = InterpolationMode.BILINEAR
    size = images.shape[-1]
    small = max(1, round(p.reduction * size))
    shrunk = V.resize(images, [small, small], antialias=True)
    before, after = (size - small) // 2, size - small - (size - small) // 2
    return {
        "noise": uniform_noise(tuple(images.shape), generator),
        "rotation": V.rotate(images, p.rotation, interpolation=bilinear, fill=-1.0),
        "reduction": V.pad(shrunk, [before, before, after, after], fill=-1.0),
    }


def measure(energy: Energy, images: Tensor, p: EnergyEvaluation, generator: Generator) -> dict[str, float]:
    """AUROC of the energy, (test, transformed test), for each transform; 0.5 is chance, 1 is perfect."""
    from sklearn.metrics import roc_auc_score

    def energies(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([energy(part) for part in batch.split(p.batch_size)])

    inside = energies(images)
    labels = torch.cat([torch.zeros(len(images)), torch.ones(len(images))]).numpy()
    return {
        name: float(roc_auc_score(labels, torch.cat([inside, energies(outside)]).numpy()))
        for name, outside in transformed(images, p, generator).items()
    }
