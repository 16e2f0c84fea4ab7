"""Energies: low where data is likely, p(x) ∝ exp(-E(x)), and their input gradients.

The score ∇ log p = -∇E is what sampling follows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowenergy.base import device
from lowenergy.base.precision import Precision
from lowenergy.networks import own_tensors

HEADS: dict[str, Callable[[Tensor], Tensor]] = {  # logits (batch, outputs) -> energies (batch,)
    "mean": lambda logits: logits.mean(1),
    "scalar": lambda logits: logits[:, 0],
    "logsumexp": lambda logits: -logits.logsumexp(1),  # Grathwohl et al. 2020
}

Energy = Callable[[Tensor], Tensor]


def energy_of(network: nn.Module, head: str, precision: Precision = "32-true", *, frozen: bool = False) -> Energy:
    """The energy that a network defines through its head: images (batch, c, h, w) -> energies (batch,), float32.

    Args:
        precision: bf16-mixed runs the network under autocast, about twice as fast where the hardware has bfloat16.
        frozen: the weights take part as constants, so that no step spends time on their gradients.
    """
    own = dict(network.named_parameters())  # detached, they still see later updates in place
    weights = {name: own[first].detach() for name, first in own_tensors(network).items() if first in own}

    def constant(images: Tensor) -> Tensor:
        return functional_call(network, weights, (images,), tie_weights=False)

    run = constant if frozen else network

    def energy(images: Tensor) -> Tensor:
        with device.autocast(images.device.type, precision):
            logits = run(images)
        return HEADS[head](logits.float())

    return energy


class ExplicitEnergy:
    """An energy whose input gradient comes from a graph of its own, as for int8 networks (gradient.py).

    Args:
        network: images -> logits.
        graph: images -> logits, input gradients of the energy.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], graph: Callable[[Tensor], Any], head: str) -> None:
        self.network, self.graph, self.head = network, graph, head

    def __call__(self, images: Tensor) -> Tensor:
        return HEADS[self.head](self.network(images))

    def gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits, gradient = self.graph(images)
        return HEADS[self.head](logits), gradient


def energy_gradient(energy: Energy, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies (batch,) and input gradients (batch, c, h, w), both detached; weights collect no gradient."""
    if isinstance(energy, ExplicitEnergy):
        return energy.gradient(images)
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        energies = energy(images)
        (gradient,) = torch.autograd.grad(energies.sum(), images)
    return energies.detach(), gradient


def twice_differentiable() -> AbstractContextManager[None]:
    """Within the context, compute attention by plain operations: torch's fused ones have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def logits_and_gradient(network: nn.Module, head: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (batch, outputs) and input gradients of the energy; differentiable by the weights if grad is enabled."""
    if getattr(network, "gradient", False):  # an int8 graph returns both
        logits, gradient = network(images)
        return logits, gradient
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), twice_differentiable():
        images = images.detach().requires_grad_()
        logits = network(images)
        (gradient,) = torch.autograd.grad(HEADS[head](logits).sum(), images, create_graph=create_graph)
    return logits, gradient
