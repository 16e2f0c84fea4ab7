"""Static quantization: integer weights per output channel, activations with calibrated ranges; then QAT.

Rounded networks are trained towards the teacher, then by the target's own loss. A network with BatchNorm is trained
with its norms active and 8-bit activations float, then folded. Any other is folded first: its int8 graph is trained
towards the teacher, then its layers by the own loss, again with 8-bit activations float. Activations of fewer bits are
rounded in all training, by steps that are learned.

For an energy, both directions are rounded, logits and input gradient, so that the int8 network can sample by itself.
"""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from lowenergy import networks, training
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.progress import Progress
from lowenergy.compression.quantize import Params, allocation
from lowenergy.compression.quantize.inputs import of_inputs, rounded_inputs
from lowenergy.compression.quantize.rounding import IMAGES, learn_rounding
from lowenergy.params import kinds
from lowenergy.runtimes import int8
from lowenergy.storage.artifact import Model, weights
from lowenergy.storage.encodings import Dense, Encoding, Int8, Range
from lowenergy.training import Objective, Run

MOST = 8  # bits of an activation; with fewer, its steps are learned in training
CHECKED = 8  # images on which folded networks and graphs are compared with what they were made from


@dataclass
class _Rounded:
    """A network that is ready to be stored."""

    network: networks.Network  # with its norms folded
    scales: dict[str, Tensor]  # (out,) by layer, of the layers that are rounded
    bits: Mapping[str, int]  # by layer
    input_bits: int | Mapping[str, int]  # by input, or one number for all
    graph: GraphModule  # its int8 form, with the ranges of activations


def compress(network: networks.Network, target: str, objective: Objective, p: Params, run: Run) -> Model:
    """Fold BatchNorm, find which layers bear rounding, watch activations on the objective's inputs, round, finetune.

    The inputs of an energy's objective include noise and chains, where a range seen on clean data alone would clip. How
    much each layer's rounding alone adds to the objective's loss is written to plots/curves/<run>/sensitivity.csv.
    """
    keep_float = _kept_float(network, target, p)
    index = _every_nth(objective, p.calibration_images)
    images = objective.inputs[index.to(objective.inputs.device)].cpu()
    rounded = _without_training(network, target, objective, index, images, keep_float, p, run)
    train = _train_with_norms if networks.batchnorms(network) else _train_folded
    return _encoded(train(network, rounded, images, objective, p, run), target)


