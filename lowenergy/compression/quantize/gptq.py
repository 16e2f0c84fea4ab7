"""Weights rounded one input after the other, where those to come make up for the errors of those before (GPTQ, Frantar
et al. 2023, arXiv 2210.17323).

For a layer whose inputs are X, (n, k), the errors of the weights of one output count as eᵀ H e, H = XᵀX. After the
weight of input j is rounded, the others are best moved by its error times what H⁻¹ says of the two.
"""

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of H's diagonal: inputs that a few images lack are not taken for those that none has
BLOCK = 128  # inputs after which the rest is brought up to date


def compensated(weights: Tensor, scale: Tensor, bits: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Integers for which inputs @ (scale * integers).T is close to `outputs`; weights of zero stay zero.

    Args:
        weights: (o, k); scale: (o, 1).
        inputs: (n, k); outputs: (n, o), wanted.
    Returns:
        (o, k), float32.

    >>> x = torch.randn(200, 6) @ torch.randn(6, 6)
    >>> w = torch.randn(4, 6)
    >>> found = compensated(w, torch.full((4, 1), 0.5), 4, x, x @ w.T)
    >>> bool((found == found.round()).all()), found.abs().max() <= 8
    (True, tensor(True))
    """
    levels = 2 ** (bits - 1)
    h = inputs.T @ inputs
    unseen = h.diagonal() == 0
    h.diagonal().add_(DAMPING * h.diagonal().mean() + unseen)
    lower = torch.linalg.cholesky(h)
    # The inputs are those of a network that is rounded up to here: first the weights are fitted to them.
    missing = (outputs - inputs @ weights.T).T @ inputs
    fitted = weights + torch.cholesky_solve(missing.T, lower).T
    order = h.diagonal().argsort(descending=True)  # while many can still make up for it, what counts most
    inverse = torch.cholesky_inverse(lower)[order][:, order]
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, zero = fitted[:, order], (weights == 0)[:, order]
    found = torch.empty_like(left)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, first:last])
        for j in range(first, last):
            integers = (left[:, j : j + 1] / scale).round().clamp(-levels, levels - 1)
            found[:, j : j + 1] = integers.masked_fill(zero[:, j : j + 1], 0)
            error = (left[:, j : j + 1] - found[:, j : j + 1] * scale) / upper[j, j]
            left[:, j:last] -= error * upper[j, j:last]
            errors[:, j - first : j - first + 1] = error
        left[:, last:] -= errors @ upper[first:last, last:]
    return found[:, order.argsort()]
