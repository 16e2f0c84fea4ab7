"""How networks become lists of operations for C: tensors that their code holds, windows, and refusals by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_device import COMPARED, HEADER, agrees, sizes_untold  # noqa: F401 fixture
from test_device_arithmetic import with_function
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.base.errors import UserError
from lowenergy.runtimes import c
from lowenergy.runtimes.c import trace

HELD = torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(0))
KEPT: dict[str, Tensor] = {}


def of_a_cache(x: Tensor) -> Tensor:
    if "places" not in KEPT:
        KEPT["places"] = torch.linspace(0, 1, x.shape[3])
    return x * HELD + KEPT["places"]


def written(x: Tensor) -> Tensor:
    """Written part by part into memory that is new."""
    y = torch.empty_like(x)
    y[:, ::2], y[:, 1::2] = x[:, 1::2].tanh(), x[:, ::2]
    return y


CORNERS: dict[str, Any] = {"mode": "bilinear", "align_corners": True}
SMOOTH: dict[str, Any] = {"mode": "bilinear", "antialias": True}


def resized(x: Tensor, **given: Any) -> Tensor:
    """Interpolated, and weighted so that it matters where a pixel has come from."""
    x = F.interpolate(x, **given)
    return x * torch.linspace(0.5, 2, x.shape[2])[:, None] * torch.linspace(-1, 1, x.shape[3])


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "tensors that code holds": of_a_cache,
    "written in part": written,
    "continued": lambda x: F.pad(F.pad(x, (1, 2, 3, 0), mode="reflect"), (2, 0, 1, 3), mode="replicate"),
    "spread": lambda x: x / x.std((2, 3), keepdim=True) + x.flatten(1).var(1, unbiased=False)[:, None, None, None],
    "smallest": lambda x: x.amin(1) + x.amax((1, 2, 3), keepdim=True)[:, 0],
    "local response norm": lambda x: F.local_response_norm(x, 3, alpha=0.5),
    "powers": lambda x: x.abs() ** 1.5 + (x.abs() + 0.1) ** -0.3,
    "largest of parts": lambda x: F.adaptive_max_pool2d(x, (4, 2)) + F.adaptive_max_pool2d(x, 1),
    "channels as images": lambda x: (
        F.max_pool2d(x.reshape(-1, 2, 8, 8), 2).reshape(len(x), 8, 4, 4)
        + F.adaptive_avg_pool2d(x.reshape(-1, 1, 8, 8), 4).reshape(len(x), 8, 4, 4)
        + F.interpolate(x.reshape(-1, 4, 8, 8), scale_factor=2).reshape(len(x), 8, 16, 16)[..., ::4, ::4]
    ),
    "parts of several sizes": lambda x: F.adaptive_avg_pool2d(x, (5, 3)) + F.adaptive_avg_pool2d(x[:, :, 1:], (5, 3)),
    "nearest": lambda x: resized(x, scale_factor=(3.1, 2)) + resized(x, size=(24, 16), mode="nearest-exact"),
    "nearest exactly": lambda x: resized(x, scale_factor=3.1, mode="nearest-exact") + resized(x, size=(24, 24)),
    "nearest unevenly": lambda x: resized(x, size=(12, 5)) + resized(x, size=(12, 5), mode="nearest-exact"),
    "bilinear": lambda x: resized(x, size=(13, 5), mode="bilinear") + resized(x, size=(13, 5), **CORNERS),
    "by scales": lambda x: resized(x, scale_factor=1.7, mode="bilinear") + resized(x, scale_factor=1.7, **CORNERS),
    "bicubic": lambda x: resized(x, size=(13, 5), mode="bicubic") + resized(x, size=(13, 5), **SMOOTH),
}


@pytest.mark.parametrize("name", RIGHT)
def test_is_torchs(name: str, tmp_path: Path) -> None:
    KEPT.clear()
    assert agrees(with_function(RIGHT[name], "ebm"), tmp_path / "c") == COMPARED["ebm"]


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "convolution of 8 images at a time": lambda x: F.conv2d(x.reshape(-1, 1, 8, 8), HELD[:1, None]).view(x.shape),
    "pow with exponent 5": lambda x: x**5,
}


@pytest.mark.parametrize("words", REFUSED)
def test_an_energy_without_c_form_is_refused_by_name(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^no C form of {words} \(after layer body.conv\); export it as ONNX$"):
        c.export(with_function(REFUSED[words], "ebm"), HEADER, tmp_path / "c")


def test_an_operation_that_cannot_be_taken_apart_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("no such size")

    monkeypatch.setattr(trace, "_repeated", broken)
    with pytest.raises(UserError, match=r"^no C form of upsample_nearest2d: no such size; export it as ONNX$"):
        trace.trace(nn.Upsample(scale_factor=2), None, (3, 4, 4), gradient=False)


def test_code_that_changes_a_tensor_is_refused() -> None:
    factor = torch.ones(1)

    class Growing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * factor.mul_(2)

    with pytest.raises(UserError, match="answers otherwise each time: its code changes a tensor of its own$"):
        trace.trace(Growing(), None, (3, 4, 4), gradient=False)