def _every_nth(objective: Objective, count: int) -> Tensor:
    """Indices of about `count` inputs, from all over: an energy's come in groups (real, noisy, chains), and each must
    be represented."""
    return torch.arange(0, len(objective.inputs), max(1, len(objective.inputs) // count))


def _kept_float(network: networks.Network, target: str, p: Params) -> set[str]:
    """The layers of this target that the params keep float.

    Raises:
        UserError: it has no such layer.
    """
    layers = networks.coded_layers(network)
    keep_float = set()
    for name in p.keep_float:
        kind, slash, layer = name.partition("/")
        if name in layers or not slash or kind not in kinds():
            keep_float.add(name)
        elif kind == target:
            keep_float.add(layer)
    if unknown := keep_float - set(layers):
        raise UserError(
            f"params.yaml: quantize.keep_float: {', '.join(sorted(unknown))} is no layer of {target}; it has "
            f"{', '.join(layers)}. For another target alone, write it before the layer: classifier/fc"
        )
    return keep_float


def _without_training(
    network: networks.Network,
    target: str,
    objective: Objective,
    index: Tensor,
    images: Tensor,
    keep_float: set[str],
    p: Params,
    run: Run,
) -> _Rounded:
    """Quantize without training (post-training quantization).

    Args:
        index: which of the objective's inputs are looked at; images: those inputs.
        keep_float: layers that are not to be rounded, besides those that cannot be or would cost too much.
    Raises:
        UserError: no layer is left to round.
    """
    folded = networks.fold_batchnorm(network.cpu().eval(), _few(images))
    layers = networks.coded_layers(folded)
    if unfolded := networks.batchnorms(folded):
        run.say(f"norms that are not folded: {', '.join(unfolded)}")
    if rest := networks.left_out(folded):
        run.say(f"of no layer, and float: {', '.join(rest)}")
    bits = dict.fromkeys(layers, p.weight_bits)
    input_bits: int | Mapping[str, int] = p.activation_bits
    scales = {name: int8.best_scale(layer.weight, p.weight_bits) for name, layer in layers.items()}
    if p.allocation == "sensitivity":
        fit = {place.layer for place in int8.places(int8.prepare(folded, scales, bits))}  # others take no bits
        fit -= keep_float
        bits |= allocation.weight_bits(folded, fit, objective, index, p.weight_bits, run)
        scales = {name: int8.best_scale(layer.weight, bits[name]) for name, layer in layers.items()}
        if p.activation_bits < MOST:
            fitting = {name: scales[name] for name in fit}
            input_bits = allocation.input_bits(folded, fitting, bits, images, objective, index, p.activation_bits, run)
    trained = bool(p.finetune.epochs) and not networks.batchnorms(network)  # whether the graph itself will be
    graph = _calibrated(folded, scales, images, bits, input_bits, trained)
    if unfit := scales.keys() - {place.layer for place in int8.places(graph)}:
        run.say(f"without an int8 form, and float: {', '.join(sorted(unfit))}")
        keep_float = keep_float | unfit
    if not scales.keys() - keep_float:
        raise UserError(
            f"{target}: no layer of {folded.spec.name} is left to quantize; name fewer in quantize.keep_float, or give "
            "another method"
        )
    spared = _spared(graph, objective, index, keep_float, p.loss_budget, bits, run)
    if not scales.keys() - spared:
        raise UserError(
            f"quantize.loss_budget={p.loss_budget}: no layer of {target} is left to quantize within it; give more"
        )
    if spared:
        scales = {name: scale for name, scale in scales.items() if name not in spared}
        graph = _calibrated(folded, scales, images, bits, input_bits, trained)
    else:
        int8.round_only(graph.cpu(), scales)
    if p.rounding != "nearest":
        some = _every_nth(objective, IMAGES).to(objective.inputs.device)
        learn_rounding(
            folded, scales, bits, of_inputs(int8.ranges(graph)), objective.inputs[some].cpu(), run, p.rounding
        )
        graph = _calibrated(folded, scales, images, bits, input_bits)
    run.say(f"calibrated on {len(images)} images")
    return _Rounded(folded, scales, bits, input_bits, graph)


def _train_with_norms(
    network: networks.Network, rounded: _Rounded, images: Tensor, objective: Objective, p: Params, run: Run
) -> _Rounded:
    """Train weights and steps with the norms active and activations float, unless they have few bits, then fold."""
    if not (p.finetune.epochs or p.retrain.epochs):
        return rounded
    layers, bits = networks.coded_layers(network), rounded.bits
    starts = {name: int8.best_scale(layers[name].weight, bits[name]) for name in rounded.scales}
    inputs, negative = _few_levels(rounded.graph), _negated(network, rounded.network, starts)
    with rounded_inputs(network, inputs, int8.shared(rounded.graph)), rounded_weights(network, starts, bits, negative):
        training.finetune(network, objective, p.finetune, run)
        if p.retrain.epochs:
            objective.retrain(network, p.retrain, run)
    folded, scales = _folded(network, starts, _few(images))
    graph = _calibrated(folded, scales, images, bits, rounded.input_bits)
    int8.hold_ranges(graph, inputs)
    return _Rounded(folded, scales, bits, rounded.input_bits, graph)


def _negated(network: networks.Network, folded: networks.Network, names: Collection[str]) -> dict[str, Tensor]:
    """Find each layer's output channels, (out,) bool, whose norm has a negative factor: folding it flips the signs of
    their integers, of which there is one more below 0 than above."""
    layers = [networks.coded_layers(of) for of in (network, folded)]
    return {name: reduce(mul, (of[name].weight.detach().flatten(1) for of in layers)).sum(1) < 0 for name in names}


def _few_levels(graph: GraphModule) -> dict[str, Range]:
    """Ranges of the inputs that layers round in training, too: those of fewer than eight bits."""
    return {name: of_input for name, of_input in of_inputs(int8.ranges(graph)).items() if of_input.bits < MOST}


def _train_folded(
    network: networks.Network, rounded: _Rounded, images: Tensor, objective: Objective, p: Params, run: Run
) -> _Rounded:
    """Train the int8 graph towards the teacher; then weights and steps by the target's own loss, with
    activations float unless they have few bits."""
    folded, scales, bits, graph = rounded.network, rounded.scales, rounded.bits, rounded.graph
    if p.finetune.epochs:
        training.hold_zeros(graph)
        with int8.steps_learned(graph):
            training.finetune(graph, objective, p.finetune, run)
        state, new = folded.state_dict(), _trained(graph)
        state.update({name: new[name] for name in state.keys() & new.keys()})  # in place, to keep its modules' versions
        folded.load_state_dict(state)
    inputs = _few_levels(graph)
    if p.retrain.epochs:
        with rounded_inputs(folded, inputs, int8.shared(graph)), rounded_weights(folded, scales, bits):
            objective.retrain(folded, p.retrain, run)
    if p.finetune.epochs or p.retrain.epochs:
        learned = {
            name: range_ for name, range_ in int8.ranges(graph).items() if name.endswith(":in") and range_.bits < MOST
        }
        graph = _calibrated(folded, scales, images, bits, rounded.input_bits)
        int8.hold_ranges(graph, inputs if p.retrain.epochs else learned)
    return _Rounded(folded, scales, bits, rounded.input_bits, graph)


def _encoded(rounded: _Rounded, target: str) -> Model:
    trained = _trained(rounded.graph)
    tensors: dict[str, Encoding] = {}
    for name, untrained in weights(rounded.network).items():
        value, layer = trained.get(name, untrained), name.removesuffix(".weight")
        if layer not in rounded.scales or name.endswith(".bias"):
            tensors[name] = Dense(value)
        else:
            scale, bits = rounded.scales[layer], rounded.bits[layer]
            tensors[name] = Int8(int8.rounded(value, scale, bits), scale, bits)
    spec, tied = rounded.network.spec, rounded.network.tied
    return Model(target, spec, tensors, int8.ranges(rounded.graph), tied=tied)


def _few(images: Tensor) -> Tensor:
    """At most CHECKED of the images, from all over."""
    return images[:: max(1, len(images) // CHECKED)][:CHECKED]


def _trained(prepared: GraphModule) -> dict[str, Tensor]:
    return {name.removeprefix("network."): value.detach() for name, value in prepared.named_parameters()}


class RoundedWeight(nn.Module):
    """A parametrization that rounds a weight to the steps of its integers and trains both, with the gradients of
    learned step size (Esser et al. 2020, arXiv 1902.08153): the weight learns as if nothing were rounded.

    Unlike an int8 graph, it does not slow the network down, which the chains of an energy's own loss need.
    """

    holds_steps = True

    def __init__(self, scale: Tensor, bits: int, shape: torch.Size, negative: Tensor | None = None) -> None:
        """
        Args:
            negative: (out,) bool, the channels whose integers will change sign.
        """
        super().__init__()
        self.scale = nn.Parameter(scale.view(-1, *[1] * (len(shape) - 1)).clone())
        self.levels = 2 ** (bits - 1)
        turned = None if negative is None or not negative.any() else negative.float().view_as(self.scale)
        self.register_buffer("turned", turned, persistent=False)
        self.caution = (shape.numel() / len(scale) * self.levels) ** -0.5  # a step moves all weights of its channel

    def forward(self, weight: Tensor) -> Tensor:
        scale = self.scale.abs().clamp_min(int8.SMALLEST_SCALE)
        moved = self.caution * scale
        scale = scale.detach() + (moved - moved.detach())
        turned = 0.0 if self.turned is None else self.turned
        return int8.on_steps(weight, scale, turned - self.levels, turned + self.levels - 1)


@contextmanager
def rounded_weights(
    network: networks.Network,
    scales: dict[str, Tensor],
    bits: Mapping[str, int],
    negative: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Round the weights of these layers, within the context, and let them be trained; when it ends, `scales`, (out,) by
    layer, holds the trained steps to round them with."""
    coded = networks.coded_layers(network)
    layers = {name: networks.sharing(network, coded[name]) for name in scales}
    for name, same in layers.items():
        rounding = RoundedWeight(scales[name], bits[name], coded[name].weight.shape, (negative or {}).get(name))
        for owner, key in same:
            parametrize.register_parametrization(owner, key, rounding)
    held = training.hold_zeros(network)
    yield
    for handle in held:  # else graphs compared with the network later would have other gradients
        handle.remove()
    for name, same in layers.items():
        of_weight: Any = coded[name].parametrizations.weight  # type: ignore[union-attr]
        scales[name] = of_weight[0].scale.detach().abs().clamp_min(int8.SMALLEST_SCALE).flatten()
        for owner, key in same:
            parametrize.remove_parametrizations(owner, key, leave_parametrized=False)


def _folded(
    network: networks.Network, scales: Mapping[str, Tensor], images: Tensor
) -> tuple[networks.Network, dict[str, Tensor]]:
    """Fold the norms, and find the scales at which the weights round to the same integers as before, or to their
    negatives: a norm has one factor for each output channel, as a scale does."""
    folded = networks.fold_batchnorm(network.cpu().eval(), images)
    adjusted = {}
    for name, scale in scales.items():
        before, after = (networks.coded_layers(of)[name].weight.detach().flatten(1) for of in (network, folded))
        factor = (before * after).sum(1).abs() / before.square().sum(1).clamp_min(1e-30)
        adjusted[name] = (scale * factor).clamp_min(int8.SMALLEST_SCALE)
    return folded, adjusted


def _calibrated(
    network: networks.Network,
    scales: dict[str, Tensor],
    images: Tensor,
    bits: Mapping[str, int],
    input_bits: int | Mapping[str, int],
    trained: bool = False,
) -> GraphModule:
    """The int8 form of a network, with ranges measured on these images.

    Args:
        trained: the graph will be trained, so its gradients are checked as well.
    """
    same = input_bits if isinstance(input_bits, int) else MOST - 1
    prepared = allocation.observed(network, scales, bits, same, images)
    int8.check(prepared, network, _few(images), trained=trained)
    if not isinstance(input_bits, int):
        for place in int8.places(prepared):
            for name in place.activations.keys() & input_bits.keys():
                place.activations[name].limit(input_bits[name])
    return int8.freeze(prepared)


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
    while budget is not None and total > budget and set(names) - spared:
        spared.add(next(order))
        total = _loss(prepared, set(names) - spared, objective, index, run) - exact
        run.say(f"{', '.join(sorted(spared))} float: rounding adds {total:.4g} to the loss")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "added_loss", "int8", "bits"])
    writer.writerows([name, f"{added[name]:.6g}", int(name not in spared), bits[name]] for name in names)
    writer.writerow(["all", f"{total:.6g}", 1, ""])
    files.write_bytes(run.curves / "sensitivity.csv", table.getvalue().encode())
    run.say(f"rounding adds {total:.4g} to a loss of {exact:.4g}")
    return spared


def _loss(prepared: GraphModule, layers: Collection[str], objective: Objective, index: Tensor, run: Run) -> float:
    """The objective's mean loss with these layers rounded and the others float."""
    int8.round_only(prepared, layers)
    return training.mean_loss(prepared, objective, index.to(run.device), run)
