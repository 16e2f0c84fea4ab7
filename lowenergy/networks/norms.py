"""BatchNorm: fold it into the layers before it, and compute its statistics anew."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowenergy.base.errors import UserError
from lowenergy.networks.backbone import Backbone
from lowenergy.networks.building import build_with
from lowenergy.networks.copies import duplicate
from lowenergy.networks.distance import distance
from lowenergy.networks.graphs import exported
from lowenergy.networks.network import Network
from lowenergy.networks.zoo.blocks import ConvNorm

aten = torch.ops.aten
BatchNorm = nn.modules.batchnorm._BatchNorm
Pair = tuple[Any, Any]  # a layer, and the norm of its outputs

SAME = 1e-4  # fraction of the outputs' norm by which folding may change them
FOLDED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # and no subclass: timm's also activate
BEFORE = (
    *(aten.conv1d, aten.conv2d, aten.conv3d, aten.linear),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)
SETTLED = 20  # after this many times its memory (1 / momentum steps), a norm's statistics are those of its weights
STATISTICS = 2000  # images over which the statistics are computed anew before that


def batchnorms(network: nn.Module) -> dict[str, Any]:
    """The BatchNorms of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}


# -- folding ----------------------------------------------------------------------------------------------------------


def fold_batchnorm(network: Network, images: Tensor | None = None) -> Network:
    """Return a network with the same function and fewer BatchNorms: their scale and shift move into the layer before.

    A folded network of the zoo is simply one with norm "none", and one from elsewhere has no tensors for these norms,
    so both are saved and loaded like any other. A norm stays if it follows no layer; if its layer, weight or statistics
    are used elsewhere as well; or if the network would answer differently without it.

    Args:
        images: those on which answers are compared; None for random ones.
    """
    network = duplicate(network).eval()
    if images is None:
        images = torch.rand(4, *network.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = network(images)

    def is_same(folded: nn.Module) -> bool:
        try:
            with torch.no_grad():
                outputs = folded(images)
        except Exception:  # its code uses something of a norm that is gone
            return False
        return distance(outputs, wanted) <= SAME  # false if not finite

    if isinstance(network, Backbone):
        folded = _without_norms(network)
        return folded if is_same(folded) else network
    _fold_all(network, _foldable(network), lambda: is_same(network))
    network.find_layers()  # its tensors have changed
    return network


def _without_norms(network: Backbone) -> Network:
    state = {}
    for name, module in network.named_modules():
        if isinstance(module, ConvNorm):
            weight, bias = module.conv.weight, module.conv.bias
            if isinstance(module.norm, nn.BatchNorm2d):
                weight, bias = _fused(module.conv, module.norm)
            assert bias is not None
            state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = weight, bias
        elif isinstance(module, nn.Linear):
            state[f"{name}.weight"], state[f"{name}.bias"] = module.weight, module.bias
    return build_with(replace(network.spec, norm="none"), {key: value.detach() for key, value in state.items()})


def _fused(layer: Any, norm: Any) -> tuple[Any, Any]:
    """Weight and bias of one layer that does what the layer and the norm do."""
    spread = torch.rsqrt(norm.running_var + norm.eps)
    bias = (-norm.running_mean if layer.bias is None else layer.bias - norm.running_mean) * spread
    if norm.weight is not None:
        bias, spread = bias * norm.weight + (0 if norm.bias is None else norm.bias), norm.weight * spread
    rest = [1] * (layer.weight.ndim - 2)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, ...)
        grouped = layer.weight.unflatten(0, (layer.groups, -1))
        return (grouped * spread.view(layer.groups, 1, -1, *rest)).flatten(0, 1), bias
    return layer.weight * spread.view(-1, 1, *rest), bias


def _fold_all(network: nn.Module, pairs: Sequence[Pair], is_same: Callable[[], bool]) -> None:
    """Fold these pairs in place, except those that change the network's answers, which trying halves singles out."""
    undo = [_fold(network, *pair) for pair in pairs]
    if is_same():
        return
    for back in undo:
        back()
    if len(pairs) > 1:
        middle = len(pairs) // 2
        _fold_all(network, pairs[:middle], is_same)
        _fold_all(network, pairs[middle:], is_same)


