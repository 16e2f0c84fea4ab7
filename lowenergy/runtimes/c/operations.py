"""Turn a trace into operations that have a C form, on buffers that need a place in memory.

Images and the outputs of convolutions are stored channels last: (1, c, h, w) as rows of pixels of c numbers. Whatever
only moves elements (transposing, slicing, repeating) is not an operation but a view: each element's index into a
buffer, computed by moving a tensor of indices as torch moves the values. An elementwise operation whose result only one
other needs becomes part of that one.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lowenergy.base.errors import UserError
from lowenergy.networks.importing import first_line
from lowenergy.runtimes.c.expressions import KINDS, POINTWISE, literal, rule_of
from lowenergy.runtimes.c.trace import Trace, said

aten = torch.ops.aten


@dataclass(eq=False)
class Buffer:
    """Numbers that are written before they are read; other buffers may use their place afterwards."""

    size: int
    kind: str = "float"  # or uint8_t, in int8 models
    scale: float = 1.0  # for bytes: value = scale * (byte - zero)
    zero: int = 0
    most: int = 255  # the largest byte, less than 255 if there are few levels

    @property
    def bytes(self) -> int:
        return self.size * (4 if self.kind == "float" else 1)


@dataclass(frozen=True)
class View:
    """Elements of a buffer, of a constant (given by name) or of the image, which belongs to the caller."""

    of: Buffer | str
    index: Tensor  # int64, in the shape of the view

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.index.shape)


LARGEST = torch.finfo(torch.float32).max
IMAGE = Buffer(0)  # the caller's; never placed


def strides_of(index: Tensor) -> tuple[int, list[int]] | None:
    """Offset and strides of an index that is a regular grid, else None; dimensions of size 1 have stride 0."""
    if not index.numel():
        return None
    offset = int(index.flatten()[0])
    strides = [int(index.select(d, 1).flatten()[0]) - offset if size > 1 else 0 for d, size in enumerate(index.shape)]
    grid = torch.tensor(offset)
    for d, (size, stride) in enumerate(zip(index.shape, strides, strict=True)):
        grid = grid + (torch.arange(size) * stride).view(-1, *[1] * (index.ndim - d - 1))
    return (offset, strides) if torch.equal(grid.expand(index.shape), index) else None


def laid_out(shape: Sequence[int]) -> Tensor:
    """The index of a new buffer: channels last if it looks like an image, else row-major."""
    size = math.prod(shape)
    if len(shape) == 4 and shape[0] == 1:
        return torch.arange(size).view(1, shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
    return torch.arange(size).view(*shape)


@dataclass(frozen=True, eq=False)
class Operation:
    """What one call in the C code does: it reads `views` and writes `out`."""

    views: tuple[View, ...]
    out: View
    layer: str

    @property
    def work(self) -> int:
        """Multiply-accumulates, or operations that take about as long."""
        return self.out.index.numel()

    def reads(self) -> list[Buffer]:
        return [view.of for view in self.views if isinstance(view.of, Buffer) and view.of is not IMAGE]

    def writes(self) -> Buffer:
        assert isinstance(self.out.of, Buffer)
        return self.out.of

    def renamed(self, new: Mapping[Buffer, Buffer]) -> "Operation":
        """Return the same operation on other buffers."""

        def of(view: View) -> View:
            return View(new.get(view.of, view.of), view.index) if isinstance(view.of, Buffer) else view

        return replace(self, views=tuple(map(of, self.views)), out=of(self.out))


@dataclass(frozen=True, eq=False)
class Conv(Operation):
    """A convolution or its transpose (`pulled`, as in the backward pass); a fully connected layer has a 1x1 kernel.

    `channels` are the input and output channels of one group, in this direction. `size_in` is (height, width),
    `size_out` is (rows, columns).
    """

    weight: str
    bias: str | None
    pulled: bool
    groups: int
    channels: tuple[int, int]
    size_in: tuple[int, int]
    size_out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    step_in: int  # numbers from one pixel to the next
    start_in: int
    place: str = ""  # the layer's name in the ranges of an int8 model
    integers: bool = False  # bytes as input, int8 weights, 32-bit sums
    line: bool = False  # one row at a time, so that the output may overwrite input rows that are no longer needed

    @property
    def work(self) -> int:
        taps = math.prod(self.kernel) * self.channels[0] * self.channels[1] * self.groups
        return taps * math.prod(self.size_in if self.pulled else self.size_out)

    @property
    def tile(self) -> int:
        """Number of weights that are decoded at a time for one output channel."""
        return math.prod(self.kernel) * self.channels[0]

    @property
    def slack(self) -> int:
        """Bytes that must lie between the starts of output and input where they share memory, computed row by row."""
        reach = (self.kernel[0] - 1) * self.dilation[0] - self.padding[0]
        return (max(self.padding[0], reach) + 1) * (self.writes().bytes // self.size_out[0])

    @property
    def can_line(self) -> bool:
        same = self.size_in == self.size_out and self.stride == (1, 1) and self.channels[0] == self.channels[1]
        return same and self.groups == 1 and self.size_in[0] > 2 and self.step_in == self.channels[0]


@dataclass(frozen=True, eq=False)
class Map(Operation):
    """out[i] = f(views[0][i], views[1][i], …): statements that compute t1, t2, … from x0, x1, …, and a result."""

    statements: tuple[str, ...]
    result: str

    @property
    def work(self) -> int:
        return self.out.index.numel()


@dataclass(frozen=True, eq=False)
class Reduce(Operation):
    """out[i] = the sum or the largest of views[0] over some dimensions, in order, divided by a factor."""

    how: str  # sum, largest
    dims: tuple[int, ...]
    factor: float = 1.0

    @property
    def work(self) -> int:
        return self.views[0].index.numel()


@dataclass(frozen=True, eq=False)
class MatMul(Operation):
    """out[b, m, n] = the sum over k of views[0][b, m, k] * views[1][b, k, n]."""

    @property
    def work(self) -> int:
        return self.views[0].index.numel() * self.out.shape[2]


@dataclass(frozen=True, eq=False)
class Pool(Operation):
    """The largest or the mean of an image's windows, or its backward pass; all views are channels last and dense."""

    how: str  # largest, mean, largest_back (views: gradient, input), mean_back
    size_in: tuple[int, int, int]  # channels, height, width of the larger image
    size_out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    counted: bool = True  # whether a mean counts the padding beyond the edges

    @property
    def work(self) -> int:
        return self.size_in[0] * math.prod(self.size_out) * math.prod(self.kernel)


