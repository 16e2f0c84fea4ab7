"""Trace a network, and an energy's input gradient, to one list of plain operations on one image, to write code from.

The trace is the one that energies/gradient.py makes for other runtimes, with two differences: there is one image, so
that every shape is a number, and the backward pass of a convolution is a transposed convolution with the same weight,
so that both directions read one array.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowenergy.base.errors import UserError
from lowenergy.energies import HEADS
from lowenergy.energies.gradient import PLAIN, adaptive_average_pool, are_repeated, resized
from lowenergy.networks.copies import duplicate
from lowenergy.networks.distance import distance
from lowenergy.networks.graphs import SAME, reason_of
from lowenergy.networks.inputconv import InputConv2d

aten = torch.ops.aten

# Operations that have a C form of their own, which is faster than their parts.
WHOLE = (
    aten.silu_backward.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.avg_pool2d_backward.default,
)
RESIZES = (
    *(aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d),
    *(aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
)


def said(operation: Any) -> str:
    """An operation's name, for messages."""
    return str(operation).removeprefix("aten.").partition(".")[0]


@dataclass(frozen=True)
class Trace:
    """A graph whose inputs are the weights by name, then one image (1, c, h, w). It computes logits; for an energy,
    also the energy and, if asked for, its gradient."""

    graph: GraphModule
    weights: dict[str, Tensor]


def trace(network: nn.Module, head: str | None, input_shape: tuple[int, int, int], *, gradient: bool) -> Trace:
    """Trace a network in evaluation mode.

    Args:
        head: of an energy; None for a classifier.
        gradient: include the energy's input gradient.
    Raises:
        UserError: an operation cannot be traced, with torch's reason, or the network answers differently each time.
    """
    network = _with_plain_convolutions(network)
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = {name: value.detach() for name, value in weights.items()}

    def run(state: dict[str, Tensor], image: Tensor) -> tuple[Tensor, ...]:
        if not gradient:
            with torch.no_grad():
                logits = functional_call(network, state, (image,))
                return (logits,) if head is None else (logits, HEADS[head](logits))
        with torch.enable_grad():
            image = image.detach().requires_grad_()
            logits = functional_call(network, state, (image,))
            energy = HEADS[head or ""](logits)
            (slope,) = torch.autograd.grad(energy.sum(), image)
        return logits, energy, slope

    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no plain backward pass
            warnings.simplefilter("ignore")
            image = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
            wanted = run(weights, image)  # before the trace, so that the network keeps real tensors of its first run
            traced = make_fx(run, _decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)(weights, image)
            if any(
                getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in traced.graph.nodes
            ):
                plain = functionalize(Interpreter(traced).run, remove="mutations")
                traced = make_fx(plain, tracing_mode="fake", _allow_non_fake_inputs=True)(*weights.values(), image)
            traced.graph.eliminate_dead_code()
            for node in traced.graph.nodes:
                if node.users and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                    raise UserError(f"this network draws random numbers, which C has not: {node.target}")
            again = Interpreter(traced).run(*weights.values(), image)  # constants are not to be changed by its code
            if any(not distance(*pair) <= SAME for pair in zip(again[:2], wanted[:2], strict=True)):
                raise UserError("this network answers otherwise each time: its code changes a tensor of its own")
    except UserError:
        raise
    except Exception as error:  # torch raises nearly anything here
        raise UserError(f"this network cannot be traced: {reason_of(error)}") from None
    return Trace(traced, weights)


