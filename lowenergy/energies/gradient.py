"""An energy's logits and input gradient as one graph of plain operations, for any network: traced, not written.

Sampling needs ∇E(x), and autograd computes it where no exporter, quantizer or other runtime can follow.
`gradient_graph` traces what autograd does, so that the gradient becomes operations like those of the forward pass.
Backward passes that are one opaque operation to torch are decomposed. A convolution's is a convolution with the same
weights, flipped, so that whatever makes convolutions small and fast works in both directions.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table, get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.graph import CodeGen
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from lowenergy.base import UserError
from lowenergy.energies.energy import HEADS, logits_and_gradient
from lowenergy.networks import own_tensors
from lowenergy.networks.graphs import check_names, check_same, quiet, reason_of, traced, writes, writes_in_place
from lowenergy.networks.inputconv import input_gradient

aten = torch.ops.aten


def gradient_graph(network: nn.Module, head: str, input_shape: tuple[int, int, int]) -> GraphModule:
    """Trace images (batch, c, h, w) -> logits (batch, outputs), input gradients of the energy (batch, c, h, w).

    The graph holds the network's own parameters and buffers under their own names. Its convolutions are aten.conv2d and
    its fully connected layers aten.linear, as in torch.export's graphs. It takes any batch size, writes no tensor in
    place, and has been seen to answer like autograd.

    Args:
        network: images -> logits, in evaluation mode.
        head: the energy's head, see energy.HEADS.
    Raises:
        UserError: an operation cannot be traced, with torch's reason, or its gradient differs in the graph.
    """
    check_names(network)
    images = torch.rand(3, *input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return logits_and_gradient(network, head, images)

    try:
        with torch.no_grad():
            answers(network, images)
    except RuntimeError as error:
        raise UserError(f"the gradient of this network cannot be computed: {reason_of(error)}") from None

    def compared(forward: nn.Module) -> GraphModule:
        graph = _joint(network, forward, head, input_shape)
        check_same(graph, network, images, "the gradient graph", answers)
        return graph

    def of_itself() -> GraphModule:
        return compared(network)

    def of_its_export() -> GraphModule:  # where len(x) is no constant, and what is written is a new tensor
        return compared(traced(network, input_shape).module(check_guards=False))

    ways = [of_itself, of_its_export]
    if writes_in_place(network, images):  # a gradient within the forward pass may do so, and has no export
        ways.reverse()
    try:
        return ways[0]()
    except UserError as refused:
        with suppress(UserError):
            return ways[1]()
        raise refused from None


def _joint(network: nn.Module, forward: nn.Module, head: str, input_shape: tuple[int, int, int]) -> GraphModule:
    """Trace the graph of both directions, forward and backward.

    Args:
        forward: the network, or a graph of it with parameters and buffers of the same names.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {name: value.detach() for name, value in tensors.items()}
    own = {name: first for name, first in own_tensors(forward).items() if first in state}

    def both(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            given = {name: state[first] for name, first in own.items()}
            logits = functional_call(forward, given, (images,), tie_weights=False)
            (gradient,) = torch.autograd.grad(HEADS[head](logits).sum(), images)
        return logits, gradient

    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    batch: Any = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3], constraint_sizes=[None] * 4)
    images = fake.from_tensor(torch.zeros(2, *input_shape), symbolic_context=batch)
    weights = {name: fake.from_tensor(value, static_shapes=True) for name, value in state.items()}
    try:
        # Fused attention has no plain backward pass; the form with plain operations has.
        with fake, sdpa_kernel(SDPBackend.MATH), enable_python_dispatcher(), quiet():
            joint = make_fx(both, decomposition_table=PLAIN)(weights, images)
            if any(map(writes, joint.graph.nodes)):  # some of torch's own decompositions write
                joint = make_fx(functionalize(joint, remove="mutations"))(weights, images)
    except Exception as error:  # torch raises nearly anything here
        raise UserError(f"the gradient of this network cannot be traced: {reason_of(error)}") from None
    graph = joint.graph
    graph.set_codegen(CodeGen())  # parameters are no longer inputs
    graph.owning_module = None  # until it has the parameters that it will name
    _own_parameters(graph, list(state))
    for node in list(graph.nodes):
        if writes(node):
            raise UserError(f"the gradient of this network cannot be traced: {node.target} writes in place")
        if node.target is aten.view.default:  # a view would hold for the current memory layout only
            node.target = aten.reshape.default
        _as_layer(graph, node)
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    constants = {name: getattr(joint, name) for name in used - set(tensors)}
    module = GraphModule({**constants, **{name: tensors[name] for name in tensors if name in used}}, graph)
    return module.eval()


