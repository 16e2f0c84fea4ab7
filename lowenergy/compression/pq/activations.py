"""What layers see, and what their outputs do to the network's: it decides which errors matter."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lowenergy import networks
from lowenergy.base import device
from lowenergy.base.errors import UserError
from lowenergy.base.precision import Precision
from lowenergy.compression.pq.codebooks import Moments, input_moments
from lowenergy.compression.pq.layers import owners_of

SAME = 1e-3  # of the norm of a layer's outputs


class _LayerReachedError(Exception):
    pass


def moments_of(
    network: nn.Module, wanted: dict[str, int], images: Tensor, precision: Precision, *, only: bool = False
) -> dict[str, Moments]:
    """Input moments of the layers named, with the layers below them as they are now.

    Args:
        wanted: block length by layer.
        only: nothing above these layers is computed.
    Raises:
        UserError: what a layer sees is not finite, or its square is not.
    """
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in wanted}
    found: dict[str, Moments] = {}
    calls = _calls(network, wanted, images[:1]) if only else Counter()
    left = 0

    def look(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal left
        with torch.autocast("cpu", enabled=False):  # sums of squares need all their bits
            seen = input_moments(layers[name], inputs[0].float(), wanted[name])
        if not seen.squares.isfinite().all():
            raise UserError(f"pq: {name} sees numbers that are not finite, or too large to be squared; train again")
        found[name] = found[name] + seen if name in found else seen
        left -= 1
        if only and not left:
            raise _LayerReachedError

    handles = [layers[name].register_forward_pre_hook(partial(look, name)) for name in wanted]
    with torch.no_grad(), device.autocast("cpu", precision):
        for batch in images.split(64):
            left = calls.total()
            with suppress(_LayerReachedError):
                network(batch)
    for handle in handles:
        handle.remove()
    return found


def plain_products(network: nn.Module, layers: Iterable[str], images: Tensor) -> set[str]:
    """Those layers whose outputs are the product of their inputs and their weight, and the bias: others scale or mask
    the weight in code of their own, as equalized learning rates do, and what it loses is not what their outputs lose.

    Args:
        images: a few.
    """
    found: dict[str, bool] = {}

    def look(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = networks.operand(layer, inputs[0])
        if isinstance(layer, nn.Linear):
            again = F.linear(x, layer.weight, layer.bias)
        else:
            again = F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
        close = again.shape == output.shape and bool((again - output).norm() <= SAME * again.norm())
        found[name] = found.get(name, True) and close

    handles = [network.get_submodule(name).register_forward_hook(partial(look, name)) for name in layers]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, plain in found.items() if plain}


def _calls(network: nn.Module, names: Iterable[str], image: Tensor) -> Counter[str]:
    """How often the network calls each of these layers."""
    calls = Counter[str]()
    handles = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        for name in names
    ]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return calls


def output_weights(network: networks.Network, images: Tensor, generator: Generator) -> dict[str, Tensor]:
    """What an error of each layer's output channels does to the logits: E Σ (∂(rᵀ logits) / ∂y)² over the pixels of an
    image, r ~ N(0, I), the diagonal of the Gauss-Newton matrix. (o,) by layer.

    Layers that the network calls without gradients weigh what others do on average.
    """
    layers = networks.coded_layers(network)
    sums = {name: torch.zeros(layer.weight.shape[0]) for name, layer in layers.items()}
    unseen: set[str] = set()
    reached: set[str] = set()

    def watch(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if not output.requires_grad:
            unseen.add(name)
            return

        def add(gradient: Tensor) -> None:
            reached.add(name)
            squares = gradient.float().square()
            if isinstance(layers[name], nn.Conv2d):
                sums[name] += squares.flatten(2).sum((0, 2))
            else:
                sums[name] += squares.flatten(0, -2).sum(0)

        output.register_hook(add)

    handles = [
        owner.register_forward_hook(partial(watch, name))
        for name, layer in layers.items()
        for owner in owners_of(network, layer).values()
    ]
    trained = [w for w in network.parameters() if w.requires_grad]

    def step(batch: Tensor, *, by_images: bool, random: bool = True) -> None:
        batch = batch.clone().requires_grad_()
        logits = network(batch)
        if logits.requires_grad:
            r = torch.randn(logits.shape, generator=generator) if random else torch.ones_like(logits)
            torch.autograd.grad(logits, [batch] if by_images else trained, r, allow_unused=True)

    # Only the input's gradient is asked for: the weights collect none. But not all layers need lie on its way.
    step(images[:1], by_images=True, random=False)
    by_images = reached == sums.keys()
    for total in sums.values():
        total.zero_()
    for batch in images.split(64):
        step(batch, by_images=by_images)
    for handle in handles:
        handle.remove()
    seen = [float(total.mean()) for name, total in sums.items() if name not in unseen]
    for name in unseen:
        sums[name].fill_(sum(seen) / len(seen) if seen else len(images))
    # A channel without effect still needs a code.
    return {name: total / len(images) + 1e-4 * total.mean() / len(images) + 1e-30 for name, total in sums.items()}
