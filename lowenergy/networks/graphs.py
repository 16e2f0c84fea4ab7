"""Turn a network into a graph of plain operations that write nothing in place, and check what a graph computes."""

import io
import keyword
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowenergy.base.errors import UserError
from lowenergy.networks.copies import duplicate
from lowenergy.networks.distance import distance
from lowenergy.networks.spec import spec_of

aten = torch.ops.aten


def exported(network: nn.Module, input_shape: Sequence[int] | None = None) -> Any:
    """Export the network with torch.export, for any batch size.

    Args:
        input_shape: (c, h, w) of its images; None for what its spec says.
    Raises:
        UserError: it cannot be exported, with torch's reason.
    """
    check_names(network)
    images = torch.zeros(2, *(input_shape or spec_of(network).input_shape))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        # Autograd, which is not needed here, would object to some in-place writes.
        for parameter in trained:
            parameter.requires_grad_(False)
        return export(network, (images,))
    except Exception as error:  # torch raises nearly anything here
        raise UserError(f"{_name(network)} cannot be exported: {reason_of(error)}") from None
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def check_names(network: nn.Module) -> None:
    """Check that torch.fx can write code that names the network's parts.

    Raises:
        UserError: a part has a name that it cannot.
    """
    for name, _ in (*network.named_modules(), *network.named_parameters(), *network.named_buffers()):
        if odd := [part for part in name.split(".") if keyword.iskeyword(part) or {*part} & set('"\\\n\r')]:
            raise UserError(f"{_name(network)}: torch cannot write a graph with a part named {odd[0]!r}; rename it")


def export(module: nn.Module, batches: tuple[Tensor, ...]) -> Any:
    """Export with torch.export a module whose inputs and outputs are all batches, for any batch size."""
    shapes = ({0: torch.export.Dim("batch")},) * len(batches)
    with quiet(), no_fast_path():
        try:
            program = torch.export.export(module, batches, dynamic_shapes=shapes, strict=False)
        except Exception:  # torch raises nearly anything here
            program = torch.export.export(module, batches, dynamic_shapes=shapes, strict=True)  # len(x) may be any
    if any(isinstance(value, FakeTensor) for value in program.constants.values()):  # with strict, torch keeps it
        raise UserError("torch cannot trace what its code reads of a tensor's .data; take .detach()")
    return program


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Within the context, run torch's attention as the operations that it consists of, even where nothing learns.

    Otherwise it would be a single operation there, which has no derivative.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def traced(network: nn.Module, input_shape: Sequence[int] | None = None) -> Any:
    """Export the network without what quantizers and autograd get wrong: in-place writes, padding by name, and norms.

    An observer put before the operation that writes a tensor would see, and pass on, what was there before. Norms
    become the scale and shift that they are: on seeing a norm, torchao traces a hundred patterns for half a minute, and
    folds it into a convolution without asking who else calls that convolution.

    Raises:
        UserError: it cannot be exported, with torch's reason.
    """
    program = exported(network, input_shape)
    _say_plainly(program.graph)
    again = (*PLAIN, aten.batch_norm.default)
    if any(writes(node) or _nests(node) or node.target in again for node in program.graph.nodes):
        _mark_ends_of_gradients(program.graph)
        try:
            with quiet():
                program = program.run_decompositions(PLAIN)
        except Exception as error:
            raise UserError(f"{_name(network)} cannot be exported: {reason_of(error)}") from None
    for node in program.graph.nodes:
        if node.target is aten.view.default:  # a view would hold for the current memory layout only
            node.target = aten.reshape.default
    return program