def _with_plain_convolutions(network: nn.Module) -> nn.Module:
    """A copy whose strided convolutions of images have the usual backward pass, through their own weights."""
    network = duplicate(network).eval()
    for module in network.modules():
        if isinstance(module, InputConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return network


def _decompositions() -> Any:
    table: Any = {**core_aten_decompositions(), **PLAIN}
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten.addmm.default] = _product_and_sum
    table[aten.native_batch_norm.default] = _norm
    table[aten._native_batch_norm_legit_no_training.default] = _norm_of_constants
    table[aten._softmax.default] = _softmax
    table[aten._safe_softmax.default] = _masked_softmax
    table[aten._log_softmax.default] = _log_softmax
    for resize in RESIZES:
        table[resize.default] = partial(_resized, resize.default)
        table[resize.vec] = partial(_resized_to, resize.default)
    table[aten._adaptive_avg_pool2d.default] = _mean_of_parts
    table[aten.adaptive_max_pool2d.default] = _largest_of_parts
    table[aten.adaptive_max_pool2d_backward.default] = _largest_of_parts_backward
    table[aten.amin.default] = lambda x, dims=(), keepdim=False: -aten.amax(-x, dims, keepdim)
    table[aten.var.correction] = _variance
    table[aten.avg_pool3d.default] = _mean_of_channels
    table[aten.avg_pool3d_backward.default] = _mean_of_channels_backward
    table[aten.reflection_pad2d.default] = partial(_continued, True)
    table[aten.replication_pad2d.default] = partial(_continued, False)
    table[aten.reflection_pad2d_backward.default] = partial(_continued_backward, True)
    table[aten.replication_pad2d_backward.default] = partial(_continued_backward, False)
    return {operation: _named(operation, plain) for operation, plain in table.items() if operation not in WHOLE}


