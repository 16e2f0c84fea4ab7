"""Backward passes that torch 2.15 lacks or computes wrongly, mended for all networks once this is imported."""

import warnings
from typing import Any

import torch
from torch import Tensor

NORM = "native_batch_norm_backward"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
KERNEL: Any = torch.library.get_kernel(f"aten::{NORM}", "CPU") if hasattr(torch.library, "get_kernel") else None
ATEN = torch.library.Library("aten", "IMPL")


def _batch_norm_backward(g: Tensor, x: Tensor, *rest: Any) -> Any:
    """The strides of a batch of one image may say anything along the batch, as those of attention's outputs do. torch's
    kernel follows them: the gradient was off by more than its norm. InstanceNorm is such a batch always."""
    if len(x) == 1:
        g, x = g.contiguous(), x.contiguous()
    return KERNEL.call_boxed(CPU, g, x, *rest)


def _hardsigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
    """torch's has no derivative of its own, so that no MobileNetV3 could be trained as an energy."""
    return g * ((x > -3) & (x < 3)) / 6


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that a kernel is replaced
    if KERNEL is not None:  # which older torch does not hand out
        ATEN.impl(NORM, _batch_norm_backward, "CPU")
    ATEN.impl("hardsigmoid_backward", _hardsigmoid_backward, "Autograd")