def _nests(node: Node) -> bool:
    """Whether it begins or ends what torch.vmap does. An end that some pass takes for unused would leave it on."""
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _say_plainly(graph: Graph) -> None:
    """Turn norms, padding by name, and writes into tensors that nobody else sees into plain operations, in place.

    torch's own decompositions, for what is left, trace the whole network again, in three times the time.
    """
    for node in list(graph.nodes):
        function = SAID_PLAINLY.get(node.target) or _without_writing(node)
        if function is None or (node.target is aten.batch_norm.default and node.args[5]):  # by the batch's statistics
            continue
        if node.target is aten.adaptive_avg_pool2d.default and [*node.args[1]] != [1, 1]:
            continue
        with graph.inserting_before(node):
            new = _inlined(graph, node, function)
        for name in ("nn_module_stack", "stack_trace"):
            if name in node.meta:
                new.meta[name] = node.meta[name]
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _without_writing(node: Node) -> Any:
    """Return the operation that returns what this one writes, if the written tensor is fresh and used nowhere else."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or not writes(node):
        return None
    written: Any = node.args[0] if node.args else None
    is_idle = node.target is aten.dropout_.default and not node.args[2]
    if not is_idle and (not isinstance(written, Node) or len(written.users) > 1 or not _is_fresh(written)):
        return None
    name, overload = node.target._schema.name.split("::")[1], node.target._overloadname
    packet = getattr(aten, name.removesuffix("_"), None)
    if not name.endswith("_") or packet is None or overload not in packet.overloads():
        return None
    function = getattr(packet, overload)
    before, after = node.target._schema.arguments, function._schema.arguments
    return function if [str(a.type) for a in before] == [str(a.type) for a in after] else None


def _is_fresh(node: Node) -> bool:
    """True if the node's value is a new tensor, neither another one nor a view of it."""
    if node.target in FRESH:
        return True
    if not isinstance(node.target, OpOverload) or node.target.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd  # such kernels may return what they are given
    ):
        return False
    returns = node.target._schema.returns
    return len(returns) == 1 and returns[0].alias_info is None


