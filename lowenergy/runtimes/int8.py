"""Static int8 networks as torchao's PT2E flow makes them: export, prepare, (calibrate, finetune,) convert.

The inputs and weights of all convolutions and fully connected layers are rounded; everything else stays float, biases
too. A *prepared* graph holds a FakeQuantize module at each of these places: it rounds as int8 does and lets gradients
through (straight-through), for calibration and QAT. `convert` turns it into quantize and dequantize operations on int8
weights, which Inductor runs as int8 kernels. onnxruntime has int8 kernels only for convolutions whose outputs are
rounded as well, and C has them in bytes: the ranges of outputs are found and stored for these two, who alone use them.

For an energy, the graph computes logits and input gradient (energies/gradient.py), so both directions are rounded. They
share the int8 weights: with weights W = s q, where s is the scale of each output channel, the pullback Wᵀg is qᵀ(s g).
So the scale moves to the gradient, and qᵀ is int8 already.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.energies import logits_and_gradient
from lowenergy.energies.gradient import call, gradient_graph
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Int8, Range

aten = torch.ops.aten
SCALE = "scale_of_lowenergy"  # a buffer name that no layer uses itself
SMALLEST_SCALE = 2.0**-40  # torchao's default, 2^-12, is coarser than a wide layer's weights or an energy's gradients
ROUNDED = (aten.conv2d.default, aten.linear.default)
MOVES = (  # operations that only put a weight in another order, or pad it
    *(aten.t.default, aten.transpose.int, aten.permute.default, aten.flip.default, aten.unsqueeze.default),
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.constant_pad_nd.default),
    *(aten.unflatten.int, aten.flatten.using_ints, aten.clone.default),
)
IN_CACHE = 2**17  # weights that stay in the cache
SAMPLED = 2**14  # about how many activations of a batch are looked at to choose a range with few levels


class _OnSteps(torch.autograd.Function):
    """Compute clamp(round(x / step), low, high) * step with the gradients of LSQ (equation 3).

    Where x is within the levels, its gradient passes as if nothing were rounded, and the step's gradient is the level
    minus x / step. Beyond them, x gets none, and the step's gradient is the last level. This takes a few passes over
    memory; autograd would take three times as many for the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Any, high: Any) -> Tensor:
        levels = (x / step).round_().clamp_(low, high)
        ctx.save_for_backward(x, step, levels)
        ctx.ends = low, high
        return levels * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,), (x, step, levels) = gradients, ctx.saved_tensors
        steps = x / step
        inside = torch.where(steps.clamp(*ctx.ends) == steps, gradient, 0.0)
        of_step = (gradient * levels - inside * steps).sum_to_size(step.shape) if ctx.needs_input_grad[1] else None
        return inside, of_step, None, None


def on_steps(x: Tensor, step: Tensor, low: Any, high: Any) -> Tensor:
    """Round x to the nearest multiple of `step`, from `low` to `high` steps; x and `step` both get gradients (LSQ,
    Esser et al. 2020, arXiv 1902.08153).

    Args:
        step: its shape broadcasts to that of x.
        low, high: numbers, or tensors whose shape does.

    >>> on_steps(torch.tensor([-0.9, 0.2, 0.3, 5.0]), torch.tensor(0.5), -1, 2)
    tensor([-0.5000,  0.0000,  0.5000,  1.0000])
    """
    nearest: Tensor = _OnSteps.apply(x, step, low, high)
    return nearest


class LearnedStep(nn.Module):
    """Round activations to the levels of a range, by a trainable step (LSQ, Esser et al. 2020, arXiv 1902.08153)."""

    holds_steps = True

    def __init__(self, given: Range) -> None:
        super().__init__()
        self.given, self.most = given, 2**given.bits - 1
        # Relative, because Adam moves all parameters by about the same amount and ranges of gradients can be tiny.
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        start, factor = self.given.scale, self.factor.abs().clamp_min(SMALLEST_SCALE / self.given.scale)
        # The paper scales the step's gradient by (numbers * levels)^-1/2. Divided by `start`, gradient descent on the
        # factor moves the step itself as in the paper.
        moved = (x[0].numel() * self.most) ** -0.5 / start * factor
        step = start * factor.detach() + (moved - moved.detach())
        return on_steps(x, step, -self.given.zero, self.most - self.given.zero)

    def range(self) -> Range:
        scale = self.given.scale * float(self.factor.detach().abs())
        return self.given._replace(scale=max(scale, SMALLEST_SCALE))


