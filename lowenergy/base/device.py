"""Where a network is measured, and in what precision it is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lowenergy.base.params import Precision


def autocast(device: str, precision: Precision) -> torch.autocast:
    """bfloat16 if asked for and known to this type of device: a CPU without it emulates it, several times slower."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed" and has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fastest() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def measured(network: nn.Module) -> Iterator[torch.device]:
    """Within it the network is on the fastest device, whose float32 products are no shorter than a CPU's (no TF32)."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        network.to(fastest())
        yield fastest()
    network.cpu()
