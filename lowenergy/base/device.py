"""Where a network is trained and measured, and in what precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from lowenergy.base.precision import Precision

_asked: ContextVar[torch.device | None] = ContextVar("device", default=None)


def autocast(device: str, precision: Precision) -> torch.autocast:
    """bfloat16 if asked for and known to this type of device: a CPU without it emulates it, several times slower."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed" and has_bfloat16(device))


def has_bfloat16(device: str) -> bool:
    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fastest() -> torch.device:
    """The one that was asked for; else a GPU where there is one."""
    return _asked.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def asked() -> torch.device | None:
    """The one device that all work is to be done on, by this process alone; None for whatever a stage may take."""
    return _asked.get()


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Within it, everything is trained, drawn and measured on this device."""
    before = _asked.set(device)
    try:
        yield
    finally:
        _asked.reset(before)


@contextmanager
def measured(network: nn.Module) -> Iterator[torch.device]:
    """Within it the network is on the fastest device, whose float32 products are no shorter than a CPU's (no TF32)."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        network.to(fastest())
        yield fastest()
    network.cpu()
