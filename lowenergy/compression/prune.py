"""Pruning: drop single weights and store the rest sparse, or remove whole channels for good.

    for each round:
        rank weights or channels, drop the least important
        pull the network back to its source
    train it by the target's own loss

What is dropped stays dropped: the zeros hold through all training, and the file is as sparse as was asked for.
"""

import copy
import csv
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from lowenergy import networks, training
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.params import Prune
from lowenergy.storage.artifact import Model, dense, weights
from lowenergy.storage.encodings import Dense, Sparse
from lowenergy.training import Objective, Run

Layers = Mapping[str, nn.Conv2d | nn.Linear]
Shares = Mapping[str, float]  # by layer, the fraction to remove
Added = dict[str, list[float]]  # by layer, the loss that each of SCANNED adds

SCANNED = tuple(i / 10 for i in range(1, 10))  # fractions of a layer whose loss the scan measures
THINNEST = 0.9  # of a layer's channels no more than this is removed: none may vanish
MACS_STEPS = 400  # how finely an amount of multiply-accumulates is met
SLOPE_BATCHES = 16


def compress(network: networks.AnyNetwork, target: str, objective: Objective, p: Prune, run: Run) -> Model:
    """Prune, pull to the source behind `objective`, train on, encode.

    Where p.scan_images is set, how much pruning each layer alone adds to the objective's loss is written to
    plots/curves/<run>/sensitivity.csv.
    """
    network = network.to(run.device).eval()
    share: float | Shares = p.amount
    if p.importance == "taylor":
        leave_slopes(network, objective, run)
    added = scan(network, objective, p, run) if p.scan_images and p.kind != "2of4" else {}
    if p.allocation == "uniform":
        share = dict.fromkeys(prunable(network, p), p.amount)
    elif p.allocation == "sensitivity":
        share = allot(added, {name: _size(layer, p) for name, layer in prunable(network, p).items()}, p.amount)
        run.fabric.print(f"{run.name}: {', '.join(f'{name} {part:.2f}' for name, part in share.items())}")
    for done in range(1, p.rounds + 1):
        if p.importance == "taylor" and done > 1:
            leave_slopes(network, objective, run)
        cut(network, share, p, done)
        training.hold_zeros(network)
        part = "fit" if p.rounds == 1 else f"round{done}"
        training.finetune(network, objective, p.finetune, run, part=part, share=1 / p.rounds)
    if p.retrain.epochs:
        objective.retrain(network, p.retrain, run)
    if p.kind == "structured":
        return loads_again(network.cpu(), target)
    tensors = {
        name: Sparse(value) if value.is_floating_point() and (value == 0).float().mean() > 1 / 32 else Dense(value)
        for name, value in weights(network.cpu()).items()
    }
    return Model(target, network.spec, tensors)


def cut(network: networks.AnyNetwork, share: float | Shares, p: Prune, done: int = 1) -> None:
    """Prune to where round `done` of p.rounds should end; what is left shrinks by the same factor in every round.

    Args:
        share: fraction to remove in all rounds; one number ranks all layers together, a mapping names each layer's.
    """
    if p.kind == "2of4":
        keep_two_of_four(prunable(network, p))
    elif p.kind == "unstructured":  # zeroed weights are still there, and still the smallest
        zero_weights(prunable(network, p), _share(share, done / p.rounds), by_slope=p.importance == "taylor")
    elif p.amount_of == "macs":
        remove_macs(network, p)
    else:  # removed channels are gone: each round takes its share of the rest
        remove_channels(network, _share(share, 1 / p.rounds), p)


def _share(share: float | Shares, progress: float) -> float | Shares:
    if isinstance(share, Mapping):
        return {name: 1 - (1 - s) ** progress for name, s in share.items()}
    return 1 - (1 - share) ** progress


def prunable(network: networks.AnyNetwork, p: Prune) -> Layers:
    """The layers that lose weights; of those whose channels only go together (shortcuts), the first."""
    layers = networks.coded_layers(network)
    if p.kind == "structured":
        roots = [group[0][0].target.module for group in _pruner(network, 0.0, p).DG.get_all_groups(_kept(network, p))]
        return {name: layer for name, layer in layers.items() if any(layer is root for root in roots)}
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d) or p.scope == "global"}


def _kept(network: networks.AnyNetwork, p: Prune) -> list[nn.Module]:
    """Layers whose channels all stay: the outputs, what a network names, and of scope conv the fully connected."""
    kept = [network.get_submodule(networks.output_layer(network))]
    if p.scope == "conv":
        kept += [m for m in network.modules() if isinstance(m, nn.Linear)]
    kept += [getattr(m, name) for m in network.modules() for name in getattr(m, "keeps_channels", ())]
    return kept + [network.get_submodule(name) for name in unbearable(network)]