def _inlined(graph: Graph, node: Node, function: Callable[..., Any]) -> Node:
    """Insert, before a node, the operations of a function of the node's arguments; return the last one."""
    if isinstance(function, OpOverload):
        value: Any = node.meta["val"]
        new = graph.call_function(function, node.args, dict(node.kwargs))
        new.meta["val"] = value
        return new
    inputs = [arg for arg in node.args if isinstance(arg, Node)]
    values = [arg.meta["val"] for arg in inputs]

    def of_given(*tensors: Any) -> Any:
        rest = iter(tensors)
        return function(*(next(rest) if isinstance(arg, Node) else arg for arg in node.args), **node.kwargs)

    with next((value.fake_mode for value in values if isinstance(value, FakeTensor)), nullcontext()):
        small = make_fx(of_given, pre_dispatch=True)(*values)
    own = dict(zip((n for n in small.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    out = graph.graph_copy(small.graph, own)
    assert isinstance(out, Node)
    return out


def _mark_ends_of_gradients(graph: Graph) -> None:
    """Detach, in place, what leaves a `with torch.no_grad()`: that part of the network is about to lose its borders."""
    for node in [n for n in graph.nodes if n.target is torch.ops.higher_order.wrap_with_set_grad_enabled]:
        for part in [] if node.args[0] else list(node.users):
            with graph.inserting_after(part):
                end = graph.call_function(aten.detach.default, (part,))
            end.meta = dict(part.meta)
            part.replace_all_uses_with(
                end, delete_user_cb=lambda user, end=end: user is not end and user.op != "output"
            )


def writes(node: Node) -> bool:
    """True if the node changes a tensor in place, or may do so as a graph within the graph."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    return isinstance(node.target, HigherOrderOperator)


def writes_in_place(network: nn.Module, images: Tensor) -> bool:
    """True if the network changes a tensor in place on its way from these images to its outputs."""
    with _Written() as seen, torch.no_grad():
        network(images)
    return seen.any


class _Written(TorchDispatchMode):
    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any |= func._schema.is_mutable
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, keep torch from logging pages about what it cannot trace; its errors say enough."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def reason_of(error: Exception) -> str:
    """Return the first line of what torch says, or a plainer reason where it is known."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if said.startswith("Constraints violated"):
        return "its code takes the number of images for a constant, as by len(x), int(x.shape[0]) or x.shape[0] == 2"
    return said[:300]


def _name(network: nn.Module) -> str:
    spec: Any = getattr(network, "spec", None)
    return type(network).__name__ if spec is None else str(spec.name)


def _scale_and_shift(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, _: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -(mean * scale)
    if bias is not None:
        shift = shift + bias
    along = [-1, *[1] * (x.ndim - 2)]
    return x * scale.view(along) + shift.view(along), x.new_empty(0), x.new_empty(0)


def _padded_in_numbers(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: str = "valid", dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """A convolution with padding="same" or "valid", in numbers; if the zeros are odd in number, the last is behind."""
    stride, dilation = ([n, n] if isinstance(n, int) else [*n] * (2 // len(n)) for n in (stride, dilation))
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    before = [zeros // 2 for zeros in total]
    if any(zeros % 2 for zeros in total):
        x = F.pad(x, [0, total[1] % 2, 0, total[0] % 2])
    return aten.conv2d.default(x, weight, bias, stride, before, dilation, groups)


def _copied(old: Tensor, new: Tensor, _: bool = False) -> Tensor:
    """Return what a copy writes; the copy operation itself has no derivative."""
    return new.to(old.dtype).expand(old.shape)


SAID_PLAINLY: dict[Any, Callable[..., Any]] = {
    aten.batch_norm.default: lambda *given: _scale_and_shift(*given[:5], *given[6:8])[0],
    aten.conv2d.padding: _padded_in_numbers,
    # If images lie channels last, torch also writes the strides of this mean, and ONNX has no such operation.
    aten.adaptive_avg_pool2d.default: lambda x, _: aten.mean.dim(x, [-1, -2], True),
}
FRESH = (  # those operations which torch makes of others and whose value is always a new tensor
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.batch_norm.default),
    *(aten.layer_norm.default, aten.group_norm.default, aten.relu6.default, aten.selu.default),
)
PLAIN: dict[Any, Callable[..., Any]] = {
    aten.copy.default: _copied,
    aten._native_batch_norm_legit_no_training.default: _scale_and_shift,
    aten.conv2d.padding: _padded_in_numbers,
}


# -- is a graph the network? -----------------------------------------------------------------------------------------

SAME = 1e-3  # fraction of their norm by which outputs and gradients may differ: orders of summation do
# Relative to an image's values: ten times the rounding error after a few layers. A small network has few units that are
# about to switch: one order of summation may meet one, when a few tries of the same size do not.
ERROR = 1e-5
ERRORS, MARGIN = 4, 3  # how many tries, and how many times the worst of them is no surprise
MOST = 0.05  # the upper limit, whatever the tries say


def sensitivity(function: Callable[[Tensor], Any], images: Tensor, most: float = MOST) -> list[float]:
    """How far rounding errors may move each tensor that a function makes of images, as a fraction of its norm.

    This is tiny for smooth functions. But a gradient jumps where a unit switches or another maximum wins, and among a
    million units some are always about to do so.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = [part.detach() for part in tree_leaves(function(images))]
    off = [0.0] * len(wanted)
    for _ in range(ERRORS):
        moved = tree_leaves(
            function(images + ERROR * images.abs().mean() * torch.randn(images.shape, generator=generator))
        )
        off = [max(by, MARGIN * distance(*pair)) for by, *pair in zip(off, moved, wanted, strict=True)]
    return [min(by, most) for by in off]


def check_same(
    graph: GraphModule,
    network: nn.Module,
    images: Tensor,
    what: str,
    answers: Callable[[nn.Module, Tensor], Any] = lambda network, images: network(images),
) -> None:
    """Check that a graph puts out what it should, for all of these images and for the first alone.

    Some networks magnify errors of rounding until nothing is left to compare. In double precision such an error is a
    billionth of what it was, and a wrong operation is as wrong as before: that decides.

    Args:
        what: the graph, for messages.
        answers: network, images -> what the graph should put out, one tensor or several.
    Raises:
        UserError: it does not, with the operation at which the two first differ and the layer that it belongs to.
    """
    reference = partial(answers, network)
    for batch in (images, images[:1]):
        with torch.no_grad():
            wanted = [part.detach() for part in tree_leaves(reference(batch))]
            try:
                outputs = tree_leaves(graph(batch))
            except Exception as error:
                raise UserError(f"{what} does not run on {len(batch)} images: {reason_of(error)}") from None
            off = [distance(*pair) for pair in zip(outputs, wanted, strict=True)]
            if all(distance <= SAME for distance in off):  # false for values that are not finite
                continue
            bounds = sensitivity(reference, batch)
            within = all(distance <= max(SAME, bound) for distance, bound in zip(off, bounds, strict=True))
            if not within and not _same_in_double(graph, network, batch, answers):
                raise UserError(
                    f"{what} differs from the network by {max(off):.2g} of the outputs' norm, first at "
                    f"{_first_difference(graph, reference, batch)}; write that part of the network in another way"
                )


def _same_in_double(
    graph: GraphModule, network: nn.Module, images: Tensor, answers: Callable[[nn.Module, Tensor], Any]
) -> bool:
    with torch.no_grad():
        try:
            exact, reference, images = duplicate(graph).double(), duplicate(network).double(), images.double()
            pairs = zip(tree_leaves(exact(images)), tree_leaves(answers(reference, images)), strict=True)
            return all(distance(*pair) <= SAME for pair in pairs)
        except Exception:  # it fixes a precision of its own
            return False


def _first_difference(graph: GraphModule, reference: Callable[[Tensor], Any], images: Tensor) -> str:
    """Name the first operation of the graph whose value the network never computes, and its place.

    Only operations that reach the graph's outputs through other such operations count, not what a decomposition
    computes on its way to a known value.
    """
    seen = _Seen()
    with seen:
        reference(images)
    interpreter = _Found(graph)
    interpreter.run(images)
    of_images: set[Node] = set()  # not what comes from weights alone, which a network may have in another form
    for node in graph.graph.nodes:
        if node.op == "placeholder" or of_images.intersection(node.all_input_nodes):
            of_images.add(node)
    strange: set[Node] = set()
    waiting = [*graph.graph.output_node().all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in strange or node not in of_images or node.op == "placeholder" or node in interpreter.numbers:
            continue
        if (mark := interpreter.marks[node]) is None or not seen.has(mark):  # None: several tensors at once
            strange.add(node)
            waiting += node.all_input_nodes
    operations = (node for node in graph.graph.nodes if node in strange and node.op == "call_function")
    first = next(operations, graph.graph.output_node())
    return f"{first.target} {_place(first)}"


def _place(node: Node) -> str:
    """Say where in the network an operation is: its module, or the layer before it."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    if modules:
        return f"in {modules[-1]}"
    before, known = [node], {node}
    for each in before:  # the nearest first
        for other in each.all_input_nodes:
            if other.op == "get_attr" and str(other.target).endswith(".weight"):
                return f"at {str(other.target).removesuffix('.weight')}"
            if other not in known:
                known.add(other)
                before.append(other)
    return "before all layers"


def _mark(value: Any) -> tuple[int, float, float] | None:
    """What a tensor is recognised by: its size, its norm, and a sum of its values with signs that mix them up."""
    if not isinstance(value, Tensor):
        return None
    flat = torch.view_as_real(value).flatten() if value.is_complex() else value.detach().flatten()
    signs = torch.cos(torch.arange(len(flat), dtype=torch.double) ** 1.5)
    return len(flat), float(flat.double().norm()), float(flat.double() @ signs)


class _Seen(TorchDispatchMode):
    """Keep the marks of all tensors computed within this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[int, list[tuple[float, float]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if mark := _mark(value):
                self.marks.setdefault(mark[0], []).append(mark[1:])
        return out

    def has(self, mark: tuple[int, float, float]) -> bool:
        size, norm, mixed = mark
        bound = SAME * norm + 1e-12
        return any(abs(norm - n) <= bound and abs(mixed - m) <= bound for n, m in self.marks.get(size, ()))


class _Found(Interpreter):
    """Run a graph, and keep the mark of each node's value."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.marks: dict[Node, tuple[int, float, float] | None] = {}
        self.numbers: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.marks[n] = _mark(value)
        if isinstance(value, int | float):  # sizes
            self.numbers.add(n)
        return value
