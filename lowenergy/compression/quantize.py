"""Static quantization: integer weights per output channel, int8 activations with calibrated ranges; then QAT.
Rounded networks are trained towards the teacher, then by the target's own loss: those with BatchNorm with their norms
at work and activations float, then folded; others folded, in the int8 graph towards the teacher.

Of energies both directions are rounded, logits and input gradient, so that the int8 network samples by itself.
"""

import copy
import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from lowenergy import networks, training
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.params import Quantize
from lowenergy.base.progress import Progress
from lowenergy.compression.budget import share
from lowenergy.runtimes import int8
from lowenergy.storage.artifact import Model, weights
from lowenergy.storage.encodings import Dense, Encoding, Int8
from lowenergy.training import Objective, Run

FEWEST, MOST = 2, 8  # bits of a weight
BatchNorm = nn.modules.batchnorm._BatchNorm


def compress(network: networks.AnyNetwork, target: str, objective: Objective, p: Quantize, run: Run) -> Model:
    """Fold BatchNorm, find which layers bear rounding, watch activations on the objective's inputs, round, finetune.

    The inputs of an energy's objective include noise and chains, where a range seen on clean data alone would clip. How
    much each layer's rounding alone adds to the objective's loss is written to plots/curves/<run>/sensitivity.csv.
    """
    folded = networks.fold_batchnorm(network.cpu().eval())
    layers = networks.coded_layers(folded)
    keep_float = {name.removeprefix(f"{target}/") for name in p.keep_float if name.split("/")[0] in (name, target)}
    if unknown := keep_float - set(layers):
        raise UserError(
            f"params.yaml: quantize.keep_float: {', '.join(sorted(unknown))} is no layer of {target}; it has "
            f"{', '.join(layers)}. For another target alone, write it before the layer: classifier/fc"
        )
    if rest := networks.left_out(folded):
        run.fabric.print(f"{run.name}: of no layer, and float: {', '.join(rest)}")
    # Every n-th: the inputs of an energy come in groups (real, noisy, chains), and each must be among them.
    every = max(1, len(objective.inputs) // p.calibration_images)
    index = torch.arange(0, len(objective.inputs), every)
    images = objective.inputs[index.to(objective.inputs.device)].cpu()
    bits = dict.fromkeys(layers, p.weight_bits)
    if p.allocation == "sensitivity":
        bits |= _allocated(folded, layers.keys() - keep_float, objective, index, p.weight_bits, run)
    scales = {name: int8.best_scale(layer.weight, bits[name]) for name, layer in layers.items()}
    prepared = _calibrated(folded, scales, images, bits)
    if unfit := scales.keys() - {place.layer for place in int8.places(prepared)}:
        run.fabric.print(f"{run.name}: without an int8 form, and float: {', '.join(sorted(unfit))}")
        keep_float |= unfit
    if not scales.keys() - keep_float:
        raise UserError(f"{target}: no layer of {folded.spec.name} is left to quantize")
    spared = _spared(prepared, objective, index, keep_float, p.loss_budget, bits, run)
    if spared:
        scales = {name: scale for name, scale in scales.items() if name not in spared}
        prepared = _calibrated(folded, scales, images, bits)
    else:
        int8.round_only(prepared.cpu(), scales)
    run.fabric.print(f"{run.name}: calibrated on {len(images)} images")
    with_norms = any(isinstance(module, BatchNorm) for module in network.modules())
    if p.finetune.epochs and not with_norms:
        training.hold_zeros(prepared)
        training.finetune(prepared, objective, p.finetune, run)
        folded.load_state_dict(_trained(prepared), strict=False)
    if with_norms and (p.finetune.epochs or p.retrain.epochs):
        starts = {name: int8.best_scale(networks.coded_layers(network)[name].weight, bits[name]) for name in scales}
        with rounded_weights(network, starts, bits):
            training.finetune(network, objective, p.finetune, run)
            if p.retrain.epochs:
                objective.retrain(network, p.retrain, run)
        folded, scales = _folded(network, starts)
        prepared = _calibrated(folded, scales, images, bits)
    elif p.retrain.epochs:
        with rounded_weights(folded, scales, bits):
            objective.retrain(folded, p.retrain, run)
        prepared = _calibrated(folded, scales, images, bits)
    trained = _trained(prepared)
    tensors: dict[str, Encoding] = {}
    for name, untrained in weights(folded).items():
        value, layer = trained.get(name, untrained), name.removesuffix(".weight")
        if layer not in scales or name.endswith(".bias"):
            tensors[name] = Dense(value)
        else:
            scale = scales[layer]
            tensors[name] = Int8(int8.rounded(value, scale, bits[layer]), scale, bits[layer])
    return Model(target, folded.spec, tensors, int8.ranges(prepared))


def _trained(prepared: GraphModule) -> dict[str, Tensor]:
    return {name.removeprefix("network."): value.detach() for name, value in prepared.named_parameters()}


class RoundedWeight(nn.Module):
    """A weight on the steps of its integers, as a parametrization; weights and steps are trained as if nothing were
    rounded (learned step size, Esser et al. 2020, arXiv 1902.08153).

    Unlike an int8 graph it leaves the network as fast as it is, which the chains of an energy's own loss need.
    """

    def __init__(self, scale: Tensor, bits: int, shape: torch.Size) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.view(-1, *[1] * (len(shape) - 1)).clone())
        self.levels = 2 ** (bits - 1)
        self.caution = (shape.numel() / len(scale) * self.levels) ** -0.5  # a step moves all weights of its channel

    def forward(self, weight: Tensor) -> Tensor:
        moved = self.caution * self.scale
        scale = self.scale.detach() + (moved - moved.detach())
        steps = (weight / scale).clamp(-self.levels, self.levels - 1)
        return (steps + (steps.round() - steps).detach()) * scale


