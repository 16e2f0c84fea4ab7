"""Pruning: drop single weights and store the rest sparse, or remove whole channels for good.

    for each round:
        rank weights or channels, drop the least important
        pull the network back to its source
    train it further by the target's own loss

What is dropped stays dropped: the zeros hold through all training, and the file is as sparse as was asked for.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowenergy import networks, training
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.compression import channels
from lowenergy.compression.channels import THINNEST, ChannelGraph, Group, Holder
from lowenergy.compression.prune import Params
from lowenergy.storage.artifact import Model, dense, weights
from lowenergy.storage.encodings import Dense, Sparse
from lowenergy.training import Objective, Run

Layers = Mapping[str, nn.Conv2d | nn.Linear]
Shares = Mapping[str, float]  # by layer, the fraction to remove
Added = dict[str, list[float]]  # by layer, the loss that each of SCANNED adds

SCANNED = tuple(i / 10 for i in range(1, 10))  # fractions of a layer whose loss the scan measures
MACS_STEPS = 400  # how finely an amount of multiply-accumulates is met
SLOPE_BATCHES = 16
SHORT = 0.9  # of the amount asked for: a result below this is explained
WORDS = {"weights": "weights", "channels": "channels", "macs": "multiply-accumulates"}


def compress(network: networks.Network, target: str, objective: Objective, p: Params, run: Run) -> Model:
    """Prune, pull the network to the source behind `objective`, train it further, encode.

    If p.scan_images is set (not for kind 2of4), how much pruning each layer alone adds to the objective's loss is
    written to plots/curves/<run>/sensitivity.csv. The amounts asked for and reached go into the file's provenance.

    Raises:
        UserError: nothing can be pruned, or fewer multiply-accumulates than asked for; the network cannot be made again
            from the shapes of its weights; or it did not keep its zeros in training.
    """
    network = network.to(run.device).eval()
    check(network, p)
    source = Sizes.of(network, p)
    if p.kind != "structured" and (rest := networks.left_out(network)):
        run.say(f"of no layer, and whole: {', '.join(rest)}")
    share: float | Shares = p.amount
    if p.importance == "taylor":
        leave_slopes(network, objective, run)
    added = scan(network, objective, p, run) if p.scan_images and p.kind != "2of4" else {}
    if p.allocation == "uniform":
        share = dict.fromkeys(prunable(network, p), p.amount)
    elif p.allocation == "sensitivity":
        share = allot(added, prunable(network, p), p.amount)
        run.say(", ".join(f"{name} {part:.2f}" for name, part in share.items()))
    for done in range(1, p.rounds + 1):
        if p.importance == "taylor" and done > 1:
            leave_slopes(network, objective, run)
        cut(network, share, p, source, done)
        if p.kind == "structured":
            loads_again(network, target)  # raises before the training, if it must
        else:
            training.hold_zeros(nn.ModuleList(layers(network, p).values()))
            nonzero = {name: int(layer.weight.count_nonzero()) for name, layer in layers(network, p).items()}
        part = "fit" if p.rounds == 1 else f"round{done}"
        training.finetune(network, objective, p.finetune, run, part=part, fraction=1 / p.rounds)
    if p.retrain.epochs and any(w.requires_grad for w in network.parameters()):
        objective.retrain(network, p.retrain, run)
    network = network.cpu()
    if p.kind == "structured":
        model, again = loads_again(network, target)
        left = Sizes.of(again, p)
    else:
        tensors = {name: _sparse(value) for name, value in weights(network).items()}
        model = Model(target, network.spec, tensors, tied=network.tied)
        left = source.without_zeros(model)
        if grown := [name for name, count in nonzero.items() if left.weights[f"{name}.weight"] > count]:
            raise UserError(
                f"{run.name}: {', '.join(grown)} did not keep their zeros in training: the network itself writes their "
                "weights; give prune.finetune.epochs 0 and prune.retrain.epochs 0"
            )
    tell(network, source, left, p, run)
    return model


def _sparse(value: Tensor) -> Sparse | Dense:
    return Sparse(value) if value.dtype == torch.float32 and (value == 0).float().mean() > 1 / 32 else Dense(value)


def check(network: networks.Network, p: Params) -> None:
    """Check that there is something to prune.

    Raises:
        UserError: there is not, or fewer multiply-accumulates can go than asked for.
    """
    name, first = network.spec.name, f"params.yaml: prune.kind = {p.kind}"
    if p.kind == "structured":
        try:
            graph = ChannelGraph(network)
        except UserError as error:
            raise UserError(f"{first}: {error}; give unstructured") from None
        groups, stay = can_go(graph, p)
        if not groups:
            why = "; ".join(dict.fromkeys(stay.values())) or f"scope {p.scope} has none but the outputs"
            raise UserError(f"{first}: no channels of {name} can go: {why}; give unstructured")
        if p.amount_of == "macs":
            thinnest = networks.duplicate(network)
            remove_channels(thinnest, 1.0, p.model_copy(update={"importance": "group"}), ChannelGraph(network).sizes())
            most = 1 - networks.macs(thinnest) / networks.macs(network)
            if most < p.amount:
                all_stay = ", and some all of them" if stay else ""
                raise UserError(
                    f"params.yaml: prune.amount = {p.amount}: more multiply-accumulates than can go: every layer keeps "
                    f"a tenth of its channels{all_stay}; give at most {int(100 * most) / 100}"
                )
    elif not prunable(network, p):
        raise UserError(f"params.yaml: prune.scope = conv: {name} has no convolution; give global")
    elif p.kind == "2of4" and all(_inputs(layer) % 4 for layer in layers(network, p).values()):
        raise UserError(f"{first}: no layer of {name} has a multiple of four inputs; give unstructured")


def cut(network: networks.Network, share: float | Shares, p: Params, source: "Sizes", done: int = 1) -> None:
    """Prune to where round `done` of p.rounds should end; what is left shrinks by the same factor in every round.

    Args:
        share: fraction to remove in all rounds together; one number ranks all layers together, a mapping names each
            layer's.
        source: sizes of the network before the first round.
    """
    so_far = _share(share, done / p.rounds)
    if p.kind == "2of4":
        keep_two_of_four(layers(network, p))
    elif p.kind == "unstructured":  # zeroed weights are still there, and still the smallest
        zero_weights(layers(network, p), so_far, by_slope=p.importance == "taylor")
    elif p.amount_of == "macs":
        remove_macs(network, (1 - p.amount) ** (done / p.rounds) * source.macs, p, source.channels)
    else:
        remove_channels(network, so_far, p, source.channels)


def _share(share: float | Shares, progress: float) -> float | Shares:
    if isinstance(share, Mapping):
        return {name: 1 - (1 - s) ** progress for name, s in share.items()}
    return 1 - (1 - share) ** progress


def layers(network: networks.Network, p: Params) -> Layers:
    """The layers that lose single weights; of layers that share a weight, only the first."""
    first = {id(layer.weight): name for name, layer in reversed(networks.coded_layers(network).items())}
    return {
        name: layer
        for name, layer in networks.coded_layers(network).items()
        if first[id(layer.weight)] == name and (isinstance(layer, nn.Conv2d) or p.scope == "global")
    }


def prunable(network: networks.Network, p: Params) -> dict[str, int]:
    """How many weights each layer has that can lose some; for kind structured, outputs of each group, by its root."""
    if p.kind == "structured":
        return {group.root: sum(group.costs) for group in can_go(ChannelGraph(network), p)[0]}
    return {name: layer.weight.numel() for name, layer in layers(network, p).items()}


@dataclass(frozen=True)
class Sizes:
    """What pruning reduces: weights by tensor, all there are for kind structured, otherwise those in scope; channels
    that each layer makes and reads; multiply-accumulates for one image. The last two are for kind structured only.
    """

    weights: Mapping[str, int]
    channels: Mapping[Holder, int]
    macs: int

    @classmethod
    def of(cls, network: networks.Network, p: Params) -> "Sizes":
        if p.kind == "structured":
            sizes = {name: w.numel() for name, w in network.named_parameters() if w.ndim > 1}
            return cls(sizes, ChannelGraph(network).sizes(), networks.macs(network))
        sizes = {f"{name}.weight": layer.weight.numel() for name, layer in layers(network, p).items()}
        for name in networks.left_out(network):
            owner = network.get_submodule(name.rpartition(".")[0])
            if p.scope == "global" or isinstance(owner, nn.modules.conv._ConvNd):
                sizes[name] = network.get_parameter(name).numel()
        return cls(sizes, {}, 0)

    def without_zeros(self, model: Model) -> "Sizes":
        return Sizes({name: int(model.tensors[name].decode().count_nonzero()) for name in self.weights}, {}, 0)


def asked_of(p: Params) -> str:
    """The field of Sizes that the amount is a fraction of."""
    return "weights" if p.kind != "structured" else "macs" if p.amount_of == "macs" else "channels"


def tell(network: networks.Network, source: Sizes, left: Sizes, p: Params, run: Run) -> None:
    """Print what was asked for, what was reached, and why if that is short; the first two go into the file, too."""
    spared = _spared(network, p)

    def outputs(sizes: Sizes) -> int:
        return sum(count for (name, side), count in sizes.channels.items() if side == "out" and name not in spared)

    pairs = {
        "weights": (sum(left.weights.values()), sum(source.weights.values())),
        "channels": (outputs(left), outputs(source)),
        "macs": (left.macs, source.macs),
    }
    reached = {part: round(1 - few / many, 4) if many else 0.0 for part, (few, many) in pairs.items()}
    what = asked_of(p)
    run.provenance["pruned"] = {"asked": {what: p.amount}, "reached": reached}
    gone = ", ".join(f"{reached[part]:.1%} of the {WORDS[part]}" for part in reached)
    run.say(f"asked for {p.amount:.1%} of the {WORDS[what]}; gone: {gone}")
    if reached[what] < SHORT * p.amount:
        why = _by_reason(_short(network, source, left, p)) or "layers so small that whole channels are much of them"
        run.say(f"that is short, because of {why}")


def _short(network: networks.Network, source: Sizes, left: Sizes, p: Params) -> dict[str, str]:
    """By layer, why less has gone than was asked for."""
    if p.kind != "structured":
        why = dict.fromkeys(networks.left_out(network), "of no layer that is called by itself")
        if p.kind == "2of4":
            odd = {name: _inputs(layer) for name, layer in layers(network, p).items() if _inputs(layer) % 4}
            why |= {name: f"{inputs} inputs are no multiple of four" for name, inputs in odd.items()}
        return why
    graph, spared = ChannelGraph(network), _spared(network, p)
    why, fewest = can_go(graph, p)[1], graph.fewest(source.channels)
    for (name, side), count in left.channels.items():
        if side == "out" and name not in why and name not in spared:
            if count <= fewest[name, side]:
                why[name] = "a tenth stays"
            elif count == source.channels[name, side]:
                why[name] = f"of {count} channels none is as little as that"
    return why or {"all layers": "channels go only whole"}


# -- ways to prune ----------------------------------------------------------------------------------------------------


def zero_weights(layers: Layers, share: float | Shares, *, by_slope: bool = False) -> None:
    """Zero the weights of these layers that are smallest in magnitude, or with `by_slope` in |w · .grad|.

    Args:
        share: fraction to zero; one number ranks all layers' weights together, a mapping ranks each layer's alone.
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
    """Mark the smallest `share` of the scores, exactly that many; among equal ones, those that come first."""
    order = scores.argsort(stable=True)[: round(share * len(scores))]
    return torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill(0, order, True)


