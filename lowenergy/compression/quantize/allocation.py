"""Choose how many bits each layer's weights and inputs get: more where rounding costs more of the objective's loss.

All start with the fewest bits. Then more go to the layer that gains most for each further bit, as long as the budget
lasts. Weights have a budget of storage. Inputs have one of operations, because that is what their bits cost: a value
that many weights meet takes more of it.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule

from lowenergy import networks, training
from lowenergy.base.progress import Progress
from lowenergy.compression.budget import divide_bits
from lowenergy.data import at_a_time
from lowenergy.runtimes import int8
from lowenergy.storage.encodings import Range
from lowenergy.training import Objective, Run

FEWEST, MOST = 2, 8  # bits of a weight, or of an input


def weight_bits(
    network: networks.Network, names: Collection[str], objective: Objective, index: Tensor, mean: int, run: Run
) -> dict[str, int]:
    """Choose the bits of each layer's weights, at most `mean` on average over all weights.

    To see what they cost, each layer's weights alone are rounded to each number of bits. For an energy, the loss
    includes the error of the score.
    """
    network = networks.duplicate(network).to(run.device)
    layers = {name: layer for name, layer in networks.coded_layers(network).items() if name in names}
    exact = training.mean_loss(network, objective, index.to(run.device), run)
    progress = Progress(f"{run.name}: bits of each layer tried", (MOST - FEWEST + 1) * len(layers))
    costs: dict[str, dict[int, float]] = {}
    for name, layer in layers.items():
        weight = layer.weight.detach().clone()
        for bits in range(FEWEST, MOST + 1):
            scale = int8.best_scale(weight.cpu(), bits)
            values = int8.rounded(weight.cpu(), scale, bits) * scale.view(-1, *[1] * (weight.ndim - 1))
            with torch.no_grad():
                layer.weight.copy_(values)
            costs.setdefault(name, {})[bits] = training.mean_loss(network, objective, index.to(run.device), run) - exact
            progress(1)
        with torch.no_grad():
            layer.weight.copy_(weight)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    return _divided("weights", sizes, costs, mean, run)


def input_bits(
    network: networks.Network,
    scales: Mapping[str, Tensor],
    bits: Mapping[str, int],
    images: Tensor,
    objective: Objective,
    index: Tensor,
    mean: int,
    run: Run,
) -> dict[str, int]:
    """Choose the bits of each input, such as fc:in, at most `mean` on average over the multiplications of all inputs.

    To see what they cost, each input alone is rounded to each number of bits. Layers that take in the same numbers
    share one choice.

    Args:
        scales, bits: of the weights of the layers whose inputs are rounded; see int8.prepare.
        images: set the ranges; index: the objective's inputs on which the loss is measured.
    """
    prepared = observed(network, scales, bits, MOST - 1, images)
    first = int8.shared(prepared)
    roundings: dict[str, int8.Rounding] = {}
    sizes: Counter[str] = Counter()
    for place in int8.places(prepared):
        for name, rounding in place.activations.items():
            if name.endswith(":in"):
                roundings[first[name]] = rounding
                sizes[first[name]] += place.multiplications
    ranges = {name: _ranges(rounding) for name, rounding in roundings.items()}
    int8.round_only(int8.freeze(prepared.to(run.device)), ())
    exact = training.mean_loss(prepared, objective, index.to(run.device), run)
    progress = Progress(f"{run.name}: bits of each input tried", (MOST - FEWEST + 1) * len(roundings))
    costs: dict[str, dict[int, float]] = {}
    for name, rounding in roundings.items():
        rounding.enable_fake_quant()
        for candidate in ranges[name]:
            rounding.hold_range(candidate)
            loss = training.mean_loss(prepared, objective, index.to(run.device), run)
            costs.setdefault(name, {})[candidate.bits] = loss - exact
            progress(1)
        rounding.disable_fake_quant()
    chosen = _divided("inputs", sizes, costs, mean, run)
    return {name: chosen[of] for name, of in first.items() if of in chosen}


def observed(
    network: networks.Network,
    scales: Mapping[str, Tensor],
    bits: Mapping[str, int],
    activation_bits: int,
    images: Tensor,
) -> GraphModule:
    """Return a prepared graph whose activations have seen these images."""
    gradient = network.spec.head is not None
    prepared = int8.prepare(network, scales, bits, activation_bits=activation_bits, gradient=gradient, outputs=True)
    with torch.no_grad():
        for batch in images.split(at_a_time(images, 250)):
            prepared(batch)
    return prepared


def _ranges(rounding: int8.Rounding) -> list[Range]:
    """The range of these activations for each number of bits."""
    ranges = []
    for bits in range(FEWEST, MOST + 1):
        rounding.limit(bits)
        scale, zero = rounding.calculate_qparams()
        ranges.append(Range(scale.item(), int(zero.item()), bits))
    return ranges


def _divided(
    what: str, sizes: Mapping[str, int], costs: Mapping[str, Mapping[int, float]], mean: int, run: Run
) -> dict[str, int]:
    choices: dict[str, dict[int, tuple[int, float]]] = {}
    for name, by_bits in costs.items():
        lowest = math.inf  # more bits never cost more; where they seem to, it is chance
        for bits, cost in by_bits.items():
            lowest = min(lowest, abs(cost))  # a loss that rounding lowers has changed just as much
            choices.setdefault(name, {})[bits] = (sizes[name] * bits, lowest)
    chosen = divide_bits(choices, mean * sum(sizes.values()))
    run.say(f"bits of {what}: {', '.join(f'{name} {bits}' for name, bits in chosen.items())}")
    return chosen
