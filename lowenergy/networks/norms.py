"""BatchNorm: folded into the layers before it, and its statistics taken anew."""

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
from lowenergy.networks.graphs import exported
from lowenergy.networks.network import Network
from lowenergy.networks.zoo.blocks import ConvNorm

aten = torch.ops.aten
BatchNorm = nn.modules.batchnorm._BatchNorm
Pair = tuple[Any, Any]  # a layer, and the norm of its outputs

SAME = 1e-4  # of the outputs' norm, by which folding may change them
FOLDED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # and no subclass, for timm's also activate
BEFORE = (
    *(aten.conv1d, aten.conv2d, aten.conv3d, aten.linear),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)
SETTLED = 20  # memories of a norm, after which its statistics are those of its weights
STATISTICS = 2000  # images over which they are averaged anew before that


def batchnorms(network: nn.Module) -> dict[str, Any]:
    """The BatchNorms of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}


# -- folding ----------------------------------------------------------------------------------------------------------


def fold_batchnorm(network: Network, images: Tensor | None = None) -> Network:
    """The same function with fewer BatchNorms: the scale and shift of each moved into the layer before it.

    A folded network of the zoo is simply one of norm "none", one from elsewhere has no tensors of these norms, so both
    are saved and loaded like any other. Norms that follow no layer stay, and so do those whose layer, weight or
    statistics take part elsewhere as well, and those without which the network would answer differently.

    Args:
        images: on which its answers are compared; None: random ones.
    """
    network = duplicate(network).eval()
    if images is None:
        images = torch.rand(4, *network.spec.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted = network(images)

    def is_same(folded: nn.Module) -> bool:
        try:
            with torch.no_grad():
                found = folded(images)
        except Exception:  # its code asks something of a norm that is gone
            return False
        return float((found - wanted).norm()) <= SAME * float(wanted.norm())  # false of what is not finite

    if isinstance(network, Backbone):
        folded = _without_norms(network)
        return folded if is_same(folded) else network
    _fold_all(network, _foldable(network), lambda: is_same(network))
    network.find_layers()  # its tensors are others now
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
    """Weight and bias of a layer that does what the two do."""
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
    """Fold these pairs in place, but for those that change what the network answers: of them, halves are tried."""
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
    """Fold one pair in place; what takes it back."""
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
    """Each norm that alone uses the output of a layer, where neither is called twice nor shares a tensor."""
    if not any(type(module) in FOLDED for module in network.modules()):
        return []
    program = exported(network)
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    owners: dict[int, list[nn.Module]] = {}
    for module in network.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners.setdefault(id(tensor), []).append(module)

    def owner_of(tensors: Iterable[Any]) -> Any:
        """The module that has all these tensors for itself, each used once."""
        found = set()
        for node in tensors:
            if node is None:
                continue
            if node.name not in names or len(node.users) > 1:
                return None
            owner, _, attribute = names[node.name].rpartition(".")
            tensor = getattr(network.get_submodule(owner), attribute)
            found.update(owners[id(tensor)])
        return found.pop() if len(found) == 1 else None

    pairs = []
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default or node.args[5]:  # by the statistics of the batch
            continue
        before = node.args[0]
        if getattr(before.target, "overloadpacket", None) not in BEFORE or len(before.users) > 1:
            continue
        weight, bias = before.args[1], before.args[2] if len(before.args) > 2 else None
        layer, norm = owner_of([weight, bias]), owner_of(node.args[1:5])
        if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) or type(norm) not in FOLDED:
            continue
        if isinstance(layer, nn.Linear) and before.meta["val"].ndim > 2:  # whose channels come last, the norm's second
            continue
        if (bias is None) == (layer.bias is None):
            pairs.append((layer, norm))
    return pairs


# -- statistics -------------------------------------------------------------------------------------------------------


def refresh_batchnorm(network: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Take BatchNorm's statistics anew over `images`: changed weights shift what the norms see.

    Every image counts the same: batches are as equal as can be, and their means and variances are pooled (Chan, Golub &
    LeVeque 1979). What a deep norm sees is normalised by the statistics of the batch, as in training.

    Args:
        batch_size: images at once, at most; but two at least, for the statistics of one may not exist.
    Raises:
        UserError: a norm sees a single value of each channel.
    """
    found = {norm: _Statistics(name) for name, norm in batchnorms(network).items() if norm.track_running_stats}
    if not found:
        return
    network.eval()
    momenta = [norm.momentum for norm in found]
    handles = [norm.register_forward_pre_hook(statistics.add) for norm, statistics in found.items()]
    for norm in found:
        norm.momentum = 0.0
        norm.train()  # and nothing else: no dropout
    parts = max(1, min(math.ceil(len(images) / batch_size), len(images) // 2))
    try:
        with torch.no_grad():
            for batch in images.tensor_split(parts):
                network(batch)
            for norm, statistics in found.items():
                if statistics.count:  # else it was not called
                    norm.running_mean.copy_(statistics.mean)
                    norm.running_var.copy_(statistics.squares / (statistics.count - 1))
    finally:
        for handle, norm, momentum in zip(handles, found, momenta, strict=True):
            handle.remove()
            norm.momentum = momentum
        network.eval()


class _Statistics:
    """Mean, and sum of squared deviations from it, of each channel of all that a norm has seen."""

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
    """Take the statistics of a network from elsewhere anew, if its norms forget so slowly (momentum 0.01) that they
    are not yet those of its weights after so many steps of training.

    Args:
        images: as many images as it is asked for, float32, on the CPU.
    """
    momenta = [norm.momentum for norm in batchnorms(network).values() if norm.momentum]
    if not isinstance(network, Backbone) and momenta and steps < SETTLED / min(momenta):
        refresh_batchnorm(network, images(STATISTICS))
