"""Where a network is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
