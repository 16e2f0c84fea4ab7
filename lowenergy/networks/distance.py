"""How far outputs are from what they should be: the measure of every check that a network still does the same."""

import math

import torch
from torch import Tensor

CONSTANT = 1e-9  # fraction of its size by which an output may differ from image to image and be no more than rounding
SMALLEST = 1e-30


def distance(found: Tensor, wanted: Tensor, offset: float = 1.0) -> float:
    """How far apart two outputs are, as a fraction; inf for another shape, nan for NaN.

    For tensors such as gradients that is the norm of the difference by that of what is wanted. Of logits and energies,
    (n, k), each output is measured by itself, or a large one, such as the -1e9 of a class that is impossible, would
    hide any difference of the others.

    Args:
        offset: how much an output's size counts beside how much it differs from image to image: less for those who ask
            what is left of its answers, at the price of seeing more of what rounding does.

    >>> wanted = torch.tensor([[3.0, 4.0, -1e9], [5.0, 2.0, -1e9]])
    >>> bool(distance(wanted + torch.tensor([0.5, 0.0, 0.0]), wanted) > 0.08)
    True
    """
    if found.shape != wanted.shape:
        return math.inf
    wanted = wanted.detach().cpu()
    wanted = wanted if wanted.is_complex() else wanted.double()  # so that squares do not overflow
    off = found.detach().cpu().to(wanted.dtype) - wanted
    if wanted.ndim != 2 or not wanted.numel():
        return float(off.norm() / wanted.norm().clamp_min(SMALLEST))
    spread = _spread(wanted)
    least = offset * torch.maximum(wanted.norm(dim=0), _typical(spread, wanted))  # of outputs that are always 0, too
    scale = torch.maximum(spread, least)
    return float((off.norm(dim=0) / scale.clamp_min(SMALLEST)).square().mean().sqrt())


def _spread(outputs: Tensor) -> Tensor:
    """How much each output differs from image to image, (k,), 0 where it is a constant."""
    norms = outputs.norm(dim=0)
    if len(outputs) > 1:
        spread = (outputs - outputs.mean(0)).norm(dim=0)
        return spread.where(spread > CONSTANT * norms, torch.zeros(()).to(spread))
    values, counts = outputs[0].unique(return_counts=True)  # of one image; what several outputs share is a constant
    once = values[counts == 1].abs()
    return norms.clamp_max(float(once.median())) if len(once) else norms


def _typical(spread: Tensor, outputs: Tensor) -> Tensor:
    some = spread[spread > 0]
    return some.median() if len(some) else outputs.norm(dim=0).median()
