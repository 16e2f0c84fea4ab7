"""Images from outside the data, and how well energies tell them from the data's own."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lowenergy.base import UserError
from lowenergy.energies.langevin import uniform_noise

REDUCTION = 0.5  # fraction of the side: nothing that small occurs in the data


def transformed(images: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Make out-of-distribution counterparts of images (n, c, h, w) in [-1, 1], as many of each kind.

    noise: uniform noise; rotation: a quarter turn; reduction: shrunk to REDUCTION of their side and framed in black.
    """
    height, width = images.shape[2:]
    low, narrow = max(1, round(REDUCTION * height)), max(1, round(REDUCTION * width))
    shrunk = F.interpolate(images, (low, narrow), mode="bilinear", antialias=True, align_corners=False)
    above, left = (height - low) // 2, (width - narrow) // 2
    turned = images.rot90(dims=(2, 3))
    if height != width:  # stretched to the original shape
        turned = F.interpolate(turned, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return {
        "noise": uniform_noise(tuple(images.shape), generator),
        "rotation": turned.contiguous(),
        "reduction": F.pad(shrunk, [left, width - narrow - left, above, height - low - above], value=-1.0),
    }


def auroc_of(inside: Tensor, outside: Tensor) -> float:
    """The probability that one of `outside` is above one of `inside`, ties counting half (Mann & Whitney 1947).

    Raises:
        UserError: one is NaN, which is neither above nor below another.
    """
    if inside.isnan().any() or outside.isnan().any():
        raise UserError("energies: some are NaN, so that nothing is above them; see what the network answers")
    ordered = inside.sort().values
    below = torch.searchsorted(ordered, outside).double()
    up_to = torch.searchsorted(ordered, outside, right=True).double()
    return float((below + up_to).mean() / 2 / len(inside))
