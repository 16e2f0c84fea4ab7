"""CUDA graphs: what a GPU has to do in a step, recorded once and then asked for in one go.

A step of a small network is hundreds of operations, which a GPU carries out faster than a processor can name them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowenergy.energies import Energy, ExplicitEnergy, energy_gradient


class Recorded:
    """A function of tensors on a GPU, recorded at its first call with these shapes and replayed from then on.

    Args:
        function: must do the same whatever the values, draw no random numbers, and enter autocast by itself; what else
            it reads, such as weights, must stay where it is in memory.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results, which the next call overwrites."""
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.recorded:
            self.recorded[shapes] = self._record([x.detach().clone() for x in inputs])
        graph, places, results = self.recorded[shapes]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        return results

    def _record(self, places: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries choose algorithms and take memory at first
                self.function(*places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.function(*places)
        return graph, places, results


class RecordedLoss:
    """A loss of tensors, recorded together with its slopes; backward() hands these on."""

    def __init__(self, loss: Callable[..., Tensor], parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)

        def with_slopes(*inputs: Tensor) -> tuple[Tensor, ...]:
            value = loss(*inputs)
            slopes = torch.autograd.grad(value, self.parameters, materialize_grads=True)
            return value.detach(), *slopes

        self.recorded = Recorded(with_slopes)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            value, *slopes = self.recorded(*inputs)
        found: Tensor = _Known.apply(value, slopes, *self.parameters)
        return found


class _Known(torch.autograd.Function):
    """A value whose slopes by the parameters are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.slopes, gradient)


class RecordedEnergy(ExplicitEnergy):
    """An energy whose input gradient is recorded."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.recorded = Recorded(partial(energy_gradient, energy))

    def __call__(self, images: Tensor) -> Tensor:
        return self.energy(images)

    def gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient = self.recorded(images)
        return energies, gradient