def keep_two_of_four(layers: Layers) -> None:
    """Zero the two weights smallest in magnitude of each four consecutive input channels.

    The layout is that of sparse tensor cores: input channels run fastest. Layers whose number of input channels is no
    multiple of four, such as the first, stay as they are.
    """
    for layer in layers.values():
        if _inputs(layer) % 4:
            continue
        groups = layer.weight.detach().movedim(1, -1).unflatten(-1, (-1, 4))  # (out, [k, k,] in / 4, 4)
        smallest = groups.abs().argsort(dim=-1, stable=True)[..., :2]
        with torch.no_grad():
            layer.weight.copy_(groups.scatter(-1, smallest, 0.0).flatten(-2).movedim(-1, 1))


def _inputs(layer: nn.Conv2d | nn.Linear) -> int:
    """How many input channels each output has."""
    return layer.weight.shape[1]


def can_go(graph: ChannelGraph, p: Params, importance: str = "group") -> tuple[list[Group], dict[str, str]]:
    """Groups of channels of which some can go, and by layer, why all of its channels stay.

    The network's outputs stay, and with scope conv those of fully connected layers. They are not listed, because they
    were not asked for.
    """
    network = graph.network
    spared = _spared(network, p)
    stay = {
        f"{name}.{part}".lstrip("."): "the network names them"
        for name, m in network.named_modules()
        for part in getattr(m, "keeps_channels", ())
    }
    stay |= unbearable(network)
    groups, stuck = graph.groups(importance, {*spared, *stay})
    return groups, {name: why for name, why in {**stuck, **stay}.items() if name not in spared}


