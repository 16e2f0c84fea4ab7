"""Backward passes that torch 2.15 lacks or computes wrongly, fixed for all networks once this is imported."""

import warnings
from typing import Any

import torch
from torch import Tensor

NORM = "native_batch_norm_backward"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
KERNEL: Any = torch.library.get_kernel(f"aten::{NORM}", "CPU") if hasattr(torch.library, "get_kernel") else None
ATEN = torch.library.Library("aten", "IMPL")


def _batch_norm_backward(g: Tensor, x: Tensor, *rest: Any) -> Any:
    """Make batches of one image contiguous before torch's kernel sees them.

    Along such a batch the stride may be anything, as in attention's outputs, and torch's kernel follows it: the
    gradient was off by more than its norm. InstanceNorm always runs on such a batch.
    """
    if len(x) == 1:
        g, x = g.contiguous(), x.contiguous()
    return KERNEL.call_boxed(CPU, g, x, *rest)


def _hardsigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
    """torch's own version has no derivative, so no MobileNetV3 could be trained as an energy."""
    return g * ((x > -3) & (x < 3)) / 6


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns that a kernel is replaced
    if KERNEL is not None:  # older versions of torch do not hand it out
        ATEN.impl(NORM, _batch_norm_backward, "CPU")
    ATEN.impl("hardsigmoid_backward", _hardsigmoid_backward, "Autograd")
