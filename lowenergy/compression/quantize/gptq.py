"""Round weights one input after the other, letting the weights still to come make up for the errors made so far (GPTQ,
Frantar et al. 2023, arXiv 2210.17323).

For a layer whose inputs are X, (n, k), the errors e of the weights of one output cost eᵀ H e, with H = XᵀX. Once the
weight of input j is rounded, each weight i still to come is best moved by j's error times [H⁻¹]ᵢⱼ / [H⁻¹]ⱼⱼ, where H
covers only the inputs not rounded before j.
"""

import torch
from torch import Tensor

DAMPING = 0.01  # share of the mean of H's diagonal, added to it: what these few images lack, others may have
BLOCK = 128  # inputs rounded before the weights of all later ones are updated


def compensated(weights: Tensor, scale: Tensor, bits: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Find integers for which inputs @ (scale * integers).T is close to `outputs`; weights of zero stay zero.

    Args:
        weights: (o, k); scale: (o, 1).
        inputs: (n, k); outputs: (n, o), the wanted ones.
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
    # The inputs come from a network whose earlier layers are rounded, so first fit the weights to them.
    missing = (outputs - inputs @ weights.T).T @ inputs
    fitted = weights + torch.cholesky_solve(missing.T, lower).T
    order = h.diagonal().argsort(descending=True)  # what counts most goes first, while many can still make up for it
    inverse = torch.cholesky_inverse(lower)[order][:, order]
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, zero = fitted[:, order], (weights == 0)[:, order]
    rounded = torch.empty_like(left)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, first:last])
        for j in range(first, last):
            integers = (left[:, j : j + 1] / scale).round().clamp(-levels, levels - 1)
            rounded[:, j : j + 1] = integers.masked_fill(zero[:, j : j + 1], 0)
            error = (left[:, j : j + 1] - rounded[:, j : j + 1] * scale) / upper[j, j]
            left[:, j:last] -= error * upper[j, j:last]
            errors[:, j - first : j - first + 1] = error
        left[:, last:] -= errors @ upper[first:last, last:]
    return rounded[:, order.argsort()]