def _fold(network: nn.Module, layer: Any, norm: nn.Module) -> Callable[[], None]:
    """Fold one pair in place; return the function that undoes it."""
    places = [name for name, module in network.named_modules(remove_duplicate=False) if module is norm]

    def put(module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        layer.weight, layer.bias = weight, bias
        for place in places:
            owner, _, attribute = place.rpartition(".")
            setattr(network.get_submodule(owner), attribute, module)

    before = norm, layer.weight, layer.bias
    weight, bias = (nn.Parameter(value.detach(), layer.weight.requires_grad) for value in _fused(layer, norm))
    put(nn.Identity(), weight, bias)
    return lambda: put(*before)


def _foldable(network: Network) -> list[Pair]:
    """List each layer whose output only a norm uses, and that norm, if neither is called twice or shares a tensor."""
    if not any(type(module) in FOLDED for module in network.modules()):
        return []
    program = exported(network)
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    owners: dict[int, list[nn.Module]] = {}
    for module in network.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners.setdefault(id(tensor), []).append(module)

    def owner_of(tensors: Iterable[Any]) -> Any:
        """Return the module that has all these tensors for itself, each used once; None if there is none."""
        holders = set()
        for node in tensors:
            if node is None:
                continue
            if node.name not in names or len(node.users) > 1:
                return None
            owner, _, attribute = names[node.name].rpartition(".")
            tensor = getattr(network.get_submodule(owner), attribute)
            holders.update(owners[id(tensor)])
        return holders.pop() if len(holders) == 1 else None

    pairs = []
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default or node.args[5]:  # it uses the batch's statistics
            continue
        before = node.args[0]
        if getattr(before.target, "overloadpacket", None) not in BEFORE or len(before.users) > 1:
            continue
        weight, bias = before.args[1], before.args[2] if len(before.args) > 2 else None
        layer, norm = owner_of([weight, bias]), owner_of(node.args[1:5])
        if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) or type(norm) not in FOLDED:
            continue
        if isinstance(layer, nn.Linear) and before.meta["val"].ndim > 2:  # its channels come last, the norm's second
            continue
        if (bias is None) == (layer.bias is None):
            pairs.append((layer, norm))
    return pairs


# -- statistics -------------------------------------------------------------------------------------------------------


def refresh_batchnorm(network: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Compute BatchNorm's statistics anew over `images`: changed weights shift what the norms see.

    Every image counts the same: batches are as equal in size as possible, and their means and variances are pooled
    (Chan, Golub & LeVeque 1979). What a deep norm sees is normalised by the statistics of the batch, as in training.

    Args:
        batch_size: most images to run at once; at least two are run, as the statistics of one may not exist.
    Raises:
        UserError: a norm sees a single value of each channel.
    """
    by_norm = {norm: _Statistics(name) for name, norm in batchnorms(network).items() if norm.track_running_stats}
    if not by_norm:
        return
    network.eval()
    momenta = [norm.momentum for norm in by_norm]
    handles = [norm.register_forward_pre_hook(statistics.add) for norm, statistics in by_norm.items()]
    for norm in by_norm:
        norm.momentum = 0.0
        norm.train()  # and nothing else, so no dropout
    parts = max(1, min(math.ceil(len(images) / batch_size), len(images) // 2))
    try:
        with torch.no_grad():
            for batch in images.tensor_split(parts):
                network(batch)
            for norm, statistics in by_norm.items():
                if statistics.count:  # else it was not called
                    norm.running_mean.copy_(statistics.mean)
                    norm.running_var.copy_(statistics.squares / (statistics.count - 1))
    finally:
        for handle, norm, momentum in zip(handles, by_norm, momenta, strict=True):
            handle.remove()
            norm.momentum = momentum
        network.eval()


class _Statistics:
    """The mean of each channel over all that a norm has seen, and the sum of squared deviations from it."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.mean = self.squares = torch.zeros((), dtype=torch.double)

    def add(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        count = values.shape[1]
        if count == 1:
            raise UserError(f"{self.name} sees one value of each channel, which has no variance; give more images")
        variance, mean = torch.var_mean(values, 1, correction=0)
        mean, total = mean.double(), self.count + count
        away = mean - self.mean
        self.mean = self.mean + away * (count / total)
        self.squares = self.squares + count * variance.double() + away.square() * (self.count * count / total)
        self.count = total


def settle_norms(network: nn.Module, steps: int, images: Callable[[int], Tensor]) -> None:
    """Compute the norms' statistics of a network from elsewhere anew, if they cannot be those of its weights yet.

    That is so if its norms forget too slowly (momentum 0.01) for this many steps of training.

    Args:
        images: a function that returns as many images as it is asked for, float32, on the CPU.
    """
    momenta = [norm.momentum for norm in batchnorms(network).values() if norm.momentum]
    if not isinstance(network, Backbone) and momenta and steps < SETTLED / min(momenta):
        refresh_batchnorm(network, images(STATISTICS))
