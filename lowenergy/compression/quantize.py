"""Static quantization: integer weights per output channel, int8 activations with calibrated ranges; then QAT.

Of energies both directions are rounded, logits and input gradient, so that the int8 network samples by itself.
"""

import csv
import io
from collections.abc import Collection

import torch
from torch import Tensor
from torch.fx import GraphModule

from lowenergy import networks, training
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.params import Quantize
from lowenergy.runtimes import int8
from lowenergy.storage.artifact import Model, weights
from lowenergy.storage.encodings import Dense, Encoding, Int8
from lowenergy.training import Objective, Run


def compress(network: networks.AnyNetwork, target: str, objective: Objective, p: Quantize, run: Run) -> Model:
    """Fold BatchNorm, find which layers bear rounding, watch activations on the objective's inputs, round, finetune.

    The inputs of an energy's objective include noise and chains, where a range seen on clean data alone would clip. How
    much each layer's rounding alone adds to the objective's loss is written to plots/curves/<run>/sensitivity.csv.
    """
    folded = networks.fold_batchnorm(network.cpu().eval())
    layers = networks.coded_layers(folded)
    keep_float = {name.removeprefix(f"{target}:") for name in p.keep_float if name.split(":")[0] in (name, target)}
    if unknown := keep_float - set(layers):
        raise UserError(
            f"params.yaml: quantize.keep_float: {', '.join(sorted(unknown))} is no layer of {target}; it has "
            f"{', '.join(layers)}. For another target alone, write it before the layer: classifier:fc"
        )
    if rest := networks.left_out(folded):
        run.fabric.print(f"{run.name}: of no layer, and float: {', '.join(rest)}")
    # Every n-th: the inputs of an energy come in groups (real, noisy, chains), and each must be among them.
    every = max(1, len(objective.inputs) // p.calibration_images)
    index = torch.arange(0, len(objective.inputs), every)
    images = objective.inputs[index.to(objective.inputs.device)].cpu()
    scales = {name: int8.best_scale(layer.weight, p.weight_bits) for name, layer in layers.items()}
    prepared = _calibrated(folded, scales, images, p.weight_bits)
    if unfit := scales.keys() - {place.layer for place in int8.places(prepared)}:
        run.fabric.print(f"{run.name}: without an int8 form, and float: {', '.join(sorted(unfit))}")
        keep_float |= unfit
    if not scales.keys() - keep_float:
        raise UserError(f"{target}: no layer of {folded.spec.name} is left to quantize")
    spared = _spared(prepared, objective, index, keep_float, p.loss_budget, run)
    for name in spared:
        del scales[name]
    prepared = _calibrated(folded, scales, images, p.weight_bits)
    run.fabric.print(f"{run.name}: calibrated on {len(images)} images")
    if p.finetune.epochs:
        training.hold_zeros(prepared)
        training.finetune(prepared, objective, p.finetune, run)
    trained = {name.removeprefix("network."): value for name, value in prepared.named_parameters()}
    tensors: dict[str, Encoding] = {}
    for name, untrained in weights(folded).items():
        value, scale = trained.get(name, untrained).detach(), scales.get(name.removesuffix(".weight"))
        if scale is None or name.endswith(".bias"):
            tensors[name] = Dense(value)
        else:
            tensors[name] = Int8(int8.rounded(value, scale, p.weight_bits), scale, p.weight_bits)
    return Model(target, folded.spec, tensors, int8.ranges(prepared))


def _calibrated(network: networks.AnyNetwork, scales: dict[str, Tensor], images: Tensor, bits: int) -> GraphModule:
    prepared = int8.prepare(network, scales, bits, gradient=network.spec.head is not None, outputs=True)
    with torch.no_grad():
        for batch in images.split(250):
            prepared(batch)
    return int8.freeze(prepared)


def _spared(
    prepared: GraphModule,
    objective: Objective,
    index: Tensor,
    keep_float: set[str],
    budget: float | None,
    run: Run,
) -> set[str]:
    """The layers to keep float: those asked for, and the most sensitive ones until the loss is within budget."""
    names = list(dict.fromkeys(place.layer for place in int8.places(prepared)))
    prepared.to(run.device)
    exact = _loss(prepared, (), objective, index, run)
    added = {name: _loss(prepared, (name,), objective, index, run) - exact for name in names}
    spared = set(keep_float)
    order = iter(sorted(set(names) - spared, key=added.__getitem__, reverse=True))
    total = _loss(prepared, set(names) - spared, objective, index, run) - exact
    while budget is not None and total > budget and len(spared) < len(names):
        spared.add(next(order))
        total = _loss(prepared, set(names) - spared, objective, index, run) - exact
        run.fabric.print(f"{run.name}: {', '.join(sorted(spared))} float: rounding adds {total:.4g} to the loss")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "added_loss", "int8"])
    writer.writerows([name, f"{added[name]:.6g}", int(name not in spared)] for name in names)
    writer.writerow(["all", f"{total:.6g}", 1])
    files.write_bytes(run.curves / "sensitivity.csv", table.getvalue().encode())
    run.fabric.print(f"{run.name}: rounding adds {total:.4g} to a loss of {exact:.4g}")
    return spared


def _loss(prepared: GraphModule, layers: Collection[str], objective: Objective, index: Tensor, run: Run) -> float:
    """The objective's mean loss with these layers rounded and the others float."""
    int8.round_only(prepared, layers)
    return training.mean_loss(prepared, objective, index.to(run.device), run)
