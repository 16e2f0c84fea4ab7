"""An energy's logits and input gradient as one graph of plain operations, for any network: traced, not written.

Sampling needs ∇E(x), and autograd computes it where no exporter, quantizer or other runtime can follow.
`gradient_graph` traces what autograd does, so that the gradient becomes operations like those of the forward pass.
Backward passes that are one opaque operation to torch are decomposed; of a convolution it is a convolution with the
same weights, flipped, so that whatever makes convolutions small and fast works for both directions.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.graph import CodeGen
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowenergy.base import UserError
from lowenergy.energies.energy import HEADS
from lowenergy.networks.inputconv import input_gradient

aten = torch.ops.aten


def gradient_graph(network: nn.Module, head: str, input_shape: tuple[int, int, int]) -> GraphModule:
    """images (batch, c, h, w) -> logits (batch, outputs), input gradients of the energy (batch, c, h, w).

    The graph holds the network's own parameters and buffers under their own names; it knows convolutions as
    aten.conv2d and fully connected layers as aten.linear, as torch.export does. Its batch size is free.

    Args:
        network: images -> logits, in evaluation mode.
        head: of the energy, see energy.HEADS.
    Raises:
        UserError: an operation that cannot be traced, with torch's reason.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {name: value.detach() for name, value in tensors.items()}

    def both(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = functional_call(network, state, (images,))
            (gradient,) = torch.autograd.grad(HEADS[head](logits).sum(), images)
        return logits, gradient

    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    batch: Any = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3], constraint_sizes=[None] * 4)
    images = fake.from_tensor(torch.zeros(2, *input_shape), symbolic_context=batch)
    weights = {name: fake.from_tensor(value, static_shapes=True) for name, value in state.items()}
    try:
        # Fused attention has no plain backward pass; the other form has.
        with fake, sdpa_kernel(SDPBackend.MATH), enable_python_dispatcher():
            traced = make_fx(both, decomposition_table=PLAIN)(weights, images)
    except Exception as error:  # torch raises nearly anything here
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the gradient of this network cannot be traced: {reason[0]}") from None
    graph = traced.graph
    graph.set_codegen(CodeGen())  # parameters are no inputs any more
    graph.owning_module = None  # until it has the parameters that it will name
    _own_parameters(graph, list(state))
    for node in list(graph.nodes):
        if node.target is aten.view.default:  # which would hold for the memory layout of this moment only
            node.target = aten.reshape.default
        _as_layer(graph, node)
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    constants = {name: getattr(traced, name) for name in used - set(tensors)}
    module = GraphModule({**constants, **{name: tensors[name] for name in tensors if name in used}}, graph)
    return module.eval()


# -- backward passes as plain operations ------------------------------------------------------------------------------


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any,
    groups: int, mask: Any,
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """Only the input's gradient is ever asked for."""
    assert not (mask[1] or mask[2]), "weights take part as constants"
    height, width = x.shape[2:]
    kernel = w.shape[2:]
    back = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    if transposed:
        return aten.convolution(g, w, None, stride, padding, dilation, False, [0, 0], groups), None, None
    if list(stride) == [1, 1] and min(back) >= 0:
        return aten.convolution(g, _turned(w, groups), None, [1, 1], back, dilation, False, [0, 0], groups), None, None
    odd = all(k % 2 and k == kernel[0] and p == k // 2 for k, p in zip(kernel, padding, strict=True))
    if odd and list(stride) == [2, 2] and list(dilation) == [1, 1] and groups == 1:
        return input_gradient(g, w, height, width), None, None
    rest = [
        x.shape[2 + i] - ((g.shape[2 + i] - 1) * stride[i] + kernel[i] * dilation[i] - dilation[i] + 1) for i in (0, 1)
    ]
    rest = [r + 2 * p for r, p in zip(rest, padding, strict=True)]
    return aten.convolution(g, w, None, stride, padding, dilation, True, rest, groups), None, None


def _turned(w: Tensor, groups: int) -> Tensor:
    """(out, in / groups, k, k) -> (in, out / groups, k, k), flipped: the convolution that leads back."""
    if groups == 1:
        return w.flip(2, 3).transpose(0, 1)
    return w.flip(2, 3).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _max_pool_backward(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    winners = rest[-1]
    flat = torch.zeros_like(x).flatten(2)
    return flat.scatter_add(2, winners.flatten(2), g.flatten(2)).view(x.shape)


def _repeat_backward(g: Tensor, _: Any, input_shape: Any, *scales: Any) -> Tensor:
    """Of nearest neighbours, each repeated equally often."""
    height, width = input_shape[2:]
    if g.shape[2] % height or g.shape[3] % width:
        raise UserError(f"{height}x{width} interpolated to {g.shape[2]}x{g.shape[3]}: only multiples can be")
    return g.unflatten(2, (height, -1)).unflatten(4, (width, -1)).sum((3, 5))


PLAIN: Any = {
    **get_decompositions(
        [
            aten.silu_backward, aten.gelu_backward, aten.elu_backward, aten.leaky_relu_backward,
            aten.hardtanh_backward, aten.hardswish_backward, aten.hardsigmoid_backward, aten.threshold_backward,
            aten.sigmoid_backward, aten.tanh_backward, aten.softplus_backward, aten._softmax_backward_data,
            aten._log_softmax_backward_data, aten.native_layer_norm, aten.native_layer_norm_backward,
            aten.native_group_norm, aten.native_group_norm_backward, aten._native_batch_norm_legit,
            aten._native_batch_norm_legit_no_training,
            aten.native_batch_norm_backward, aten.slice_backward, aten.select_backward,
            aten._adaptive_avg_pool2d_backward, aten.logsumexp,
        ]
    ),
    aten.convolution_backward.default: _convolution_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.upsample_nearest2d_backward.default: _repeat_backward,
}  # fmt: skip


# -- from what is traced to layers ------------------------------------------------------------------------------------


def _own_parameters(graph: Graph, names: list[str]) -> None:
    """Parameters and buffers, which were traced as inputs, become the graph's own."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, names, strict=False):  # the last input is the images
        with graph.inserting_before(node):
            own = graph.create_node("get_attr", name)
        own.meta = dict(node.meta)
        node.replace_all_uses_with(own)
        graph.erase_node(node)


def _as_layer(graph: Graph, node: Node) -> None:
    """Say convolutions and products with a weight as torch.export says the layers that they come from."""
    with graph.inserting_before(node):
        if node.target is aten.convolution.default and not node.args[6]:
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
    """A node that calls `target`, with the value that it would have for the exporters and quantizers to come."""
    node = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    with next((v.fake_mode for v in values if isinstance(v, FakeTensor)), nullcontext()):
        node.meta["val"] = target(*values)
    return node


def _is_turned_parameter(node: Any) -> bool:
    return node.target is aten.t.default and node.args[0].op == "get_attr"


def _parameter(node: Any) -> Node | None:
    """The parameter behind an even number of transpositions."""
    while node.target is aten.t.default and _is_turned_parameter(node.args[0]):
        node = node.args[0].args[0]
    return node if node.op == "get_attr" else None
