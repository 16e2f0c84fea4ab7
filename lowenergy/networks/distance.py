"""How far outputs are from what they should be: the measure of every check that a network still does the same."""

import math
from typing import Any

import torch
from torch import Tensor

LARGE = 100  # times as large as the others: an output by which theirs must not be measured
SMALLEST = 1e-30


def distance(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, as a fraction of the norm of what is wanted; inf for another shape, nan for NaN.

    A network may give -1e9 for classes that are impossible. By the norm of such logits nothing else would differ, so
    each output that is much larger than the others is measured by itself, and the largest fraction counts.

    >>> wanted = torch.tensor([[3.0, 4.0, -1e9], [3.0, 4.0, -1e9]])
    >>> round(distance(wanted + torch.tensor([0.5, 0.0, 0.0]), wanted), 3)
    0.1
    """
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = found.detach().double(), wanted.detach().double()  # so that squares do not overflow
    parts = ((found[..., of], wanted[..., of]) for of in together(wanted))
    return float(torch.stack([(part - of).norm() / of.norm().clamp_min(SMALLEST) for part, of in parts]).max())


def together(outputs: Tensor) -> list[Any]:
    """Indices of logits (n, k) that can be measured by one norm, the usual ones first; of other tensors, everything."""
    if outputs.ndim != 2 or outputs.shape[1] < 3:
        return [...]
    every = torch.arange(outputs.shape[1])
    norms = outputs.detach().norm(dim=0).cpu()
    varies = (outputs.detach() - outputs.detach()[:1]).norm(dim=0).cpu() > 1e-6 * norms  # unlike what is masked
    usual = (norms[varies] if varies.any() else norms).median()
    large = norms > LARGE * usual if usual > 0 else torch.zeros_like(norms, dtype=torch.bool)
    return [every[~large], *every[large].split(1)]
