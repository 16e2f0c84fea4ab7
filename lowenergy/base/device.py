"""Where a network is trained and measured, and in what precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from lowenergy.base.precision import Precision

_asked: ContextVar[torch.device | None] = ContextVar("device", default=None)


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Autocast to bfloat16 if `precision` asks for it and this type of device supports it.

    A CPU without support would emulate bfloat16, several times slower.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed" and has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fastest() -> torch.device:
    """The device that was asked for; otherwise a GPU if there is one, else the CPU."""
    return _asked.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def asked() -> torch.device | None:
    """The one device on which this process alone is to do all work; None if a stage may take what it finds."""
    return _asked.get()


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Train, draw and measure everything on this device within the `with` block."""
    before = _asked.set(device)
    try:
        yield
    finally:
        _asked.reset(before)


@contextmanager
def measured(network: nn.Module) -> Iterator[torch.device]:
    """Put the network on the fastest device within the block, and on the CPU afterwards.

    cuDNN is deterministic there, and its float32 products are as precise as a CPU's (no TF32).
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        network.to(fastest())
        try:
            yield fastest()
        finally:
            network.cpu()
