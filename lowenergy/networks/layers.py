"""What compression needs to know about any network: its layers and its arithmetic."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from lowenergy.networks.copies import duplicate
from lowenergy.networks.graphs import no_fast_path
from lowenergy.networks.importing import NetworkError, first_line
from lowenergy.networks.network import Network
from lowenergy.networks.spec import spec_of

Layer = nn.Conv2d | nn.Linear


def coded_layers(network: Network) -> dict[str, Layer]:
    """Return the layers whose weights are worth compressing, in the order of their calls (in the zoo: of definition).

    Layers that share a weight appear once, under the name by which the weight is known. For a network from elsewhere,
    only what it calls as a layer counts: a weight that a function uses by itself, as in nn.MultiheadAttention, cannot
    be watched.
    """
    return {name: network.get_submodule(name) for name in network.layers}  # type: ignore[misc]


def first_names(network: nn.Module) -> dict[str, str]:
    """Map every name of each parameter and buffer to the first name of the same tensor."""
    tensors = (
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    )
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def own_tensors(network: nn.Module) -> dict[str, str]:
    """Map each module's own parameters and buffers, each module once, to their first names (see first_names).

    Give torch.func.functional_call tensors by these names, with tie_weights=False: otherwise it puts tensors twice into
    a module that has two names, and leaves them there.
    """
    first = first_names(network)
    names = [
        f"{path}.{key}" if path else key
        for path, module in network.named_modules()
        for key in (*module._parameters, *module._buffers)
    ]
    return {name: first[name] for name in names if name in first}


def output_layer(network: Network) -> str:
    """The name of the layer that makes the logits: the last one."""
    return network.layers[-1]


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the last layer's input, (batch, features), and the logits; int8 graphs call no layers: None for them."""
    if not isinstance(network, Network):
        return None, network(images)
    seen: list[Tensor] = []
    last = network.get_submodule(network.last)
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        logits = network(images)
    return (seen[-1].flatten(1) if seen else None), logits


def left_out(network: Network) -> list[str]:
    """Names of weights of two dimensions or more that belong to no layer of coded_layers; they stay as they are."""
    layers = {f"{name}.weight" for name in coded_layers(network)}
    return [
        name for name, w in network.named_parameters() if w.ndim > 1 and max(w.shape) < w.numel() and name not in layers
    ]


VECTOR = 16  # float32 values in an AVX-512 register


def memory_format(network: nn.Module) -> torch.memory_format:
    """The best memory layout: channels last, which is faster, unless a network from elsewhere does not bear it.

    A network that calls x.view(len(x), -1), for example, does not.
    """
    if not isinstance(network, Network):
        return torch.channels_last  # an int8 graph
    if network.bears_channels_last is None:
        network.bears_channels_last = _bears_channels_last(network)
    return torch.channels_last if network.bears_channels_last else torch.contiguous_format


def _bears_channels_last(network: Network) -> bool:
    images = torch.zeros(2, *network.spec.input_shape, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            last = duplicate(network).eval().to(memory_format=torch.channels_last)
            last(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def training_format(network: nn.Module) -> torch.memory_format:
    """The best memory layout for training: that of memory_format, or contiguous where channels last is unsafe.

    For some networks, oneDNN writes past its workspace when weights get gradients (torch 2.15; oneDNN issue 6035): the
    gradients are wrong then, or the process crashes sooner or later. These networks have convolutions whose number of
    output channels is no multiple of 8, as structured pruning leaves them, or strided 1x1 convolutions with fewer input
    channels than a vector holds.
    """
    for outputs, inputs, size, stride in _convolutions(network):
        if outputs % 8 or (size == (1, 1) and stride != (1, 1) and inputs < VECTOR):
            return torch.contiguous_format
    return memory_format(network)


def _convolutions(network: nn.Module) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """Yield output channels, input channels (in graphs: per group), kernel size and stride of each convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            yield module.out_channels, module.in_channels, tuple(module.kernel_size), tuple(map(int, module.stride))
    for node in network.graph.nodes if isinstance(network, GraphModule) else ():
        if node.target is torch.ops.aten.conv2d.default:
            weight: Any = node.args[1]
            if weight.op == "call_module":  # which rounds the weight
                weight = weight.args[0]
            outputs, inputs, *size = weight.meta["val"].shape
            stride: Any = node.args[3] if len(node.args) > 3 else (1, 1)
            yield outputs, inputs, tuple(size), tuple(stride)


def _uncounted() -> dict[Any, Any]:
    """Operations that torch's counter does not know -> their multiplications and additions, from arguments' shapes."""
    aten = torch.ops.aten
    known: dict[Any, Any] = {
        aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda start, matrix, vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda one, other, **_: 2 * math.prod(one),
        # made by F.bilinear, from shapes (n, a), (o, a, b), (n, b)
        aten._trilinear: lambda x, w, y, *_, **__: 2 * x[0] * (math.prod(w) + w[0] * w[2]),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # once torchvision is imported
        known[torch.ops.torchvision.deform_conv2d] = lambda x, w, *_, out_shape, **__: (
            2 * math.prod(w) * out_shape[0] * math.prod(out_shape[2:])
        )
    return known


def flop_counter() -> FlopCounterMode:
    """Torch's counter of the multiplications and additions in matrix products, with those it does not know."""
    counter = FlopCounterMode(display=False, custom_mapping=_uncounted())
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """Takes the place of what tells torch's counter in which module it is: that bears no gradient in a forward pass."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def unfused() -> Iterator[None]:
    """Within the context, attention and recurrent layers run as the plain operations they consist of: counters do not
    know the fused ones."""
    with no_fast_path(), torch.backends.mkldnn.flags(enabled=False):
        yield


def macs(network: nn.Module) -> int:
    """Count the multiply-accumulates per image while the network runs once; multiplications by zero count too."""
    counter = flop_counter()
    device = next(network.parameters()).device
    try:
        with counter, torch.no_grad(), unfused():
            network(torch.zeros(1, *spec_of(network).input_shape, device=device))
    except RuntimeError as error:
        raise NetworkError(f"{spec_of(network).name}: its operations cannot be counted: {first_line(error)}") from None
    return counter.get_total_flops() // 2  # each is a multiplication and an addition