def _spared(network: networks.Network, p: Params) -> set[str]:
    """Layers whose outputs are not asked for."""
    of_scope = {name for name, m in network.named_modules() if isinstance(m, nn.Linear) and p.scope == "conv"}
    return {networks.output_layer(network)} | of_scope


def unbearable(network: networks.Network) -> dict[str, str]:
    """Layers of a network from elsewhere whose channels all stay: by layer, why. Without one of them, it would not
    answer, or not the same, as where attention splits them into heads or its code takes their number for granted."""
    if network.unbearable is None:
        network.unbearable = channels.stuck(network)
        if network.unbearable:
            print(f"{network.spec.name}: keeps the channels of {_by_reason(network.unbearable)}", flush=True)
    return network.unbearable


def _by_reason(of: Mapping[str, str]) -> str:
    """Layers grouped by reason: `a, b: why; c: why`."""
    names = defaultdict(list)
    for name, why in of.items():
        names[why].append(name)
    return "; ".join(f"{', '.join(alike)}: {why}" for why, alike in names.items())


def loads_again(network: networks.Network, target: str) -> tuple[Model, networks.Network]:
    """The network as it is stored, and as it is made again from the shapes of its weights alone.

    Raises:
        UserError: it cannot be made again, or then answers differently.
    """
    model, copied = dense(network, target), networks.duplicate(network).cpu()
    images = torch.rand(4, *network.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        again = model.build()
        with torch.no_grad():
            same = channels.same(again(images), copied(images))
    except (RuntimeError, ValueError):  # it does not even run, or its weights do not fit each other
        same = False
    if not same:
        raise UserError(
            f"params.yaml: prune.kind = structured: {network.spec.name} cannot be made again from the shapes of its "
            "weights; give unstructured"
        )
    return model, again


def remove_channels(network: networks.Network, share: float | Shares, p: Params, whole: Mapping[Holder, int]) -> None:
    """Remove the least important channels, and all weights that go with them, until this share has gone.

    Args:
        share: of all channels in groups that can go, or of each group's, by its root.
        whole: how many channels each layer had before any were removed.
    """
    graph = ChannelGraph(network)
    groups, _ = can_go(graph, p, p.importance)

    def left_over(of: list[Group], share: float) -> float:
        """How many outputs of layers must still go, until this share of them has gone."""
        wanted = (1 - share) * sum(whole[name, "out"] for group in of for name in group.makers)
        return sum(sum(group.costs) for group in of) - wanted

    if isinstance(share, Mapping):
        for group in groups:
            _take(graph, [group], whole, left_over([group], share.get(group.root, 0.0)))
    else:
        _take(graph, groups, whole, left_over(groups, share))


def _take(graph: ChannelGraph, groups: list[Group], whole: Mapping[Holder, int], outputs: float) -> int:
    """Remove about so many outputs of layers; return how many went."""
    chosen = channels.lowest(groups, graph.sizes(), graph.fewest(whole), outputs)
    for group in groups:
        if chosen[group.root]:
            graph.remove(group, chosen[group.root])
    return sum(group.costs[i] for group in groups for i in chosen[group.root])


def remove_macs(network: networks.Network, goal: float, p: Params, whole: Mapping[Holder, int]) -> None:
    """Remove the least important channels, a few at a time, until no more than `goal` multiply-accumulates are left."""
    graph = ChannelGraph(network)
    step = 0.0
    while networks.macs(network) > goal:
        groups, _ = can_go(graph, p, p.importance)
        step = step or sum(sum(group.costs) for group in groups) * THINNEST / MACS_STEPS
        costs = [cost for group in groups for cost in group.costs] or [0]
        if _take(graph, groups, whole, max(step, min(costs))):
            continue
        if not _take(graph, groups, whole, max(costs)):  # the least important set may be a large one
            return


def leave_slopes(network: networks.Network, objective: Objective, run: Run) -> None:
    """Leave in each parameter's .grad the root mean square, over batches, of the slope of the target's own loss.

    |w · slope| is then how much losing w changes that loss, to first order (Molchanov et al. 2019, arXiv 1906.10771).
    """
    parameters = list(network.parameters())
    squares = [torch.zeros_like(w) for w in parameters]
    with channels.all_learning(network):  # also those that are frozen in training
        for _ in range(SLOPE_BATCHES):
            loss = objective.own_loss(network, run)
            slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)  # an energy's last bias has none
            torch._foreach_add_(squares, [slope.square() for slope in slopes])
    for w, square in zip(parameters, squares, strict=True):
        w.grad = (square / SLOPE_BATCHES).sqrt()