# -- backward passes as plain operations ------------------------------------------------------------------------------


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any,
    groups: int, mask: Any,
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """Only the input's gradient is ever asked for."""
    assert not (mask[1] or mask[2]), "weights take part as constants"
    kernel, axes = w.shape[2:], w.ndim - 2
    stride, padding, dilation = ([*each] * (axes // len(each)) for each in (stride, padding, dilation))
    back = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    none = [0] * axes
    if transposed:
        return aten.convolution(g, w, None, stride, padding, dilation, False, none, groups), None, None
    if stride == [1] * axes and min(back) >= 0:
        return aten.convolution(g, _turned(w, groups), None, stride, back, dilation, False, none, groups), None, None
    odd = all(k % 2 and k == kernel[0] and p == k // 2 for k, p in zip(kernel, padding, strict=True))
    if odd and stride == [2, 2] and dilation == [1, 1] and groups == 1:
        return input_gradient(g, w, x.shape[2], x.shape[3]), None, None
    rest = [
        x.shape[2 + i] + 2 * padding[i] - ((g.shape[2 + i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1)
        for i in range(axes)
    ]
    return aten.convolution(g, w, None, stride, padding, dilation, True, rest, groups), None, None


def _turned(w: Tensor, groups: int) -> Tensor:
    """The flipped weight, which leads back: (out, in / groups, k, ...) -> (in, out / groups, k, ...)."""
    flipped = w.flip(list(range(2, w.ndim)))
    if groups == 1:
        return flipped.transpose(0, 1)
    return flipped.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _max_pool_backward(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    winners = rest[-1]
    flat = torch.zeros_like(x).flatten(2)
    return flat.scatter_add(2, winners.flatten(2), g.flatten(2)).view(x.shape)


def _nearest_backward(g: Tensor, out_size: Any, in_size: Any, *scales: Any) -> Tensor:
    height, width = in_size[2:]
    if not are_repeated(in_size[2:], out_size, scales):
        return _resize_backward(aten.upsample_nearest2d.default)(g, out_size, in_size, *scales)
    return g.unflatten(2, (height, -1)).unflatten(4, (width, -1)).sum((3, 5))


def are_repeated(before: Any, after: Any, scales: Any) -> bool:
    """True if interpolation to nearest neighbours repeats each pixel equally often. A scale of 3.1 does not, though it
    makes 24 pixels of 8."""
    even = not any(large % small for large, small in zip(after, before, strict=True))
    told = zip(before, after, scales, strict=False)
    return even and all(scale is None or scale * small == large for small, large, scale in told)


# Operations that are linear and work along each axis of the images separately. They are products with one constant
# matrix for each axis, and so is their backward pass: what the operation makes of the unit vectors.


def _along(g: Tensor, sizes: Any, operation: Callable[[Tensor, int], Tensor], *, ahead: bool = False) -> Tensor:
    """The gradient by the inputs of such an operation; `ahead`, the operation itself.

    Args:
        g: (..., out1, out2, ...), the gradient by its outputs; `ahead`, its inputs.
        sizes: (in1, in2, ...), the sizes of its inputs.
        operation: the same along one axis of images (n, 1, ...), which are 2 wide along all others and stay so.
    """
    for axis, size in enumerate(sizes):
        with _disable_current_modes():
            units = torch.eye(size)
            # Not 1 wide: there torch 2.15 mistakes how images lie in memory, and smooths along the wrong axis.
            images = units.view(size, 1, *_only([size] * len(sizes), axis, 1)).expand(
                size, 1, *_only([size] * len(sizes), axis, 2)
            )
            matrix = operation(images.contiguous(), axis)[(slice(None), 0, *_only([slice(None)] * len(sizes), axis, 0))]
            idle = torch.equal(matrix, units)
            matrix = matrix.t().contiguous() if ahead else matrix
        if not idle:
            at = axis - len(sizes)
            g = F.linear(g.transpose(at, -1), matrix).transpose(at, -1)
    return g


def _only(values: Any, axis: int, rest: Any) -> list[Any]:
    """Keep the value of one axis, and put `rest` for the others."""
    return [value if i == axis else rest for i, value in enumerate(values)]


def _average_pool_backward(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def backward(
        g: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool, with_padding: bool, divisor: Any
    ) -> Tensor:
        axes = x.ndim - 2
        kernel, padding, stride = (
            [*values] * axes if len(values) == 1 else [*values] for values in (kernel, padding, stride or kernel)
        )

        def along(images: Tensor, axis: int) -> Tensor:
            window = _only(kernel, axis, 1), _only(stride, axis, 1), _only(padding, axis, 0)
            return pool(images, *window, ceil, with_padding, divisor and 1)

        return _along(g / divisor if divisor else g, x.shape[2:], along)

    return backward


def _adaptive_average_pool_backward(g: Tensor, x: Tensor) -> Tensor:
    sizes = g.shape[2:]
    return _along(g, x.shape[2:], lambda images, axis: aten._adaptive_avg_pool2d(images, _only(sizes, axis, 2)))


def adaptive_average_pool(x: Tensor, sizes: Any) -> Tensor:
    """The pool as products with constant matrices, for whatever has no windows of several sizes."""

    def along(images: Tensor, axis: int) -> Tensor:
        return aten._adaptive_avg_pool2d(images, _only(sizes, axis, 2))

    return _along(x, x.shape[-2:], along, ahead=True)


def _replicate_backward(g: Tensor, x: Tensor, padding: Any) -> Tensor:
    left, right, top, bottom = padding
    both = ([0, 0, top, bottom], [left, right, 0, 0])
    return _along(g, x.shape[2:], lambda images, axis: F.pad(images, both[axis], mode="replicate"))


def _resize_backward(resize: Callable[..., Tensor], *, options: int = 0) -> Callable[..., Tensor]:
    """
    Args:
        options: number of the operation's arguments before its scales; the scales may be left out.
    """

    def backward(g: Tensor, out_size: Any, in_size: Any, *rest: Any) -> Tensor:
        given, scales = rest[:options], [*rest[options:], None, None][:2]
        return _along(
            g,
            in_size[2:],
            lambda images, axis: resize(images, _only(out_size, axis, 2), *given, *_only(scales, axis, None)),
        )

    return backward


def resized(resize: Callable[..., Tensor], x: Tensor, out_size: Any, *rest: Any) -> Tensor:
    """Interpolation as products with constant matrices, for whatever does not know the operation.

    Args:
        rest: the operation's options, and its two scales.
    """
    *options, tall, wide = rest

    def along(images: Tensor, axis: int) -> Tensor:
        return resize(images, _only(out_size, axis, 2), *options, *_only([tall, wide], axis, None))

    return _along(x, x.shape[2:], along, ahead=True)


# -- forward passes that no exporter knows ----------------------------------------------------------------------------


def _adaptive_max_pool(x: Tensor, sizes: Any) -> tuple[Tensor, Tensor]:
    """Maxima and their places, from windows of one size: a shorter window is filled up by repeating its last pixel."""
    (rows, columns), width = ((_windows(*both) for both in zip(x.shape[2:], sizes, strict=True)), x.shape[3])
    with _disable_current_modes():
        at = torch.tensor(rows).flatten(), torch.tensor(columns).flatten()
        places = torch.tensor([[[r * width + c for r in row for c in column] for column in columns] for row in rows])
    gathered = x.index_select(2, at[0]).index_select(3, at[1])
    gathered = gathered.unflatten(3, (len(columns), -1)).unflatten(2, (len(rows), -1))
    values, which = gathered.transpose(3, 4).flatten(4).max(4)
    return values, places.expand(*which.shape, -1).gather(4, which[..., None])[..., 0]


def _windows(size: int, count: int) -> list[list[int]]:
    bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    longest = max(end - start for start, end in bounds)
    return [[min(start + i, end - 1) for i in range(longest)] for start, end in bounds]


def _average_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, with_padding: bool = True,
    divisor: int | None = None,
) -> Any:  # fmt: skip
    """Average pooling with a divisor of its own, which torch 2.15 exports as if it were the size of the window."""
    if divisor is None or ceil:
        return NotImplemented
    size = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** 2
    return aten.avg_pool2d(x, kernel, stride, padding) * (size / divisor)


def _mean_slope(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any) -> Any:
    """nn.RReLU, whose slope is random in training mode only."""
    return NotImplemented if training else aten.leaky_relu(x, (lower + upper) / 2)


FORWARD: Any = {
    aten.rrelu.default: _mean_slope,
    aten.rrelu_with_noise.default: lambda x, _, *rest: _mean_slope(x, *rest),
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.avg_pool2d.default: _average_pool,
}

PLAIN: Any = {
    **{op: plain for op, plain in decomposition_table.items() if "_backward" in str(op)},  # all that torch has
    **get_decompositions(
        [
            aten.native_layer_norm, aten.native_group_norm, aten._native_batch_norm_legit,
            aten._native_batch_norm_legit_no_training, aten.logsumexp,
        ]
    ),
    **FORWARD,
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.adaptive_max_pool2d_backward.default: _max_pool_backward,
    aten.avg_pool2d_backward.default: _average_pool_backward(aten.avg_pool2d.default),
    aten.avg_pool3d_backward.default: _average_pool_backward(aten.avg_pool3d.default),
    aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool_backward,
    aten.replication_pad2d_backward.default: _replicate_backward,
    aten.upsample_nearest2d_backward.default: _nearest_backward,
    aten._upsample_nearest_exact2d_backward.default: _resize_backward(aten._upsample_nearest_exact2d.default),
    aten.upsample_bilinear2d_backward.default: _resize_backward(aten.upsample_bilinear2d.default, options=1),
    aten.upsample_bicubic2d_backward.default: _resize_backward(aten.upsample_bicubic2d.default, options=1),
    aten._upsample_bilinear2d_aa_backward.default: _resize_backward(aten._upsample_bilinear2d_aa.default, options=1),
    aten._upsample_bicubic2d_aa_backward.default: _resize_backward(aten._upsample_bicubic2d_aa.default, options=1),
}  # fmt: skip


# -- from what is traced to layers ------------------------------------------------------------------------------------


def _own_parameters(graph: Graph, names: list[str]) -> None:
    """Make parameters and buffers, which were traced as inputs, the graph's own."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, names, strict=False):  # the last input is the images
        with graph.inserting_before(node):
            own = graph.create_node("get_attr", name)
        own.meta = dict(node.meta)
        node.replace_all_uses_with(own)
        graph.erase_node(node)


def _as_layer(graph: Graph, node: Node) -> None:
    """Write convolutions and products with a weight as torch.export writes the layers that they come from."""
    with graph.inserting_before(node):
        if node.target is aten.convolution.default and not node.args[6] and len(node.args[3]) == 2:  # type: ignore[arg-type]
            x, w, bias, stride, padding, dilation, _, _, groups = node.args
            new = call(graph, aten.conv2d.default, x, w, bias, stride, padding, dilation, groups)
        elif node.target is aten.addmm.default and _is_turned_parameter(node.args[2]):
            bias, x, w = node.args
            new = call(graph, aten.linear.default, x, w.args[0], bias)  # type: ignore[union-attr]
        elif node.target is aten.mm.default and _is_turned_parameter(node.args[1]):
            new = call(graph, aten.linear.default, node.args[0], node.args[1].args[0])  # type: ignore[union-attr]
        elif node.target is aten.mm.default and (weight := _parameter(node.args[1])) is not None:
            # As a 1x1 convolution: Inductor (torch 2.15) mistakes the orientation of a transposed int8 linear weight.
            g, w = node.args[0], call(graph, aten.t.default, weight)
            for dim in (2, 3):
                g, w = call(graph, aten.unsqueeze.default, g, dim), call(graph, aten.unsqueeze.default, w, dim)
            new = call(graph, aten.flatten.using_ints, call(graph, aten.conv2d.default, g, w), 1)
        else:
            return
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def call(graph: Graph, target: Any, *args: Any) -> Node:
    """Add a node that calls `target`, with an example of its value for the exporters and quantizers to come."""
    node = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    with next((v.fake_mode for v in values if isinstance(v, FakeTensor)), nullcontext()):
        node.meta["val"] = target(*values)
    return node


def _is_turned_parameter(node: Any) -> bool:
    return node.target is aten.t.default and node.args[0].op == "get_attr"


def _parameter(node: Any) -> Node | None:
    """The parameter behind no transposition or behind two; None if there is none."""
    while node.target is aten.t.default and _is_turned_parameter(node.args[0]):
        node = node.args[0].args[0]
    return node if node.op == "get_attr" else None