@dataclass
class Program:
    """Operations in order; logits and energy need only the first `ahead` of them."""

    operations: list[Operation]
    ahead: int
    logits: View
    energy: View | None
    gradient: View | None
    constants: dict[str, Tensor]  # by name; the network's own tensors keep their names
    input_shape: tuple[int, int, int]
    classes: bool = True  # whether the logits mean anything by themselves


@dataclass(frozen=True)
class _Known:
    """A value that is known when the code is written."""

    value: Any
    name: str | None = None  # the network's parameter that it is
    turned: str | None = None  # the parameter whose transpose it is


def lower(trace: Trace, input_shape: tuple[int, int, int]) -> Program:
    """Turn a trace into a program.

    Raises:
        UserError: an operation has no C form; the error names it and its layer.
    """
    return _Lowering(trace, input_shape).program()


MOVES: set[Any] = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.slice.Tensor, aten.select.int, aten.flip.default, aten.expand.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.alias.default, aten.detach.default,
    aten.clone.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.repeat.default,
    aten.lift_fresh_copy.default, aten.contiguous.default, aten.flatten.using_ints, aten.roll.default,
}  # fmt: skip


FILLED = (
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.new_zeros.default,
    aten.new_full.default,
)  # fmt: skip


def _args(node: Node) -> list[Any]:
    return list(node.args)