# -- how much each layer bears ----------------------------------------------------------------------------------------


def scan(network: networks.Network, objective: Objective, p: Params, run: Run) -> Added:
    """Measure what pruning each layer alone, by each of SCANNED, adds to the matching loss; write sensitivity.csv."""
    every = max(1, len(objective.inputs) // p.scan_images)
    index = torch.arange(0, len(objective.inputs), every, device=run.device)
    exact = training.mean_loss(network, objective, index, run)
    added: Added = {}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["layer", "amount", "added_loss"])
    once, source = p.model_copy(update={"rounds": 1, "amount_of": "weights"}), Sizes.of(network, p)
    for name in prunable(network, p):
        added[name] = []
        for amount in SCANNED:
            pruned = networks.duplicate(network)
            for new, old in zip(pruned.parameters(), network.parameters(), strict=True):
                new.grad = old.grad  # slopes, where they were left
            cut(pruned, {name: amount}, once, source)
            added[name].append(training.mean_loss(pruned, objective, index, run) - exact)
            writer.writerow([name, amount, f"{added[name][-1]:.6g}"])
    files.write_bytes(run.curves / "sensitivity.csv", table.getvalue().encode())
    return added


def allot(added: Added, sizes: Mapping[str, int], amount: float) -> dict[str, float]:
    """Choose each layer's share so that all add the same loss and together they give `amount`.

    Args:
        added: by layer, the loss that each of SCANNED adds; it is interpolated between them.
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