@contextmanager
def rounded_weights(network: networks.AnyNetwork, scales: dict[str, Tensor], bits: Mapping[str, int]) -> Iterator[None]:
    """Within it, the weights of these layers are rounded and can be trained; then `scales`, (out,) by layer, are those
    to round them with."""
    layers = {name: networks.coded_layers(network)[name] for name in scales}
    for name, layer in layers.items():
        rounding = RoundedWeight(scales[name], bits[name], layer.weight.shape)
        parametrize.register_parametrization(layer, "weight", rounding)
    training.hold_zeros(network)
    yield
    for name, layer in layers.items():
        of_weight: Any = layer.parametrizations.weight  # type: ignore[union-attr]
        scales[name] = of_weight[0].scale.detach().abs().clamp_min(int8.SMALLEST_SCALE).flatten()
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _folded(
    network: networks.AnyNetwork, scales: Mapping[str, Tensor]
) -> tuple[networks.AnyNetwork, dict[str, Tensor]]:
    """Without norms, and the scales by which its weights round to the integers that they were: a norm's factor is one
    of each output channel, like a scale's."""
    folded = networks.fold_batchnorm(network.cpu().eval())
    found = {}
    for name, scale in scales.items():
        before, after = (networks.coded_layers(of)[name].weight.detach().flatten(1) for of in (network, folded))
        factor = (before * after).sum(1).abs() / before.square().sum(1).clamp_min(1e-30)
        found[name] = (scale * factor).clamp_min(int8.SMALLEST_SCALE)
    return folded, found


def _calibrated(
    network: networks.AnyNetwork, scales: dict[str, Tensor], images: Tensor, bits: Mapping[str, int]
) -> GraphModule:
    prepared = int8.prepare(network, scales, bits, gradient=network.spec.head is not None, outputs=True)
    with torch.no_grad():
        for batch in images.split(250):
            prepared(batch)
    return int8.freeze(prepared)


def _allocated(
    network: networks.AnyNetwork, names: Collection[str], objective: Objective, index: Tensor, mean: int, run: Run
) -> dict[str, int]:
    """Bits of each layer's weights, at most `mean` of them on average, where they lower the objective's loss most.

    Each layer's weights alone are rounded to each number of bits; of an energy the loss is of the score as well. From
    the fewest bits on, the layer that gains most for each bit of its file gets more, as long as the budget lasts.
    """
    network = copy.deepcopy(network).to(run.device)
    layers = {name: layer for name, layer in networks.coded_layers(network).items() if name in names}
    exact = training.mean_loss(network, objective, index.to(run.device), run)
    progress = Progress(f"{run.name}: bits of each layer tried", (MOST - FEWEST + 1) * len(layers))
    costs: dict[str, dict[int, float]] = {}
    for name, layer in layers.items():
        weight = layer.weight.detach().clone()
        lowest = math.inf  # more bits never cost more: what says so is chance
        for bits in range(FEWEST, MOST + 1):
            scale = int8.best_scale(weight.cpu(), bits)
            values = int8.rounded(weight.cpu(), scale, bits) * scale.view(-1, *[1] * (weight.ndim - 1))
            with torch.no_grad():
                layer.weight.copy_(values)
            lowest = min(lowest, training.mean_loss(network, objective, index.to(run.device), run) - exact)
            costs.setdefault(name, {})[bits] = lowest
            progress(1)
        with torch.no_grad():
            layer.weight.copy_(weight)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    choices = {name: {bits: (sizes[name] * bits, cost) for bits, cost in costs[name].items()} for name in layers}
    shares = share(choices, mean * sum(sizes.values()))
    run.fabric.print(f"{run.name}: bits {', '.join(f'{name} {bits}' for name, bits in shares.items())}")
    return shares


def _spared(
    prepared: GraphModule,
    objective: Objective,
    index: Tensor,
    keep_float: set[str],
    budget: float | None,
    bits: Mapping[str, int],
    run: Run,
) -> set[str]:
    """The layers to keep float: those asked for, and the most sensitive ones until the loss is within budget."""
    names = list(dict.fromkeys(place.layer for place in int8.places(prepared)))
    prepared.to(run.device)
    exact = _loss(prepared, (), objective, index, run)
    progress = Progress(f"{run.name}: each layer rounded alone", len(names))
    added = {}
    for name in names:
        added[name] = _loss(prepared, (name,), objective, index, run) - exact
        progress(1)
    spared = set(keep_float)
    order = iter(sorted(set(names) - spared, key=added.__getitem__, reverse=True))
    total = _loss(prepared, set(names) - spared, objective, index, run) - exact
    while budget is not None and total > budget and len(spared) < len(names):
        spared.add(next(order))
        total = _loss(prepared, set(names) - spared, objective, index, run) - exact
        run.fabric.print(f"{run.name}: {', '.join(sorted(spared))} float: rounding adds {total:.4g} to the loss")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "added_loss", "int8", "bits"])
    writer.writerows([name, f"{added[name]:.6g}", int(name not in spared), bits[name]] for name in names)
    writer.writerow(["all", f"{total:.6g}", 1, ""])
    files.write_bytes(run.curves / "sensitivity.csv", table.getvalue().encode())
    run.fabric.print(f"{run.name}: rounding adds {total:.4g} to a loss of {exact:.4g}")
    return spared


def _loss(prepared: GraphModule, layers: Collection[str], objective: Objective, index: Tensor, run: Run) -> float:
    """The objective's mean loss with these layers rounded and the others float."""
    int8.round_only(prepared, layers)
    return training.mean_loss(prepared, objective, index.to(run.device), run)