class _Lowering:
    def __init__(self, trace: Trace, input_shape: tuple[int, int, int]) -> None:
        self.trace, self.input_shape = trace, input_shape
        self.values: dict[Node, Any] = {}
        self.operations: list[Operation] = []
        self.constants: dict[str, Tensor] = {}
        self.made: dict[tuple[Node, bool], str] = {}  # constants that are not parameters, as they are or turned
        self.layer = ""
        self.calls: dict[str, int] = {}
        self.roots: dict[Node, Node] = {}

    def program(self) -> Program:
        nodes = list(self.trace.graph.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node, (name, value) in zip(inputs, self.trace.weights.items(), strict=False):
            self.values[node] = _Known(value, name)
        self.values[inputs[-1]] = View(IMAGE, torch.arange(math.prod(self.input_shape)).view(1, *self.input_shape))
        self._fold(nodes)
        self._find_roots(nodes)
        (outputs,) = next(node for node in nodes if node.op == "output").args
        for node in nodes:
            if node.op == "call_function" and node not in self.values:
                with self._refusing(node):
                    self._see_that_constants_are_numbers(node)
                    self._lower(node)
            if node in outputs[:2]:
                ahead = len(self.operations)  # later copies of these views are for other operations
        logits, *rest = (self._settled(node) for node in outputs)
        ahead = max(ahead, self._last_writer([logits, *rest[:1]]))
        energy, gradient = [*rest, None, None][:2]
        for operation in self.operations:
            if any(view.index.numel() and strides_of(view.index) is None for view in (operation.out, *operation.views)):
                raise UserError(f"no C form of how elements are moved after layer {operation.layer}; export it as ONNX")
        return Program(self.operations, ahead, logits, energy, gradient, self.constants, self.input_shape)

    @contextmanager
    def _refusing(self, node: Node) -> Iterator[None]:
        """Turn errors raised within into a UserError that says which operation cannot be used this way, and why."""
        try:
            yield
        except UserError:
            raise
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise self._refused(node, f"as it is used here: {first_line(error)}") from None

    def _last_writer(self, views: Sequence[View]) -> int:
        wanted = {view.of for view in views}
        return max((i + 1 for i, op in enumerate(self.operations) if op.writes() in wanted), default=0)

    def _settled(self, node: Node) -> View:
        return self._view(node)

    # -- what is known, and what belongs together ---------------------------------------------------------------------

    def _fold(self, nodes: Sequence[Node]) -> None:
        """Compute everything that does not depend on the image."""
        for node in nodes:
            if node.op == "get_attr":
                self.values[node] = _Known(getattr(self.trace.graph, str(node.target)))
            if node.op != "call_function":
                continue
            if node.target in FILLED or "empty" in said(node.target):  # uninitialised memory is not a constant
                with self._refusing(node):
                    self.values[node] = _Known(self._filled(node))
                continue
            if all(isinstance(self.values.get(given), _Known) for given in node.all_input_nodes):
                if node.target in LAYERS:  # folding would store the weight a second time, as a larger array
                    continue
                known = [self.values[given] for given in node.all_input_nodes]
                args: Any = torch.fx.map_arg(node.args, lambda given: self.values[given].value)
                kwargs: Any = torch.fx.map_arg(node.kwargs, lambda given: self.values[given].value)
                target: Any = node.target
                value = target(*args, **kwargs)
                if target in (aten.t.default, aten.transpose.int, aten.permute.default) and value.ndim == 2:
                    first = known[0]
                    same = value.shape == first.value.shape and torch.equal(value, first.value)
                    names = (first.name, first.turned) if same else (first.turned, first.name)
                    self.values[node] = _Known(value, *names)
                    continue
                same = target in (aten.alias.default, aten.detach.default)
                self.values[node] = _Known(value, known[0].name if same else None)

    def _filled(self, node: Node) -> Tensor:
        name, shape, args = str(node.target), tuple(node.meta["val"].shape), _args(node)
        if "full" in name:
            return torch.full(shape, args[-1], dtype=node.meta["val"].dtype)
        return torch.full(shape, 1.0 if "ones" in name else 0.0, dtype=node.meta["val"].dtype)

    def _find_roots(self, nodes: Sequence[Node]) -> None:
        """Find the operation that each elementwise operation becomes part of: the only one that needs it in the end."""
        for node in reversed(nodes):
            if node in self.values or node.target not in POINTWISE:
                continue
            users = list(node.users)
            roots = {self.roots.get(user) for user in users}
            alike = all(user.target in POINTWISE and self._shape(user) == self._shape(node) for user in users)
            root = roots.pop() if len(roots) == 1 and alike else None
            self.roots[node] = node if root is None else root

    @staticmethod
    def _shape(node: Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def _see_that_constants_are_numbers(self, node: Node) -> None:
        for given in node.all_input_nodes:
            value = getattr(self.values.get(given), "value", None)
            if isinstance(value, Tensor) and (value.isnan().any() or (node.target in LAYERS and value.isinf().any())):
                raise self._refused(node, "with a constant that is no number")

    def _see_that_values_stay(self, node: Node, source: Any) -> None:
        """Raise if the dtype of the result cannot hold the values that it is computed from."""
        given, into = source.meta["val"].dtype, node.meta["val"].dtype
        cut = given.is_floating_point and not into.is_floating_point
        if given != into and (cut or into is torch.bool or into not in KINDS):
            raise self._refused(node, f"from {given} to {into}")

    # -- one node -----------------------------------------------------------------------------------------------------

    def _lower(self, node: Node) -> None:
        target = node.target
        if target is operator.getitem:
            owner, number = _args(node)
            self.values[node] = self.values[owner][number]
        elif target in POINTWISE:
            if self.roots[node] is node:
                self.values[node] = self._map(node)
        elif target is aten.copy.default:
            self._see_that_values_stay(node, _args(node)[1])
            source = self._view(_args(node)[1])
            self.values[node] = View(source.of, source.index.expand(self._shape(node)))
        elif target is aten.as_strided.default:
            self.values[node] = self._strided(node)
        elif target in MOVES:
            self.values[node] = self._moved(node)
        elif lowering := LOWER.get(target):
            self.values[node] = lowering(self, node)
        else:
            raise UserError(f"no C form of {said(target)} ({self._where(node)}); export it as ONNX")

    def _where(self, node: Node) -> str:
        return f"after layer {self.layer}" if self.layer else "before the first layer"

    def _refused(self, node: Node, why: str) -> UserError:
        return UserError(f"no C form of {said(node.target)} {why} ({self._where(node)}); export it as ONNX")

    def _view(self, given: Any) -> View:
        """The view that a node stands for: elements of a buffer, of a constant or of the image."""
        value = self.values.get(given)
        if isinstance(value, View):
            return value
        if isinstance(value, _Known):
            return self._constant(given, value)
        raise UserError(f"no C form of {said(getattr(given, 'target', given))} ({self._where(given)})")

    def _constant(self, node: Node, known: _Known) -> View:
        value = known.value if isinstance(known.value, Tensor) else torch.tensor(known.value)
        value = value.float().clamp(-LARGEST, LARGEST)  # masks have infinities, which `literal` writes the same way
        name = known.name or self._made(node, turned=False)
        self.constants[name] = value
        return View(name, torch.arange(value.numel()).view(value.shape))

    def _made(self, node: Node, *, turned: bool) -> str:
        """The name of a constant that was computed, or of its transpose: both may be used."""
        return self.made.setdefault((node, turned), f"constant{len(self.made)}")

    def _new(self, shape: Sequence[int]) -> View:
        return View(Buffer(math.prod(shape)), laid_out(shape))

    def _plain(self, shape: Sequence[int]) -> View:
        """A view of a new buffer, row-major as in torch."""
        return View(Buffer(math.prod(shape)), torch.arange(math.prod(shape)).view(*shape))

    def _add(self, operation: Operation) -> View:
        self.operations.append(operation)
        return operation.out

    def _moved(self, node: Node) -> Any:
        view = self._view(node.args[0])
        rest = list(node.args[1:])
        if node.target is aten.clone.default or node.target is aten.contiguous.default:
            return view
        target: Any = aten.reshape.default if node.target is aten.view.default else node.target
        moved = target(view.index, *rest, **node.kwargs)
        if isinstance(moved, tuple | list):
            return [View(view.of, part) for part in moved]
        if strides_of(moved) is None and strides_of(view.index) is not None:
            view = self._copied(view, plain=True)
            moved = target(view.index, *rest, **node.kwargs)
        return View(view.of, moved)

    def _strided(self, node: Node) -> View:
        """View elements by their place in the memory that torch would have given the input."""
        given: Any = node.args[0]
        view, fake = self._view(given), given.meta["val"]
        size, stride, *start = _args(node)[1:]
        begin = start[0] if start and start[0] is not None else fake.storage_offset()

        def index_of(view: View) -> Tensor:
            reach = 1 + sum((n - 1) * s for n, s in zip(fake.shape, fake.stride(), strict=True)) + fake.storage_offset()
            memory = torch.full((reach,), -1)
            memory.as_strided(fake.shape, fake.stride(), fake.storage_offset()).copy_(view.index)
            return memory.as_strided(size, stride, begin).clone()

        if strides_of(index_of(view)) is None:
            view = self._copied(view, plain=True)
        index = index_of(view)
        if bool((index < 0).any()):
            raise self._refused(node, "of memory beyond its input")
        return View(view.of, index)

    def _copied(self, view: View, *, plain: bool = False) -> View:
        """Copy a view into a buffer of its own: channels last or, if `plain`, row-major as in torch."""
        shape = view.shape
        out = self._plain(shape) if plain else self._new(shape)
        return self._add(Map((view,), out, self.layer, (), "x0"))

    def _dense(self, view: View, index: Tensor) -> View:
        """Return the view if its elements lie as `index` says, else a copy whose elements do."""
        view = View(view.of, view.index.reshape(index.shape))
        if isinstance(view.of, Buffer) and view.of is not IMAGE and torch.equal(view.index, index):
            return view
        out = View(Buffer(index.numel()), index)
        return self._add(Map((view,), out, self.layer, (), "x0"))

    # -- elementwise --------------------------------------------------------------------------------------------------

    def _map(self, root: Node) -> View:
        cone = [node for node, of in self.roots.items() if of is root][::-1]
        cone.sort(key=self._order().__getitem__)
        views: list[View] = []
        names: dict[Any, str] = {}
        statements: list[str] = []
        shape = self._shape(root)

        def say(given: Any) -> str:
            if not isinstance(given, Node):
                return literal(given)
            if given in names:
                return names[given]
            value = self.values.get(given)
            if isinstance(value, _Known):
                known = value.value if isinstance(value.value, Tensor) else torch.tensor(value.value)
                if known.numel() and bool((known == known.flatten()[0]).all()):
                    return literal(known.flatten()[0].item())
            view = self._view(given)
            names[given] = f"x{len(views)}"
            views.append(View(view.of, view.index.expand(shape)))
            return names[given]

        for number, node in enumerate(cone):
            try:
                text = rule_of(node).text(say, node)
            except NotImplementedError as error:
                raise self._refused(node, str(error)) from None
            if node is root:
                result = text
            else:
                kind = "int" if node.meta["val"].dtype is torch.bool else "float"
                names[node] = f"t{number}"
                statements.append(f"{kind} t{number} = {text};")
        return self._add(Map(tuple(views), self._new(shape), self.layer, tuple(statements), result))

    def _order(self) -> dict[Node, int]:
        if not hasattr(self, "_places"):
            self._places = {node: place for place, node in enumerate(self.trace.graph.graph.nodes)}
        return self._places

    # -- layers -------------------------------------------------------------------------------------------------------

    def _named(self, node: Node, *, turned: bool = False) -> str:
        """Register a constant that a layer uses and return its name."""
        known = self.values.get(node)
        if not isinstance(known, _Known):
            raise self._refused(node, "whose weight depends on the image")
        name = known.turned if turned else known.name
        if name is None:
            name = self._made(node, turned=turned)
            self.constants[name] = known.value.t().contiguous() if turned else known.value
        else:
            self.constants[name] = self.trace.weights[name]
        return name

    def _place(self, weight: str, pulled: bool) -> str:
        self.layer = weight.removesuffix(".weight")
        name = f"{self.layer}:gradient" if pulled else self.layer
        self.calls[name] = self.calls.get(name, 0) + 1
        return name if self.calls[name] == 1 else f"{name}:{self.calls[name]}"

    def convolution(self, node: Node) -> View:
        x, w, b, stride, padding, dilation, transposed, _, groups = _args(node)
        if len(stride) != 2:
            raise self._refused(node, f"in {len(stride)} dimensions")
        weight = self._named(w)
        shape, out = self._shape(x), self._shape(node)
        if shape[0] != 1:
            raise self._refused(node, f"of {shape[0]} images at a time")
        place = self._place(weight, bool(transposed))
        return self._conv(
            self._view(x), out, weight, b, bool(transposed), int(groups), (shape[2], shape[3]), (out[2], out[3]),
            tuple(self.constants[weight].shape[2:]), tuple(stride), tuple(padding), tuple(dilation), shape[1], place,
        )  # fmt: skip

    def _conv(
        self, x: View, out: tuple[int, ...], weight: str, bias: Any, pulled: bool, groups: int, size_in: Any,
        size_out: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, channels: int, place: str,
    ) -> View:  # fmt: skip
        wanted = laid_out((1, channels, *size_in))
        grid = strides_of(x.index.reshape(wanted.shape)) if x.index.numel() == wanted.numel() else None
        step, start = channels, 0
        usable = False
        if grid is not None and isinstance(x.of, Buffer):
            start, (_, of_channel, of_row, of_column) = grid[0], grid[1]
            step = of_column or of_row or channels
            rows_fit = size_in[0] == 1 or of_row == step * size_in[1] or (size_in[1] == 1 and of_row == step)
            usable = (channels == 1 or of_channel == 1) and rows_fit and step >= channels
        if not usable:
            x = self._copied(View(x.of, x.index.reshape(wanted.shape)))
            step, start = channels, 0
        size = math.prod(out)
        index = laid_out((1, size // math.prod(size_out), *size_out)).reshape(out) if len(out) == 4 else None
        index = torch.arange(size).view(out) if index is None else index
        name = None
        if bias is not None:
            name = self._named(bias)
        return self._add(
            Conv(
                (x,), View(Buffer(size), index), self.layer, weight, name, pulled, groups,
                (channels // groups, size // math.prod(size_out) // groups), tuple(size_in), tuple(size_out),
                kernel, stride, padding, dilation, step, start, place,
            )
        )  # fmt: skip

    def linear(self, node: Node) -> View:
        bias, x, w = _args(node) if node.target is aten.addmm.default else (None, *_args(node))
        known = self.values.get(w)
        if not isinstance(known, _Known):
            if bias is not None:
                raise self._refused(node, "of two images' products with a bias")
            return self._product(node)
        pulled = known.turned is None and known.name is not None
        weight = self._named(w, turned=not pulled)
        rows, channels = self._shape(x)
        out = self._shape(node)
        place = self._place(weight, pulled)
        one = (1, 1)
        view = self._view(x)
        view = View(view.of, view.index.t().reshape(1, channels, rows, 1))
        return self._conv(
            view, out, weight, bias, pulled, 1, (rows, 1), (rows, 1), one, one, (0, 0), one, channels, place
        )

    def _product(self, node: Node) -> View:
        a, b = (self._view(given) for given in node.args)
        if a.index.ndim == 2:
            a, b = (View(view.of, view.index[None]) for view in (a, b))
        a, b = (view if strides_of(view.index) else self._copied(view) for view in (a, b))
        shape = (a.shape[0], a.shape[1], b.shape[2])
        product = self._add(MatMul((a, b), self._new(shape), self.layer))
        return View(product.of, product.index.reshape(self._shape(node)))

    # -- reductions, windows, joins -----------------------------------------------------------------------------------

    def reduction(self, node: Node) -> View:
        self._see_that_values_stay(node, node.args[0])
        x = self._view(node.args[0])
        dims: Any = node.args[1] if len(node.args) > 1 and node.args[1] is not None else range(x.index.ndim)
        dims = tuple(sorted(d % x.index.ndim for d in ([dims] if isinstance(dims, int) else dims)))
        dims = dims or tuple(range(x.index.ndim))
        how = "largest" if "amax" in str(node.target) else "sum"
        count = math.prod(x.shape[d] for d in dims)
        kept = [1 if d in dims else size for d, size in enumerate(x.shape)]
        if strides_of(x.index) is None:
            x = self._copied(x)
        divided = "mean" in str(node.target)
        out = self._plain(kept)
        reduced = self._add(Reduce((x,), out, self.layer, how, dims, float(count) if divided else 1.0))
        return View(reduced.of, reduced.index.reshape(self._shape(node)))

    def variance(self, node: Node) -> list[View]:
        x = self._view(node.args[0])
        if strides_of(x.index) is None:
            x = self._copied(x)
        given: Any = node.args[1]
        dims = tuple(sorted(d % x.index.ndim for d in given))
        count = math.prod(x.shape[d] for d in dims)
        kept = [1 if d in dims else size for d, size in enumerate(x.shape)]
        correction: Any = node.kwargs.get("correction", 1)
        mean = self._add(Reduce((x,), self._plain(kept), self.layer, "sum", dims, float(count)))
        spread = (x, View(mean.of, mean.index.expand(x.shape)))
        square = self._add(Map(spread, self._new(x.shape), self.layer, ("float t0 = x0 - x1;",), "t0 * t0"))
        variance = self._add(Reduce((square,), self._plain(kept), self.layer, "sum", dims, float(count - correction)))
        shapes = [tuple(part.shape) for part in node.meta["val"]]
        return [View(view.of, view.index.reshape(shape)) for view, shape in zip((variance, mean), shapes, strict=True)]

    def pool(self, node: Node) -> Any:
        name, args = str(node.target), _args(node)
        back = "backward" in name
        how = "largest" if "max" in name else "mean"
        if back:
            g, x = args.pop(0), args.pop(0)
        else:
            g, x = None, args.pop(0)
        shape = self._shape(x)
        channels, large = math.prod(shape[:-2]), shape[-2:]  # a batch of images counts as more channels
        made: Any = node.meta["val"][0] if how == "largest" and not back else node.meta["val"]
        small = self._shape(g)[-2:] if back else made.shape[-2:]
        if "adaptive" in name:
            if large[0] % small[0] or large[1] % small[1]:
                raise self._refused(node, f"from {large[0]}x{large[1]} to {small[0]}x{small[1]}")
            kernel = stride = [large[0] // small[0], large[1] // small[1]]
            padding, counted = [0, 0], True
        else:
            given = [*args, *[None] * 6][:6]
            kernel = _two(given[0])
            stride = _two(given[1]) if given[1] else kernel
            padding = _two(given[2] or 0)
            counted = True
            if how == "largest":
                if given[3] and _two(given[3]) != [1, 1]:
                    raise self._refused(node, "with dilation")
            else:
                counted = given[4] is not False
                if given[5]:
                    raise self._refused(node, "with a divisor of its own")
        image, result = laid_out((1, channels, *large)), laid_out((1, channels, *small))
        out = View(Buffer(image.numel()), image) if back else View(Buffer(result.numel()), result)
        views = [self._dense(self._view(g), result)] if back else []
        if how == "largest" or not back:
            views.append(self._dense(self._view(x), image))
        self._add(
            Pool(
                tuple(views), out, self.layer, f"{how}_back" if back else how, (channels, large[0], large[1]),
                (small[0], small[1]), (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]), counted,
            )
        )  # fmt: skip
        out = View(out.of, out.index.reshape(made.shape))
        return [out, None] if how == "largest" and not back else out

    def join(self, node: Node) -> View:
        parts: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        out = self._new(self._shape(node))
        start = 0
        for part in parts:
            view = self._view(part)
            if not view.index.numel():
                continue
            size = view.shape[dim]
            into = View(out.of, out.index.narrow(dim, start, size))
            self._add(Map((view,), into, self.layer, (), "x0"))
            start += size
        return out

    def scatter(self, node: Node) -> View:
        x, part, *rest = _args(node)
        out = self._new(self._shape(node))
        self._add(self._filling(x, out))
        inner = _part(node.target)(out.index, *rest, **node.kwargs)
        self._add(Map((self._view(part),), View(out.of, inner), self.layer, (), "x0"))
        return out

    def _filling(self, x: Any, out: View) -> Map:
        value = self.values.get(x)
        if isinstance(value, _Known) and bool((value.value == value.value.flatten()[0]).all()):
            return Map((), out, self.layer, (), literal(value.value.flatten()[0].item()))
        return Map((self._view(x),), out, self.layer, (), "x0")

    def pad(self, node: Node) -> View:
        view, pads = self._view(node.args[0]), list(_args(node)[1])
        value: Any = node.args[2] if len(node.args) > 2 else 0.0
        inner = view.index
        shape = list(self._shape(node))
        out = self._new(shape)
        spot = out.index
        for place in range(len(pads) // 2):
            d, (before, after) = -1 - place, pads[2 * place : 2 * place + 2]
            inner = inner.narrow(d, max(0, -before), inner.shape[d] - max(0, -before) - max(0, -after))
            spot = spot.narrow(d, max(0, before), inner.shape[d])
        self._add(Map((), out, self.layer, (), literal(float(value))))
        self._add(Map((View(view.of, inner),), View(out.of, spot), self.layer, (), "x0"))
        return out


LAYERS = (aten.convolution.default, aten.addmm.default, aten.mm.default)


def _part(target: Any) -> Any:
    """Return the operation that reads the part which a scatter writes."""
    return {
        aten.slice_scatter.default: aten.slice.Tensor,
        aten.select_scatter.default: aten.select.int,
    }[target]


def _two(given: Any) -> list[int]:
    pair = [given] if isinstance(given, int) else list(given)
    return [int(n) for n in (pair * 2 if len(pair) == 1 else pair)]


LOWER: dict[Any, Callable[[_Lowering, Node], Any]] = {
    aten.convolution.default: _Lowering.convolution,
    aten.addmm.default: _Lowering.linear,
    aten.mm.default: _Lowering.linear,
    aten.bmm.default: _Lowering._product,
    aten.sum.dim_IntList: _Lowering.reduction,
    aten.sum.default: _Lowering.reduction,
    aten.mean.dim: _Lowering.reduction,
    aten.mean.default: _Lowering.reduction,
    aten.amax.default: _Lowering.reduction,
    aten.var_mean.correction: _Lowering.variance,
    aten.max_pool2d_with_indices.default: _Lowering.pool,
    aten.max_pool2d_with_indices_backward.default: _Lowering.pool,
    aten.avg_pool2d.default: _Lowering.pool,
    aten.avg_pool2d_backward.default: _Lowering.pool,
    aten._adaptive_avg_pool2d.default: _Lowering.pool,
    aten._adaptive_avg_pool2d_backward.default: _Lowering.pool,
    aten.cat.default: _Lowering.join,
    aten.constant_pad_nd.default: _Lowering.pad,
    aten.slice_scatter.default: _Lowering.scatter,
    aten.select_scatter.default: _Lowering.scatter,
}