def _size(layer: nn.Conv2d | nn.Linear, p: Prune) -> int:
    return layer.weight.shape[0] if p.kind == "structured" else layer.weight.numel()


# -- ways to prune ----------------------------------------------------------------------------------------------------


def zero_weights(layers: Layers, share: float | Shares, *, by_slope: bool = False) -> None:
    """Zero the weights of these layers that are smallest in magnitude, or with `by_slope` in |w · .grad|.

    Args:
        share: fraction to zero; one number ranks all layers' weights together, a mapping each layer's by themselves.
    """
    scores = {}
    for name, layer in layers.items():
        score = layer.weight.detach()
        if by_slope:
            assert layer.weight.grad is not None, "leave_slopes first"
            score = score * layer.weight.grad
        scores[name] = score.abs().flatten()
    if isinstance(share, Mapping):
        dropped = {name: _smallest(score, share.get(name, 0.0)) for name, score in scores.items()}
    else:
        together = _smallest(torch.cat(list(scores.values())), share)
        dropped = dict(zip(scores, together.split([len(score) for score in scores.values()]), strict=True))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.masked_fill_(dropped[name].view(layer.weight.shape), 0)


def _smallest(scores: Tensor, share: float) -> Tensor:
    """Marks the `share` of scores that are smallest, exactly so many; of equal ones those that come first."""
    order = scores.argsort(stable=True)[: round(share * len(scores))]
    return torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill(0, order, True)


def keep_two_of_four(layers: Layers) -> None:
    """Of each four consecutive input channels of a weight, zero the two that are smallest in magnitude.

    The layout is that of sparse tensor cores: input channels run fastest. Layers whose input channels are no multiple
    of four, such as the first, stay as they are.
    """
    for layer in layers.values():
        groups = layer.weight.detach().movedim(1, -1)  # (out, [k, k,] in)
        if groups.shape[-1] % 4:
            continue
        groups = groups.unflatten(-1, (-1, 4))
        smallest = groups.abs().argsort(dim=-1, stable=True)[..., :2]
        with torch.no_grad():
            layer.weight.copy_(groups.scatter(-1, smallest, 0.0).flatten(-2).movedim(-1, 1))


IMPORTANCE: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="first"),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2, group_reduction="first"),
    "group": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
}


def _pruner(network: networks.AnyNetwork, share: float | Shares, p: Prune, steps: int = 1) -> Any:
    layers = networks.coded_layers(network)
    each = {layers[name]: s for name, s in share.items()} if isinstance(share, Mapping) else None
    return tp.pruner.BasePruner(
        network.eval(),
        torch.zeros(1, *network.spec.input_shape, device=next(network.parameters()).device),
        importance=IMPORTANCE[p.importance](),
        global_pruning=each is None,
        pruning_ratio=0.0 if isinstance(share, Mapping) else share,
        pruning_ratio_dict=each,
        max_pruning_ratio=THINNEST,
        iterative_steps=steps,
        ignored_layers=_kept(network, p),
    )


def unbearable(network: networks.AnyNetwork) -> tuple[str, ...]:
    """Layers of a network from elsewhere whose channels all stay, because it would not run without one of them: those
    that attention splits into heads, or whose number its code takes for granted."""
    if not isinstance(network, networks.Foreign):
        return ()  # the zoo bears all
    if network.unbearable is None:
        network.unbearable = _tried(network)
        if network.unbearable:
            print(f"{network.spec.name}: keeps the channels of {', '.join(network.unbearable)}", flush=True)
    return network.unbearable