def _named(operation: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A decomposition that names its operation if it fails."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # torch raises nearly anything here
            raise UserError(f"no C form of {said(operation)}: {reason_of(error)}; export it as ONNX") from None

    return run


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any,
    groups: int, mask: Any,
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """Only the input's gradient is ever asked for."""
    assert not (mask[1] or mask[2]), "weights take part as constants"
    if transposed:
        return aten.convolution(g, w, None, stride, padding, dilation, False, [0, 0], groups), None, None
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    places = zip(x.shape[2:], g.shape[2:], spans, stride, padding, strict=True)
    rest = [size + 2 * p - ((out - 1) * s + span) for size, out, span, s, p in places]
    return aten.convolution(g, w, None, stride, padding, dilation, True, rest, groups), None, None


def _product_and_sum(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Keep it whole, as a layer, only where the bias is a layer's: one number for each output."""
    if beta == alpha == 1 and bias.shape == (b.shape[1],):
        return NotImplemented
    product = aten.mm(a, b) if alpha == 1 else aten.mm(a, b) * alpha
    return product if beta == 0 else product + bias * beta


def _norm_of_constants(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Write a norm in evaluation mode as a scale and a shift; both are known when the code is written."""
    scale = aten.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    along = [-1, *[1] * (x.ndim - 2)]
    empty = aten.new_empty(x, [0])
    return x * aten.reshape(scale, along) + aten.reshape(shift, along), empty, empty


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    grown = aten.exp(x - aten.amax(x, [dim], True))
    return grown / aten.sum(grown, [dim], True)


def _masked_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Softmax, with zeros where a mask leaves nothing."""
    return aten.where(aten.amax(x, [dim], True) == -math.inf, 0.0, _softmax(x, dim, False))


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    moved = x - aten.amax(x, [dim], True)
    return moved - aten.log(aten.sum(aten.exp(moved), [dim], True))


def _norm(x: Tensor, w: Any, b: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float) -> Any:
    if training or mean is None:
        return aten._native_batch_norm_legit.no_stats(x, w, b, True, momentum, eps)
    return _norm_of_constants(x, w, b, mean, variance, momentum, eps)


def _resized(resize: Callable[..., Tensor], x: Tensor, size: Any, *rest: Any) -> Tensor:
    """Interpolate by products with constant matrices; where each pixel is only repeated equally often, by a view."""
    given = [argument.name for argument in resize._schema.arguments][2:]  # type: ignore[attr-defined]
    rest = (*rest, None, None)[: len(given)]
    if "align_corners" in given or not are_repeated(x.shape[2:], size, rest):
        return resized(resize, x, size, *rest)
    return _repeated(x, size)


def _resized_to(resize: Callable[..., Tensor], x: Tensor, size: Any, *rest: Any) -> Tensor:
    *options, scales = rest
    size = size or [int(n * s) for n, s in zip(x.shape[2:], scales, strict=True)]
    return _resized(resize, x, size, *options, *(scales or (None, None)))


def _repeated(x: Tensor, size: Any) -> Tensor:
    images, channels, height, width = x.shape
    tall, wide = size[0] // height, size[1] // width
    spread = aten.reshape(x, [images, channels, height, 1, width, 1])
    spread = aten.expand(spread, [images, channels, height, tall, width, wide])
    return aten.reshape(spread, [images, channels, *size])


def _mean_of_parts(x: Tensor, size: Any) -> Tensor:
    """Adaptive mean pooling, where the image is not cut into windows of one size: then it is a pool that C has."""
    return adaptive_average_pool(x, size) if _window(x, size) is None else NotImplemented


def _largest_of_parts(x: Tensor, size: Any) -> Any:
    """Adaptive max pooling where the image is cut into windows of one size: a pool that C has."""
    window = _window(x, size)
    return NotImplemented if window is None else aten.max_pool2d_with_indices(x, window, window)


def _largest_of_parts_backward(g: Tensor, x: Tensor, winners: Tensor) -> Tensor:
    window = _window(x, g.shape[-2:])
    if window is None:
        return NotImplemented
    return aten.max_pool2d_with_indices_backward(g, x, window, window, [0, 0], [1, 1], False, winners)


def _window(x: Tensor, size: Any) -> list[int] | None:
    fits = not any(n % parts for n, parts in zip(x.shape[-2:], size, strict=True))
    return [n // parts for n, parts in zip(x.shape[-2:], size, strict=True)] if fits else None


def _variance(x: Tensor, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    correction = 1 if correction is None else correction
    return aten.var_mean(x, dims or list(range(x.ndim)), correction=correction, keepdim=keepdim)[0]


def _continued(mirrored: bool, x: Tensor, padding: Any) -> Tensor:
    """Pad an image with its own pixels: those beside the edges in reverse if `mirrored`, else the edges themselves."""
    if min(padding) < 0:
        return NotImplemented
    for dim, (before, after) in ((-1, padding[:2]), (-2, padding[2:])):
        n = x.shape[dim]
        if mirrored:
            front, back = x.narrow(dim, 1, before).flip(dim), x.narrow(dim, n - 1 - after, after).flip(dim)
            x = torch.cat([front, x, back], dim)
        else:
            front, back = x.narrow(dim, 0, 1), x.narrow(dim, n - 1, 1)
            x = torch.cat([*[front] * before, x, *[back] * after], dim)
    return x


def _continued_backward(mirrored: bool, g: Tensor, x: Tensor, padding: Any) -> Tensor:
    if min(padding) < 0:
        return NotImplemented
    for dim, (before, after) in ((-1, padding[:2]), (-2, padding[2:])):
        n = x.shape[dim]
        front, g, back = g.split([before, n, after], dim)
        ends = []
        if before:
            ends.append((1, front.flip(dim)) if mirrored else (0, front.sum(dim, keepdim=True)))
        if after:
            ends.append((n - 1 - after, back.flip(dim)) if mirrored else (n - 1, back.sum(dim, keepdim=True)))
        for place, end in ends:
            around = [place, n - place - end.shape[dim]]
            g = g + F.pad(end, around if dim == -1 else [0, 0, *around])
    return g


def _mean_of_channels(x: Tensor, kernel: Any, stride: Any, padding: Any = (0,), *rest: Any) -> Any:
    """The mean of neighbouring channels, for nn.LocalResponseNorm: each channel becomes an image's row of pixels."""
    if list(kernel[1:]) != [1, 1] or set(stride) != {1} or any(padding):
        return NotImplemented
    rows = aten.avg_pool2d(x.flatten(-2), [kernel[0], 1], [1, 1], [0, 0], *rest)
    return rows.unflatten(-1, x.shape[-2:])


def _mean_of_channels_backward(g: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, *rest: Any) -> Any:
    if list(kernel[1:]) != [1, 1] or set(stride) != {1} or any(padding):
        return NotImplemented
    back = aten.avg_pool2d_backward(g.flatten(-2), x.flatten(-2), [kernel[0], 1], [1, 1], [0, 0], *rest)
    return back.unflatten(-1, x.shape[-2:])
