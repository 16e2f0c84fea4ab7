"""What layers see, and how their outputs affect the network's: both decide which errors matter."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lowenergy import networks
from lowenergy.base import device
from lowenergy.base.errors import UserError
from lowenergy.base.precision import Precision
from lowenergy.compression.pq.codebooks import Moments, any_moments, input_moments
from lowenergy.compression.pq.layers import owners_of

SAME = 1e-3  # relative to the norm of a layer's outputs


class _LayerReachedError(Exception):
    pass


def moments_of(
    network: nn.Module, wanted: dict[str, int], images: Tensor, precision: Precision, *, only: bool = False
) -> dict[str, Moments]:
    """Measure the input moments of the named layers, with the layers below them as they are now. Layers whose products
    cannot be watched get any_moments.

    Args:
        wanted: block length by layer.
        only: compute nothing above these layers.
    Raises:
        UserError: what a layer sees is not finite, or its square is not.
    """
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in wanted}
    sums: dict[str, Moments] = {}
    uses = _uses(network, layers, images[:1]) if only else Counter()
    left = 0

    def look(name: str, layer: networks.Layer, given: Tensor, _: Tensor) -> None:
        nonlocal left
        with torch.autocast("cpu", enabled=False):  # sums of squares need full precision
            seen = input_moments(layer, given.float(), wanted[name])
        if not seen.squares.isfinite().all():
            raise UserError(f"pq: {name} sees numbers that are not finite, or too large to be squared; train again")
        sums[name] = sums[name] + seen if name in sums else seen
        left -= 1
        if only and not left:
            raise _LayerReachedError

    with torch.no_grad(), device.autocast("cpu", precision), networks.watched(layers, look):
        for batch in images.split(64):
            left = uses.total()
            with suppress(_LayerReachedError):
                network(batch)
    return {name: sums[name] if name in sums else any_moments(layer, wanted[name]) for name, layer in layers.items()}


def plain_products(network: nn.Module, layers: Iterable[str], images: Tensor) -> set[str]:
    """Find the layers whose outputs are the product of their inputs and their weight, plus the bias. Others scale or
    mask the weight in code of their own, as equalized learning rates do, so its error does not give the outputs' error.

    Args:
        images: a few are enough.
    """
    is_plain: dict[str, bool] = {}

    def look(name: str, layer: networks.Layer, given: Tensor, output: Tensor) -> None:
        again = networks.product(layer, given)
        close = again.shape == output.shape and bool((again - output).norm() <= SAME * again.norm())
        is_plain[name] = is_plain.get(name, True) and close

    named: dict[str, Any] = {name: network.get_submodule(name) for name in layers}
    with torch.no_grad(), networks.watched(named, look):
        network(images)
    return {name for name, plain in is_plain.items() if plain}


def _uses(network: nn.Module, layers: dict[str, Any], image: Tensor) -> Counter[str]:
    """How often the network uses the weight of each of these layers."""
    uses = Counter[str]()
    with torch.no_grad(), networks.watched(layers, lambda name, *_: uses.update([name])):
        network(image)
    return uses


def output_weights(network: networks.Network, images: Tensor, generator: Generator) -> dict[str, Tensor]:
    """How much an error of each layer's output channels changes the logits: E Σ (∂(rᵀ logits) / ∂y)² over the pixels of
    an image, with r ~ N(0, I), which is the diagonal of the Gauss-Newton matrix. (o,) by layer.

    Layers that the network calls without gradients, or whose products cannot be watched, get the average weight of the
    others.
    """
    layers = networks.coded_layers(network)
    sums = {name: torch.zeros(layer.weight.shape[0]) for name, layer in layers.items()}
    seen: set[str] = set()
    reached: set[str] = set()
    owners = {owner: name for name, layer in layers.items() for owner in owners_of(network, layer)}

    def watch(owner: str, layer: networks.Layer, _: Tensor, output: Tensor) -> None:
        if not output.requires_grad:
            return
        name = owners[owner]
        seen.add(name)

        def add(gradient: Tensor) -> None:
            reached.add(name)
            squares = gradient.float().square()
            if isinstance(layer, nn.Conv2d):
                sums[name] += squares.flatten(2).sum((0, 2))
            else:
                sums[name] += squares.flatten(0, -2).sum(0)

        output.register_hook(add)

    trained = [w for w in network.parameters() if w.requires_grad]

    def step(batch: Tensor, *, by_images: bool, random: bool = True) -> None:
        batch = batch.clone().requires_grad_()
        logits = network(batch)
        if logits.requires_grad:
            r = torch.randn(logits.shape, generator=generator) if random else torch.ones_like(logits)
            torch.autograd.grad(logits, [batch] if by_images else trained, r, allow_unused=True)

    named: dict[str, Any] = {owner: network.get_submodule(owner) for owner in owners}
    with networks.watched(named, watch):
        # Asking for the input's gradient alone spares those of the weights, but does not reach every layer.
        step(images[:1], by_images=True, random=False)
        by_images = reached == sums.keys()
        for total in sums.values():
            total.zero_()
        for batch in images.split(64):
            step(batch, by_images=by_images)
    known = [float(total.mean()) for name, total in sums.items() if name in seen]
    for name in sums.keys() - seen:
        sums[name].fill_(sum(known) / len(known) if known else len(images))
    # A channel without effect still needs a code.
    return {name: total / len(images) + 1e-4 * total.mean() / len(images) + 1e-30 for name, total in sums.items()}