def _tried(network: networks.Foreign) -> tuple[str, ...]:
    """Take one channel of each group on a copy, and see whether it still runs; if not, go on with a new copy."""
    images = torch.full((2, *network.spec.input_shape), -1.0)
    bad: list[str] = []
    good: set[str] = set()
    while True:
        copied = copy.deepcopy(network).cpu().eval()
        names = {module: name for name, module in copied.named_modules()}
        kept = [copied.get_submodule(name) for name in (networks.output_layer(network), *bad)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(copied, example_inputs=images)
        for group in list(graph.get_all_groups(ignored_layers=kept, root_module_types=[nn.Conv2d, nn.Linear])):
            root = group[0][0].target.module
            name = names[root]
            if name in good or name in bad:
                continue
            try:
                graph.get_pruning_group(root, group[0][0].handler, [0]).prune()
                with torch.no_grad():
                    out = copied(images)
                again = networks.build_with(network.spec, weights(copied), copy.deepcopy(network).cpu())
                with torch.no_grad():
                    torch.testing.assert_close(again(images), out)
            except Exception:  # whatever the network's own code does with a channel too few
                bad.append(name)
                break
            good.add(name)
        else:
            return tuple(bad)


def loads_again(network: networks.AnyNetwork, target: str) -> Model:
    """The network as it is stored, after making sure that its shapes alone make it again.

    Raises:
        UserError: they do not.
    """
    model = dense(network, target)
    images = torch.full((2, *network.spec.input_shape), -1.0)
    with torch.no_grad():
        same = torch.allclose(model.build()(images), network(images), rtol=1e-3, atol=1e-4)
    if not same:
        raise UserError(
            f"params.yaml: prune.kind = structured: {network.spec.name} cannot be made again from the shapes of its "
            "weights; give unstructured"
        )
    return model


def remove_channels(network: networks.AnyNetwork, share: float | Shares, p: Prune) -> None:
    """Remove this share of the channels, those of least importance, and all weights that go with them.

    Which weights go together is Torch-Pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900).
    """
    _pruner(network, share, p).step()


def remove_macs(network: networks.AnyNetwork, p: Prune) -> None:
    """Remove the least important channels, until p.rounds of this would leave p.amount fewer multiply-accumulates.

    Raises:
        UserError: not even with every layer at its thinnest.
    """
    goal = (1 - p.amount) ** (1 / p.rounds) * networks.macs(network)
    pruner = _pruner(network, THINNEST, p, steps=MACS_STEPS)
    for _ in range(MACS_STEPS):
        if networks.macs(network) <= goal:
            return
        pruner.step()
    raise UserError(
        f"params.yaml: prune.amount = {p.amount}: more multiply-accumulates than can go: every layer keeps a tenth "
        "of its channels"
    )


def leave_slopes(network: networks.AnyNetwork, objective: Objective, run: Run) -> None:
    """Leave in each parameter's .grad the root mean square, over batches, of the slope of the target's own loss.

    |w · slope| is then how much losing w changes that loss, to first order (Molchanov et al. 2019, arXiv 1906.10771).
    """
    parameters = list(network.parameters())
    squares = [torch.zeros_like(w) for w in parameters]
    for _ in range(SLOPE_BATCHES):
        loss = objective.own_loss(network, run)
        slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)  # an energy's last bias has none
        torch._foreach_add_(squares, [slope.square() for slope in slopes])
    for w, square in zip(parameters, squares, strict=True):
        w.grad = (square / SLOPE_BATCHES).sqrt()


# -- how much each layer bears ----------------------------------------------------------------------------------------


def scan(network: networks.AnyNetwork, objective: Objective, p: Prune, run: Run) -> Added:
    """What pruning each layer alone, by each of SCANNED, adds to the matching loss; written to sensitivity.csv."""
    every = max(1, len(objective.inputs) // p.scan_images)
    index = torch.arange(0, len(objective.inputs), every, device=run.device)
    exact = training.mean_loss(network, objective, index, run)
    added: Added = {}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "amount", "added_loss"])
    once = p.model_copy(update={"rounds": 1, "amount_of": "weights"})
    for name in prunable(network, p):
        added[name] = []
        for amount in SCANNED:
            pruned = copy.deepcopy(network)
            for new, old in zip(pruned.parameters(), network.parameters(), strict=True):
                new.grad = old.grad  # slopes, where they were left
            cut(pruned, {name: amount}, once)
            added[name].append(training.mean_loss(pruned, objective, index, run) - exact)
            writer.writerow([name, amount, f"{added[name][-1]:.6g}"])
    files.write_bytes(run.curves / "sensitivity.csv", table.getvalue().encode())
    return added


def allot(added: Added, sizes: Mapping[str, int], amount: float) -> dict[str, float]:
    """Each layer's share, such that all add the same loss, and together they give `amount`.

    Args:
        added: by layer, the loss that each of SCANNED adds; between them it is interpolated.
        sizes: by layer, its weights or channels.
    """
    curves = {name: np.maximum.accumulate([0.0, *losses]) for name, losses in added.items()}
    shares = np.array([0.0, *SCANNED])

    def at(price: float) -> dict[str, float]:
        return {name: float(np.interp(price, _rising(curve), shares)) for name, curve in curves.items()}

    def total(found: Mapping[str, float]) -> float:
        return sum(found[name] * sizes[name] for name in sizes) / sum(sizes.values())

    low, high = 0.0, max(float(curve[-1]) for curve in curves.values()) + 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if total(at(middle)) > amount else (middle, high)
    found = at(high)
    if total(found) < amount - 1e-6:  # every layer is at SCANNED's end: take the rest evenly
        rest = (amount - total(found)) / (1 - total(found))
        return {name: share + (1 - share) * rest for name, share in found.items()}
    return found


def _rising(curve: Any) -> Any:
    """The curve, made strictly increasing, as interpolation by it needs."""
    return curve + 1e-12 * np.arange(len(curve))