class Rounding(FakeQuantize):
    """A FakeQuantize that can hold a range exactly as the file gives it, instead of observing one."""

    held = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.learned: LearnedStep | None = None  # rounds instead, once there is one

    def hold(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale, self.zero_point, self.held = scale, zero_point, True
        self.disable_observer()

    def limit(self, bits: int) -> None:
        """Set the number of levels of activations; call this before asking for their range."""
        self.activation_post_process.quant_max = self.quant_max = 2**bits - 1

    def hold_range(self, given: Range) -> None:
        """Hold a range of activations."""
        self.limit(given.bits)
        device = self.scale.device
        self.hold(
            torch.tensor([given.scale], device=device), torch.tensor([given.zero], dtype=torch.int, device=device)
        )

    def range(self) -> Range:
        return Range(self.scale.item(), int(self.zero_point.item()), (self.quant_max + 1).bit_length() - 1)

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 torchao's name
        if self.learned is not None and self.fake_quant_enabled[0]:
            return self.learned(X)
        return super().forward(X)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        if self.held:
            return self.scale, self.zero_point
        return super().calculate_qparams()


class FewLevels(MinMaxObserver):
    """Choose the fraction of the observed range with the least squared rounding error. With few levels, a range wide
    enough for rare large values leaves too few levels for the rest."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.some = torch.empty(0)

    def forward(self, x_orig: Tensor) -> Tensor:
        every = max(1, x_orig.numel() // SAMPLED)
        while any(math.gcd(every, size) > 1 for size in x_orig.shape[1:]):
            every += 1  # otherwise some channels, rows or columns would never be looked at
        self.some = torch.cat([self.some, x_orig.detach().flatten()[::every].float().cpu()])
        return super().forward(x_orig)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        low, high = self.min_val, self.max_val
        best, least = self._calculate_qparams(low, high), math.inf
        for share in torch.linspace(0.02, 1.0, 99):
            scale, zero = self._calculate_qparams(low * share, high * share)
            wanted = (self.some.to(scale.device) / scale + zero).round_().clamp_(self.quant_min, self.quant_max)
            error = float(wanted.sub_(zero).mul_(scale).sub_(self.some.to(scale.device)).square_().sum())
            if error < least:
                best, least = (scale, zero), error
        return best


def _activation(bits: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2**bits - 1,
        qscheme=torch.per_tensor_affine,
        # With 256 levels, take the whole observed range: a clipped activation passes no gradient to train by.
        observer_or_fake_quant_ctr=Rounding.with_args(
            observer=MinMaxObserver if bits == 8 else FewLevels, eps=SMALLEST_SCALE
        ),
    )


def _weight(bits: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=Rounding.with_args(observer=PerChannelMinMaxObserver),
    )


class _Layers(Quantizer):
    """Annotate the inputs and weights of these layers for rounding, in both directions, and on request their outputs,
    but not the output of `last`: it makes the energy, whose fractions matter even when it is in the hundreds."""

    def __init__(
        self, bits: Mapping[str, int], activation_bits: int, outputs: bool, last: str, *, gradient: bool
    ) -> None:
        self.bits, self.outputs, self.last, self.gradient = bits, outputs, last, gradient
        self.inputs, self.of_outputs = _activation(activation_bits), _activation(8)
        if activation_bits == 8:
            self.of_outputs = self.inputs  # where an output is the next input, both share one range

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            layer, pulled = _layer(node) if node.target in ROUNDED else ("", False)
            if layer in self.bits and (self.gradient or not pulled):
                weight = _weight(self.bits[layer])
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: self.inputs, node.args[1]: weight},
                    output_qspec=self.of_outputs if self.outputs and _layer(node) != (self.last, False) else None,
                    _annotated=True,
                )
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def _layer(node: Node) -> tuple[str, bool]:
    """Name the layer whose weight a convolution or linear node uses, and say whether the node is the layer's pullback.

    The name is empty where the weight is computed in any other way. The answer is found while the graph is still as it
    was traced, and kept in the node.
    """
    if "layer" not in node.meta:
        node.meta["layer"] = _found_layer(node)
    name, is_pullback = node.meta["layer"]
    return name, is_pullback


def _found_layer(node: Node) -> tuple[str, bool]:
    weight: Any = node.args[1]
    moves: list[Any] = []
    while weight.op == "call_function" and weight.target in MOVES and len(weight.users) == 1:
        moves.insert(0, weight)
        weight = weight.args[0]
    if weight.op != "get_attr" or not weight.target.endswith(".weight"):
        return "", False
    if not moves:
        return weight.target.removesuffix(".weight"), False
    # It is a pullback if every weight takes as input the channel that is its output in the layer.
    shape = operator.attrgetter(weight.target)(node.graph.owning_module).shape
    channels = shape[0]
    moved = torch.arange(1, channels + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    for move in moves:
        moved = move.target(moved, *move.args[1:], **move.kwargs)
    groups: Any = node.args[6] if len(node.args) > 6 else 1
    inputs = torch.arange(1, groups * moved.shape[1] + 1).view(groups, 1, -1, *[1] * (moved.ndim - 2))
    if groups * moved.shape[1] != channels or len(moved) % groups:
        return "", False
    moved = moved.unflatten(0, (groups, -1))
    is_pulled = bool(((moved == inputs) | (moved == 0)).all())  # zeros are padding
    return (weight.target.removesuffix(".weight") if is_pulled else "", is_pulled)


def _used_as_they_are(graph: GraphModule) -> set[str]:
    """The layers whose weight is applied to their input unchanged: only these have an int8 form."""
    uses = [_layer(node) for node in graph.graph.nodes if node.target in ROUNDED]
    return {layer for layer, pulled in uses if not pulled}


def best_scale(weight: Tensor, bits: int) -> Tensor:
    """Choose each output channel's scale, (out,), among 70 fractions of its maximum, by the squared rounding error."""
    flat, levels = weight.detach().flatten(1), 2 ** (bits - 1) - 1
    # A few channels at a time, so that they stay in the cache: ten times as fast with millions of weights.
    return torch.cat([_best_scale(channels, levels) for channels in flat.split(max(1, IN_CACHE // flat.shape[1]))])


LEAST_SHARE = {1: 0.05, 3: 0.1}  # by levels: with few of them, clipping many large weights leaves more for the rest


def _best_scale(weight: Tensor, levels: int) -> Tensor:
    largest, rounded = weight.abs().amax(1), torch.empty_like(weight)
    best, error = torch.ones(len(weight)), torch.full((len(weight),), torch.inf)
    for share in torch.linspace(LEAST_SHARE.get(levels, 0.31), 1.0, 70):
        scale = (largest * share / levels).clamp_min(SMALLEST_SCALE)
        torch.mul(weight, (1 / scale)[:, None], out=rounded).round_().clamp_(-levels - 1, levels)
        of_this = rounded.mul_(scale[:, None]).sub_(weight).square_().sum(1)
        best, error = torch.where(of_this < error, scale, best), torch.minimum(of_this, error)
    return best


def prepare(
    network: networks.Network,
    scales: Mapping[str, Tensor],
    bits: Mapping[str, int],
    *,
    activation_bits: int = 8,
    gradient: bool = False,
    outputs: bool = False,
) -> GraphModule:
    """Trace a network without BatchNorm and insert Rounding modules: weights are rounded, activations only observed.

    Args:
        scales: the scales of the int8 weights, (out,), by layer. Layers not named here stay float, and so do those
            without an int8 form, whose weight is changed before it is used.
        bits: bits of each of these layers' weights.
        activation_bits: bits of the layers' inputs; outputs have 8.
        gradient: trace logits and input gradient of an energy, instead of logits alone.
        outputs: also insert Rounding modules at outputs, where onnxruntime rounds.
    Raises:
        UserError: the network cannot be traced.
    """
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    network = networks.duplicate(network).to(memory_format=networks.training_format(network)).eval()
    if gradient:
        assert network.spec.head is not None
        graph = gradient_graph(network, network.spec.head, network.spec.input_shape)
    else:
        graph = networks.traced(network).module(check_guards=False)
    first = networks.first_names(network)
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # a tied weight has several names: take the one in the file
            node.target = first.get(node.target, node.target)
    graph.recompile()
    scales = {name: scale for name, scale in scales.items() if name in _used_as_they_are(graph)}
    if gradient:
        move_scales(graph, scales)
    last = first[f"{networks.output_layer(network)}.weight"].removesuffix(".weight")
    own_bits = {name: bits[name] for name in scales}
    prepared = prepare_pt2e(graph, _Layers(own_bits, activation_bits, outputs, last, gradient=gradient))
    allow_exported_model_train_eval(prepared)
    _round_everywhere(prepared)
    prepared.spec, prepared.gradient = network.spec, gradient
    for place in places(prepared):
        for rounding in place.activations.values():
            rounding.disable_fake_quant()
        scale = torch.ones(place.channels) if place.pulled else scales[place.layer]
        place.weight.hold(scale, torch.zeros(len(scale), dtype=torch.int))
    return prepared


def _round_everywhere(prepared: GraphModule) -> None:
    """Round a weight that is rounded for its layer everywhere else too, in place: in a pullback without an int8 form,
    such as that of a strided depthwise convolution, and where the network itself transposes the weight."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    rounded: dict[str, Node] = {}
    for node in list(prepared.graph.nodes):
        if node.op != "get_attr":
            continue
        own = [user for user in node.users if user.op == "call_module" and isinstance(modules[user.target], Rounding)]
        rounded.setdefault(node.target, own[0]) if own else None
        if node.target in rounded:
            for user in list(node.users):
                if user.op != "call_module" and not _divides_by_scale(user):
                    user.replace_input_with(node, rounded[node.target])
    prepared.graph.lint()
    prepared.recompile()


def _divides_by_scale(node: Node) -> bool:
    """True for the division in a pullback in integers, see move_scales."""
    if node.target is not aten.div.Tensor:
        return False
    scale: Any = node.args[1]
    return scale.op == "call_function" and scale.args[0].op == "get_attr" and scale.args[0].target.endswith(f".{SCALE}")


def check(prepared: GraphModule, network: networks.Network, images: Tensor, *, trained: bool = True) -> None:
    """Raise if a prepared graph, with rounding off, does not compute what the network does.

    This compares the outputs and, if the graph is to be trained, their gradients with respect to images and weights;
    for an energy, logits and input gradients.

    Raises:
        UserError: it does not. The message names the operation and the layer at which outputs first differ, or the
            images or weight whose gradient differs.
    """
    roundings = [module for module in prepared.modules() if isinstance(module, Rounding)]
    states = [(rounding.observer_enabled.clone(), rounding.fake_quant_enabled.clone()) for rounding in roundings]
    for rounding in roundings:
        rounding.disable_observer()
        rounding.disable_fake_quant()
    head = network.spec.head
    what = f"{network.spec.name}: the graph to be quantized"
    try:
        if prepared.gradient:
            assert head is not None

            def answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
                return logits_and_gradient(network, head, images)

            networks.check_same(prepared, network, images, what, answers)
        else:
            networks.check_same(prepared, network, images, what)
            if trained:
                _check_gradients(prepared, network, images, what)
    finally:
        for rounding, (observes, rounds) in zip(roundings, states, strict=True):
            rounding.observer_enabled.copy_(observes)
            rounding.fake_quant_enabled.copy_(rounds)


def _check_gradients(prepared: GraphModule, network: nn.Module, images: Tensor, what: str) -> None:
    """Compare the gradients of a random sum of the outputs, with respect to the images and to each weight."""
    with torch.no_grad():
        outputs = network(images)
    mixed = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

    def gradients(of: nn.Module, images: Tensor) -> dict[str, Tensor]:
        named = dict(of.named_parameters(remove_duplicate=False))
        by = {"the images": images.clone().requires_grad_(), **{name: named[name] for name in weights if name in named}}
        computed = torch.autograd.grad((of(by["the images"]) * mixed).sum(), [*by.values()], allow_unused=True)
        return {name: slope for name, slope in zip(by, computed, strict=True) if slope is not None}

    try:
        wanted = gradients(network, images)
    except RuntimeError:  # autograd rejects what the network writes in place: there is nothing to compare with
        return
    try:
        actual = gradients(prepared, images)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what} has no gradients ({reason}); write that part of the network in another way") from None
    total = torch.cat([torch.zeros(1), *(slope.flatten() for name, slope in wanted.items() if name in weights)]).norm()
    off = {}
    for name, slope in wanted.items():
        norm = total if name in weights else slope.norm()
        off[name] = float((actual.get(name, torch.zeros(())) - slope).norm() / norm.clamp_min(1e-12))
    if all(by <= networks.SAME for by in off.values()):  # false for what is not finite, too
        return
    bounds = networks.sensitivity(lambda images: [*gradients(network, images).values()], images)
    for (name, by), bound in zip(off.items(), bounds, strict=True):
        if not by <= max(networks.SAME, bound):
            raise UserError(f"{what} has gradients by {name} that differ from the network's by {by:.2g} of their norm")


def move_scales(graph: GraphModule, scales: Mapping[str, Tensor]) -> None:
    """Move the scale of every pullback from the weight to the gradient: Wᵀ g becomes (W / s)ᵀ (s g), in place."""
    for node in [n for n in graph.graph.nodes if n.target in ROUNDED]:
        layer, pulled = _layer(node)
        if not pulled or layer not in scales:
            continue
        first = node.args[1]
        while first.args[0].op != "get_attr":
            first = first.args[0]
        weight = first.args[0]
        owner = graph.get_submodule(layer)
        if not hasattr(owner, SCALE):
            owner.register_buffer(SCALE, scales[layer], persistent=False)
        with graph.graph.inserting_before(first):
            scale = graph.graph.create_node("get_attr", f"{layer}.{SCALE}")
            scale.meta["val"] = scales[layer]
            along = call(graph.graph, aten.view.default, scale, [-1, *[1] * (weight.meta["val"].ndim - 1)])
            first.replace_input_with(weight, call(graph.graph, aten.div.Tensor, weight, along))
        with graph.graph.inserting_before(node):
            along = call(graph.graph, aten.view.default, scale, [-1, 1, 1])
            node.replace_input_with(node.args[0], call(graph.graph, aten.mul.Tensor, node.args[0], along))
    graph.recompile()


@dataclass(frozen=True)
class Place:
    """One rounded convolution or linear operation of a prepared graph."""

    layer: str
    pulled: bool  # True for the layer's pullback, from the gradient of its output to that of its input
    weight: Rounding
    activations: dict[str, Rounding]  # by their names in the file: the input, and the output where that is rounded
    channels: int  # of the operation's output
    multiplications: int  # for one image


def places(prepared: GraphModule) -> Iterator[Place]:
    """Yield the places of a prepared graph, in the order in which they are computed."""
    modules: dict[str, Any] = dict(prepared.named_modules(remove_duplicate=False))  # two places may share one range
    seen: Counter[str] = Counter()
    for node in prepared.graph.nodes:
        if node.target in ROUNDED and node.args[1].op == "call_module":
            layer, pulled = _layer(node)
            name = f"{layer}:gradient" if pulled else layer
            seen[name] += 1
            if seen[name] > 1:  # a layer that is used more than once
                name = f"{name}:{seen[name]}"
            activations = {f"{name}:in": modules[node.args[0].target]}
            after = next(iter(node.users))
            if after.op == "call_module":  # the logits have none
                activations[f"{name}:out"] = modules[after.target]
            weight, channels = modules[node.args[1].target], node.meta["val"].shape[1]
            yield Place(layer, pulled, weight, activations, channels, _multiplications(node, node.args[1].args[0]))


def multiplications(prepared: GraphModule) -> Iterator[tuple[bool, bool, int]]:
    """For each convolution or linear operation: is it a pullback, is it rounded, its multiplications for one image."""
    for node in prepared.graph.nodes:
        if node.target in ROUNDED:
            is_rounded = node.args[1].op == "call_module"
            weight = node.args[1].args[0] if is_rounded else node.args[1]
            yield _layer(node)[1], is_rounded, _multiplications(node, weight)


def _multiplications(node: Node, weight: Node) -> int:
    each = weight.meta["val"][0].numel()  # weights that each output uses
    total: int = each * node.meta["val"][0].numel()
    return total


def ranges(prepared: GraphModule) -> dict[str, Range]:
    """The range of each activation that is rounded."""
    return {name: rounding.range() for place in places(prepared) for name, rounding in place.activations.items()}


def shared(prepared: GraphModule) -> dict[str, str]:
    """Map each activation to the first one that holds the same numbers: an input of two layers has one range."""
    first: dict[Rounding, str] = {}
    return {
        name: first.setdefault(rounding, name)
        for place in places(prepared)
        for name, rounding in place.activations.items()
    }


def freeze(prepared: GraphModule, found: Mapping[str, Range] | None = None) -> GraphModule:
    """Stop observing and start rounding, in place.

    Args:
        found: the range of each activation; None to take the observed ones and leave outputs float.
    """
    for place in places(prepared):
        for name, rounding in place.activations.items():
            if found is None:
                rounding.hold(*rounding.calculate_qparams())
            else:
                rounding.hold_range(found[name])
            rounding.enable_fake_quant(found is not None or name.endswith(":in"))
    return prepared


def hold_ranges(prepared: GraphModule, given: Mapping[str, Range]) -> None:
    """Set the ranges of some activations, known from elsewhere, in place."""
    for place in places(prepared):
        for name in place.activations.keys() & given.keys():
            place.activations[name].hold_range(given[name])


@contextmanager
def steps_learned(prepared: GraphModule) -> Iterator[None]:
    """Make the steps of inputs with fewer than 8 bits parameters of the graph; on exit, put them into its ranges."""
    learned: dict[Rounding, None] = {}  # once each, in order
    for place in places(prepared):
        for name, rounding in place.activations.items():
            if name.endswith(":in") and rounding.range().bits < 8:
                learned[rounding] = None
    for rounding in learned:
        rounding.learned = LearnedStep(rounding.range())
    try:
        yield
    finally:
        for rounding in learned:
            assert rounding.learned is not None
            rounding.hold_range(rounding.learned.range())
            rounding.learned = None


def round_only(prepared: GraphModule, layers: Collection[str]) -> None:
    """Round these layers of a frozen graph and let the others be float, to see what each one costs."""
    chosen: dict[Rounding, bool] = {}  # an input of two layers is rounded for both if it is for one
    for place in places(prepared):
        place.weight.enable_fake_quant(place.layer in layers)
        for name, rounding in place.activations.items():
            chosen[rounding] = chosen.get(rounding, False) or (place.layer in layers and name.endswith(":in"))
    for rounding, rounds in chosen.items():
        rounding.enable_fake_quant(rounds)


def rounded(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The integers that stand for a weight, (out, ...) int8."""
    levels = 2 ** (bits - 1)
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(-levels, levels - 1).to(torch.int8)


def restore(model: Model, *, gradient: bool = False, outputs: bool = False) -> GraphModule:
    """The frozen graph of a stored int8 model; see prepare.

    Raises:
        FileError: the file has no range for a place of the graph.
    """
    network = model.build()
    coded = {name.removesuffix(".weight"): part for name, part in model.tensors.items() if isinstance(part, Int8)}
    scales, bits = ({name: getattr(part, of) for name, part in coded.items()} for of in ("scale", "bits"))
    of_inputs = [activation.bits for name, activation in model.activations.items() if name.endswith(":in")]
    prepared = prepare(
        network, scales, bits, activation_bits=min(of_inputs, default=8), gradient=gradient, outputs=outputs
    )
    try:
        return freeze(prepared, model.activations)
    except KeyError as error:
        where = f"{model.origin}: " if model.origin else ""
        raise FileError(f"{where}the file has no int8 range for {error}; quantize again") from None


def convert(prepared: GraphModule) -> GraphModule:
    """A copy with int8 weights between quantize and dequantize operations, for other runtimes."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph = convert_pt2e(networks.duplicate(prepared))
    limit_levels(graph)
    graph.recompile()
    return graph


def limit_levels(graph: GraphModule) -> None:
    """Quantize activations of few levels to whole bytes and clamp these at the last level, in a converted graph, in
    place: runtimes know no largest value but that of a byte."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default and 0 < node.args[4] < 255:
            with graph.graph.inserting_after(node):
                limited = graph.graph.call_function(aten.clamp.default, (node, 0, node.args[4]))
            node.replace_all_uses_with(limited, delete_user_cb=lambda user, limited=limited: user is not limited)
            node.update_arg(4, 255)


def compiled(prepared: GraphModule) -> Callable[[Tensor], Any]:
    """The graph as Inductor's int8 kernels, which need a C++ compiler, and ten seconds at the first call."""
    # The import registers the patterns that replace quantized convolutions by int8 kernels.
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    return frozen(convert(prepared))


def frozen(graph: nn.Module) -> Callable[[Tensor], Any]:
    """The graph compiled by Inductor with its weights as constants, for inference; each batch size is compiled anew."""
    run = torch.compile(graph, dynamic=False)

    def call(images: Tensor) -> Any:
        with torch._inductor.config.patch(freezing=True), torch.no_grad():
            return run(images)

    return call
