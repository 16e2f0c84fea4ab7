"""Watch what layers do with their weights as it happens: the operation itself, not the module around it.

A module may pad, call another layer first, take a tuple, or rearrange its outputs. But what its weight is multiplied
with, and the result, belong to one operation that torch knows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowenergy.networks.layers import Layer

Look = Callable[[str, Layer, Tensor, Tensor], None]
Change = Callable[[str, Tensor], Tensor]
ARGUMENTS = ("input", "weight", "bias", "stride", "padding")  # of torch.conv2d; F.linear has the first three


@contextmanager
def watched(layers: Mapping[str, Layer], look: Look) -> Iterator[None]:
    """Within the context, show `look` each use of these layers' weights.

    It is called with the layer's name, the layer, what its weight is multiplied with (including the zeros around it),
    and the outputs with their bias. It never sees a layer whose weight is used in other ways, in a matrix product of
    the module's own or in TorchScript.
    """
    with _following(_Operations(layers, look=look), layers):
        yield


@contextmanager
def fed(layers: Mapping[str, Layer], change: Change) -> Iterator[None]:
    """Within the context, at each use of these layers' weights, multiply them with what `change` makes of the inputs.

    `change` is called with the layer's name and its inputs.
    """
    with _following(_Operations(layers, change=change), layers):
        yield


@contextmanager
def _following(mode: "_Operations", layers: Mapping[str, Layer]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in layers.values():
            enter = layer.register_forward_pre_hook(lambda module, _: mode.calling.append(module))
            leave = layer.register_forward_hook(lambda *_: mode.calling.pop() and None, always_call=True)
            for handle in (enter, leave):
                stack.callback(handle.remove)
        stack.enter_context(mode)
        yield


class _Operations(TorchFunctionMode):
    def __init__(self, layers: Mapping[str, Layer], *, look: Look | None = None, change: Change | None = None) -> None:
        super().__init__()
        self.names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
        self.look, self.change = look, change
        self.calling: list[Any] = []  # the innermost layer last

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.calling or function not in (torch.conv2d, F.linear):
            return function(*args, **kwargs)
        layer, given = self.calling[-1], dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        if layer not in self.names or not _is_own(given["weight"], layer):  # a copy of a layer has these hooks, too
            return function(*args, **kwargs)
        if self.change:
            given["input"] = self.change(self.names[layer], given["input"])
            args, kwargs = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
            args = (given["input"], *args)
        out = function(*args, **kwargs)
        if self.look:
            self.look(self.names[layer], layer, padded(layer, given["input"], given.get("padding", 0)), out)
        return out


def _is_own(weight: Tensor, layer: Layer) -> bool:
    """True if this is the layer's weight or computed from it, and not the weight of another layer within it."""
    own = layer.weight
    return weight is own or (weight.shape == own.shape and not isinstance(weight, nn.Parameter))


def padded(layer: Layer, inputs: Tensor, padding: Any) -> Tensor:
    """Return the inputs with the zeros that the convolution puts around them.

    Args:
        padding: as torch.conv2d takes it, by name or in numbers.
    """
    if isinstance(layer, nn.Linear) or padding == "valid":
        return inputs
    around: list[int] = []
    for d in (1, 0):  # F.pad begins with the last dimension
        if padding == "same":
            total = layer.dilation[d] * (layer.kernel_size[d] - 1)
            around += [total // 2, total - total // 2]
        else:
            around += [padding if isinstance(padding, int) else padding[d % len(padding)]] * 2
    return F.pad(inputs, around) if any(around) else inputs


def product(layer: Layer, given: Tensor) -> Tensor:
    """Apply the layer's weight and bias to inputs as `watched` shows them, with the zeros around them."""
    if isinstance(layer, nn.Linear):
        return F.linear(given, layer.weight, layer.bias)
    return F.conv2d(given, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
