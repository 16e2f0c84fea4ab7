"""Write a stored model as one ONNX file that onnxruntime runs without this project.

The weights stay as small as in the model file: the graph itself unpacks bits, looks up codewords, scatters sparse
values and rescales int8. onnxruntime does this once, when it loads the file. int8 models keep rounding their
activations (QuantizeLinear and DequantizeLinear around every layer), for which onnxruntime has int8 kernels.

Inputs and outputs, all float32:

    classifier      images (batch, c, h, w) in [-1, 1] -> logits (batch, classes)
    ebm, jem        images, noise (batch, c, h, w) -> energy (batch,), next (batch, c, h, w); a jem also logits
                    or, without the sampler, images -> energy; a jem also logits

`next` is one Langevin step from `images`; noise is standard normal, and the sampler's constants are in the graph.
"""

import math
import operator
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Interpreter, Node

from lowenergy import networks
from lowenergy.base import files
from lowenergy.base.errors import UserError, one_line
from lowenergy.base.files import FileError
from lowenergy.energies import HEADS, langevin_step
from lowenergy.energies.energy import logits_and_gradient
from lowenergy.energies.gradient import FORWARD, gradient_graph
from lowenergy.networks.graphs import export as export_module
from lowenergy.networks.graphs import reason_of
from lowenergy.params import Sampler
from lowenergy.runtimes import int8
from lowenergy.runtimes.loading import dense_network
from lowenergy.runtimes.sampling import constants_of
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, Int8, Sparse, pack_bits

OPSET = 20
LARGEST_FOLDED = 64  # elements of constants that may be computed ahead; with more, coded weights would be unpacked
LARGEST_UNPACKED = 2**30  # the same where the graph is not kept: all of them

REWRITTEN = 1000  # nodes; for each one onnxscript's rules look at all of them again, which takes minutes with thousands
LARGEST_FILE = 2**31 - 2**24  # bytes of weights, so that the graph has room too

LARGEST_BIAS = 2**30  # steps; onnxruntime's int8 kernels have room for 2^31

LOOKED_AT = 8  # images on which onnxruntime and torch are compared
# How far outputs may be apart: OFF of how much they differ from image to image, plus ROUNDED_OFF of their size. In int8
# models, a tie that rounds the other way moves everything after it by one step. So outputs may be off by TIES, or by
# twice as much as they move in torch when images change by NEAR. That is 0.06 for gradients of nine residual blocks.
OFF, ROUNDED_OFF, TIES, NEAR = 2e-3, 3e-5, 0.05, 1e-6
FLOAT_KERNELS = ("session.disable_quant_qdq", "1")  # an entry of onnxruntime's SessionOptions
TIES_MOST = 0.3  # TIES may grow to this where the network itself moves so far if its images change by a rounding error


# -- weights that the graph decodes -----------------------------------------------------------------------------------


class _Bits(nn.Module):
    """Unpack (n,) integers of a few bits each from bytes."""

    def __init__(self, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.count, self.bits = len(codes), bits
        self.register_buffer("packed", pack_bits(codes, bits))

    def forward(self) -> Tensor:
        assert isinstance(self.packed, Tensor)
        # Division and remainder, because runtimes disagree on which shifts they have.
        byte = self.packed.int()[:, None]
        planes = (byte // torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)) % 2  # highest bit first
        places = torch.tensor([2**place for place in range(self.bits - 1, -1, -1)], dtype=torch.int32)
        return (planes.flatten()[: self.count * self.bits].view(self.count, self.bits) * places).sum(1)


class _Stored(nn.Module):
    """One tensor of the network, decoded by the graph."""

    def __init__(self, encoded: Encoding) -> None:
        super().__init__()
        self.encoded = encoded
        self.bits: _Bits | _Int8
        if isinstance(encoded, Dense):
            self.register_buffer("values", encoded.values)
        elif isinstance(encoded, Sparse):
            present = (encoded.decode() != 0).flatten()
            self.bits = _Bits(present.long(), 1)
            self.register_buffer("values", torch.cat([torch.zeros(1), encoded.values[encoded.values != 0]]))
        elif isinstance(encoded, Coded):
            self.bits = _Bits(encoded.codes, encoded.bits)
            self.register_buffer("values", encoded.codebook)
        elif isinstance(encoded, Int8):  # only weights are
            self.bits = _Int8(encoded)
            self.register_buffer("values", encoded.scale.view(-1, *[1] * (len(encoded.shape) - 1)))

    def forward(self) -> Tensor:
        encoded, values = self.encoded, self._buffers.get("values")
        if isinstance(encoded, Constant):
            return torch.full(encoded.shape, encoded.value)
        assert values is not None
        if isinstance(encoded, Dense):
            return values
        if isinstance(encoded, Sparse):
            present = self.bits()
            return values[torch.cumsum(present, 0) * present].view(encoded.values.shape)  # entry 0 is the zero
        if isinstance(encoded, Coded):
            return values.float()[self.bits()].view(encoded.shape)
        if isinstance(encoded, Int8):
            return self.bits().float() * values
        raise TypeError(f"no graph for {encoded.kind} weights")


class _Decoded(nn.Module):
    """The network, or its gradient graph, with each tensor decoded from its stored form."""

    def __init__(self, network: nn.Module, model: Model) -> None:
        super().__init__()
        self.hidden = [network]  # in a list, so that its own weights stay out of the file
        self.kinds = {name: own.dtype for name, own in (*network.named_parameters(), *network.named_buffers())}
        self.names = [name for name in model.tensors if name in self.kinds]
        self.own = {name: first for name, first in networks.own_tensors(network).items() if first in self.names}
        self.stored = nn.ModuleList(_Stored(model.tensors[name]) for name in self.names)

    def forward(self, images: Tensor) -> Any:
        state = {name: stored() for name, stored in zip(self.names, self.stored, strict=True)}
        state = {
            name: value if value.dtype == self.kinds[name] else value.to(self.kinds[name])
            for name, value in state.items()
        }
        tensors = {name: state[first] for name, first in self.own.items()}
        return functional_call(self.hidden[0], tensors, (images,), tie_weights=False)


class _Int8(nn.Module):
    """int8 weights, stored as such or unpacked from fewer bits."""

    def __init__(self, encoded: Int8, factor: int = 1) -> None:
        """
        Args:
            factor: multiplies the integers; the scale is divided by it, see _divide_scales.
        """
        super().__init__()
        self.shape, self.factor = encoded.values.shape, factor
        self.bits, self.offset = None, 0
        if encoded.bits == 8:
            self.register_buffer("values", encoded.values)
        else:
            self.offset = 2 ** (encoded.bits - 1)
            self.bits = _Bits(encoded.values.flatten().int() + self.offset, encoded.bits)

    def forward(self) -> Tensor:
        if self.bits is None:
            assert isinstance(self.values, Tensor)
            return self.values
        return ((self.bits() - self.offset) * self.factor).to(torch.int8).view(self.shape)


def _int8_graph(prepared: GraphModule, model: Model) -> GraphModule:
    """Convert the graph so that it holds the file's integers only once, where a layer and its pullback both use them.

    onnxruntime's kernels round a bias to steps of the input's scale times the weight's scale. With weights of few bits,
    such a step can be larger than the bias. So the integers are multiplied to fill seven bits, with which no sum
    saturates, or eight where the inputs have fewer than eight, and their scales are divided by as much.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph = convert_pt2e(prepared, fold_quantize=False)
    quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
    stored: dict[str, Node] = {}
    room = (
        8
        if max((given.bits for name, given in model.activations.items() if name.endswith(":in")), default=8) < 8
        else 7
    )
    for node in [n for n in graph.graph.nodes if n.target is quantize]:
        path = [node]
        while path[-1].op != "get_attr":
            path.append(path[-1].args[0])
        weight = path[-1].target
        if weight not in stored:
            encoded = model.tensors[weight]
            assert isinstance(encoded, Int8)
            name = f"stored{len(stored)}"
            factor = 2 ** max(0, room - encoded.bits)
            graph.add_submodule(name, _Int8(encoded, factor))
            with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
                stored[weight] = graph.graph.call_module(name)
        _divide_scales(graph, node, 2 ** max(0, room - model.tensors[weight].bits))  # type: ignore[attr-defined]
        if len(path) == 2:  # weight -> quantize
            node.replace_all_uses_with(stored[weight])
        else:  # weight -> division by the scale -> flips, permutations -> quantize at scale 1: all of it moves integers
            path[-2].replace_all_uses_with(stored[weight])
            node.replace_all_uses_with(path[1])
    int8.limit_levels(graph)
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {name for name, _ in (*graph.named_parameters(), *graph.named_buffers())} - used:
        if not name.startswith("stored"):
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    graph.recompile()
    return graph


def _divide_scales(graph: GraphModule, quantize: Node, factor: int) -> None:
    """Divide the scales that turn these integers back into floats, in place."""
    for user in list(quantize.users) if factor > 1 else ():
        assert user.target is torch.ops.quantized_decomposed.dequantize_per_channel.default
        name = f"finer_{user.name}"
        scale: Any = user.args[1]
        graph.register_buffer(name, operator.attrgetter(scale.target)(graph) / factor)
        with graph.graph.inserting_before(user):
            user.update_arg(1, graph.graph.get_attr(name))


# -- what the file computes -------------------------------------------------------------------------------------------


class _Energy(nn.Module):
    """Energy and logits."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return HEADS[self.head](logits), logits


class _Step(nn.Module):
    """Energy, the images after one Langevin step (energies/langevin.py), and logits."""

    def __init__(self, network: nn.Module, head: str, constants: Sampler) -> None:
        super().__init__()
        self.network, self.head, self.constants = network, head, constants

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, gradient = self.network(images)
        return HEADS[self.head](logits), langevin_step(images, gradient, noise, self.constants), logits


def export(
    model: Model, header: Mapping[str, Any], path: str | Path, *, sampler: bool = True, step_size: float | None = None
) -> None:
    """Write the model, as read from its file, to the ONNX file `path`, atomically.

    If it does not give the same in onnxruntime as in torch, nothing is written.

    Args:
        sampler: include the Langevin step of an energy; without it, scoring takes less than half the time.
        step_size: of that step; None for the one used in training.
    Raises:
        FileError: an energy's file does not say how to sample from it; an operation has no form in ONNX, or one that
            computes something else.
        UserError: the step size is not a number above 0, or there is no step.
    """
    head = model.spec.head
    gradient = sampler and head is not None
    if step_size is not None and not gradient:
        raise UserError(f"step size {step_size}: there is no Langevin step in this file; leave it out")
    constants = constants_of(header, model.origin or f"the {model.target}'s file", step_size) if gradient else None
    images, noise = looked_at(model.spec.input_shape)
    run, answers = _made(model, images, gradient=gradient, kept=True)
    inputs = {"images": images}
    if head is not None and constants is None:
        run = _Energy(run, head)
    elif head is not None and constants is not None:
        run, inputs["noise"] = _Step(run, head, constants), noise

    def outputs(logits: Tensor, slope: Tensor | None) -> dict[str, Tensor]:
        if head is None:
            return {"logits": logits}
        if constants is None or slope is None:
            return {"energy": HEADS[head](logits), "logits": logits}
        return {"energy": HEADS[head](logits), "next": langevin_step(images, slope, noise, constants), "logits": logits}

    wanted, *near = (outputs(*answer) for answer in answers)
    still = answers[0][1]
    resting = {} if still is None else {"next": outputs(answers[0][0], torch.zeros_like(still))["next"]}
    hidden = ["logits"] if model.target == "ebm" else []  # an EBM's logits mean nothing by themselves
    content, exact = _checked(run, inputs, wanted, model, near=near, resting=resting, hidden=hidden)
    files.write_bytes(path, content)
    if model.activations and (off := _off_by_kernels(content, exact, inputs, resting)) > TIES:
        print(
            f"{path}: with onnxruntime's int8 kernels, outputs are off by {off:.2g} of their spread here (biases are "
            f"rounded and, on processors without VNNI, sums saturate); set the session option {FLOAT_KERNELS[0]} to "
            f"{FLOAT_KERNELS[1]}, or quantize to 7 bits",
            flush=True,
        )


def _off_by_kernels(content: bytes, exact: Any, given: Mapping[str, Tensor], resting: Mapping[str, Tensor]) -> float:
    """How far off onnxruntime's int8 kernels are here, as a fraction of how much outputs differ from image to image."""
    inputs = {name: value.numpy() for name, value in given.items()}
    names = [output.name for output in exact.get_outputs()]
    pairs = zip(names, exact.run(names, inputs), _session_of(content, kernels=True).run(names, inputs), strict=True)
    off = 0.0
    for name, *both in pairs:
        wanted, actual = (torch.from_numpy(part).double() for part in both)
        spread = float((wanted - resting.get(name, wanted.mean(0))).norm())
        off = max(off, float((actual - wanted).norm()) / max(spread, 1e-12))
    return off


def gradient_session(model: Model) -> Any:
    """Make the onnxruntime session of the energy's gradient graph, images -> logits, gradients.

    Weights are decoded; int8 models round their activations where they round in torch, and nowhere else.

    Raises:
        FileError: an operation has no form in ONNX, or one that computes something else.
    """
    images, _ = looked_at(model.spec.input_shape)
    run, answers = _made(model, images, gradient=True, kept=False)
    wanted, *near = ({"logits": logits, "gradient": slope} for logits, slope in answers if slope is not None)
    return _checked(run, {"images": images}, wanted, model, near=near, largest_folded=LARGEST_UNPACKED)[1]


def _session_of(content: bytes, *, kernels: bool = False) -> Any:
    """An onnxruntime.InferenceSession on one thread.

    Args:
        kernels: compute in int8, as sessions do by default. On processors without VNNI, these kernels saturate their
            sums.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # otherwise it warns about each constant that it folds
    if not kernels:  # round, but compute in float
        options.add_session_config_entry(*FLOAT_KERNELS)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def looked_at(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Images on which two ways of computing a network are compared, half of them noise and half smooth, and standard
    normal noise of the same shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(LOOKED_AT, *shape, generator=generator) * 2 - 1
    coarse = torch.rand(LOOKED_AT // 2, shape[0], 3, 3, generator=generator) * 2 - 1
    smooth = nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    images[: len(smooth)] = 0.9 * smooth + 0.1 * images[: len(smooth)]  # no two pixels alike, so that maxima are unique
    return images, torch.randn(images.shape, generator=generator)


def _with_room_for_biases(model: Model) -> Model:
    """Give weights that are tiny beside their bias a larger scale, as those of a dead channel.

    onnxruntime's int8 kernels count a bias in steps of the input's scale times the weight's scale, in 32 bits, and
    clip what exceeds these: the channel would lose its bias. One such step is less than a billionth of the bias.
    """
    tensors = dict(model.tensors)
    for key, encoded in model.tensors.items():
        layer = key.removesuffix(".weight")
        steps = [
            scale
            for name, (scale, _, _) in model.activations.items()
            if name.endswith(":in") and name.split(":")[0] == layer and ":gradient" not in name
        ]
        names = {key, *(name for name, first in model.tied.items() if first == key)}
        biases = [model.tensors.get(name.removesuffix("weight") + "bias") for name in names]
        if not isinstance(encoded, Int8) or not steps:
            continue
        for bias in biases:
            if bias is None or bias.shape != encoded.scale.shape:  # from a damaged file: it fits no network
                continue
            scale = torch.maximum(encoded.scale, bias.decode().abs() / (min(steps) * LARGEST_BIAS))
            if not torch.equal(scale, encoded.scale):
                along = (encoded.scale / scale).view(-1, *[1] * (encoded.values.ndim - 1))
                encoded = replace(encoded, values=(encoded.values * along).round().to(torch.int8), scale=scale)
        tensors[key] = encoded
    return replace(model, tensors=tensors)


def _made(
    model: Model, images: Tensor, *, gradient: bool, kept: bool
) -> tuple[nn.Module, list[tuple[Tensor, Tensor | None]]]:
    """Make the module to export, images -> logits, or logits and gradients. Also return torch's answers to these
    images; for int8 models, also those to almost the same images.

    Args:
        kept: make it for a file: weights stay coded, and int8 models round wherever onnxruntime's kernels do.
    """
    if model.activations:
        model = _with_room_for_biases(model) if kept else model
        prepared = int8.restore(model, gradient=gradient, outputs=kept)
        next_to = images + NEAR * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            answers = [prepared(batch) for batch in (images, next_to)]  # before the graph is converted in place
        return _int8_graph(prepared, model), answers if gradient else [(logits, None) for logits in answers]
    network = dense_network(model)
    if not gradient:
        with torch.no_grad():
            logits = network(images)
        return (_Decoded(network, model) if kept else network), [(logits, None)]
    assert model.spec.head is not None
    with torch.no_grad():  # no second derivatives
        logits, slope = logits_and_gradient(network, model.spec.head, images)
    graph = gradient_graph(network, model.spec.head, model.spec.input_shape)
    return (_Decoded(graph, model) if kept else graph), [(logits.detach(), slope)]


def _checked(
    run: nn.Module,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    model: Model,
    *,
    near: Sequence[Mapping[str, Tensor]] = (),
    resting: Mapping[str, Tensor] = {},
    hidden: Collection[str] = (),
    largest_folded: int = LARGEST_FOLDED,
) -> tuple[bytes, Any]:
    """Export a module to ONNX and check that onnxruntime computes the wanted outputs with it. Return the file's content
    and its session.

    Args:
        given, wanted: inputs and outputs by their names in the file.
        near: outputs that are equally good, but for ties in rounding.
        resting: what outputs would be if nothing were computed: their spread is measured from there.
        hidden: outputs to leave out of the file.
    Raises:
        FileError: it has no ONNX form, or onnxruntime computes something else, where the message names the operation;
            or its weights are too large for a file, or its outputs not finite.
    """
    where = model.origin or model.spec.name
    program = _traced(run, given, list(wanted), where)
    program.model.graph.outputs[:] = [value for value in program.model.graph.outputs if value.name not in hidden]
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > LARGEST_FILE:
        raise FileError(f"{where}: {size:,} bytes of weights; an ONNX file has at most 2 GiB. Nothing is written")
    content = _trimmed(program.model, largest_folded=largest_folded)
    names = [name for name in wanted if name not in hidden]
    try:
        inputs = {name: value.numpy() for name, value in given.items()}
        session = _session_of(content)
        actual = dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # onnxruntime's own, without a common base class
        raise FileError(f"{where}: onnxruntime does not run it: {one_line(error)}; nothing is written") from None
    own: dict[str, float] = {}  # computed only if anything is off
    for name in names:
        if not wanted[name].isfinite().all():
            raise FileError(f"{where}: its output `{name}` is not finite, in torch either; nothing is written")
        right = wanted[name].double()  # so that squares do not overflow
        rest = resting.get(name, right.mean(0))
        same = actual[name].shape == right.shape
        off = float((torch.from_numpy(actual[name]) - right).norm()) if same else math.inf
        spread = float((right - rest).norm())
        ties = max((2 * float((other[name] - right).norm()) for other in near), default=0.0)
        bound = max((TIES if model.activations else OFF) * spread, ties)
        if same and _beyond_rounding(torch.from_numpy(actual[name]), right) <= bound:
            continue
        if not own:
            own = _own_errors(run, given, list(wanted), resting, TIES_MOST if model.activations else networks.MOST)
        if not off <= max(bound, own.get(name, 0.0) * spread):
            raise FileError(
                f"{where}: onnxruntime's output `{name}` is off by {off / (spread or 1):.3g} of its spread, "
                f"{_first_to_differ(run, given, list(wanted), where)}; nothing is written"
            )
    return content, session


def _beyond_rounding(found: Tensor, wanted: Tensor) -> float:
    """The norm of a difference, of each output no more than what rounding errors of ROUNDED_OFF cannot explain.

    Each by its own size: a class's mask of -1e9 explains nothing of the others, and of outputs that are nearly the same
    for all images rounding may be most of what differs.
    """
    parts = (found.double() - wanted, wanted)
    off, size = ((part if part.ndim == 2 else part.reshape(-1, 1)).norm(dim=0) for part in parts)  # images are one
    return float((off - ROUNDED_OFF * size).clamp_min(0).norm())


def _own_errors(
    run: nn.Module, given: Mapping[str, Tensor], outputs: list[str], resting: Mapping[str, Tensor], most: float
) -> dict[str, float]:
    """How far rounding errors may move each output, as a fraction of its spread."""

    def of_images(images: Tensor) -> list[Tensor]:
        results = run(images, *list(given.values())[1:])
        parts = dict(zip(outputs, [results] if isinstance(results, Tensor) else results, strict=True))
        moved = {name: parts[name] - rest - (images - given["images"]) for name, rest in resting.items()}
        return [part.double() - part.double().mean(0) for part in (parts | moved).values()]

    with torch.no_grad():
        return dict(zip(outputs, networks.sensitivity(of_images, given["images"], most), strict=True))


def _traced(run: nn.Module, given: Mapping[str, Tensor], outputs: list[str], where: str) -> Any:
    """Return the ONNX form, a torch.onnx.ONNXProgram, of a module whose inputs are all batches of images.

    Raises:
        FileError: there is none; the message names the operation.
    """
    shapes = ({0: torch.export.Dim("batch")},) * len(given)
    images = tuple(value[:2].clone() for value in given.values())  # one tensor given twice would become one input
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = export_module(run, images)
            if any(node.target in FORWARD for node in exported.graph.nodes):
                exported = exported.run_decompositions(FORWARD)
            _with_heads(exported.graph)
            program = torch.onnx.export(
                exported,
                input_names=list(given),
                output_names=outputs,
                dynamic_shapes=shapes,  # again, to name the batch dimension
                opset_version=OPSET,
                optimize=False,  # it would unpack the weights into the file
                verbose=False,
            )
    except Exception as error:  # torch raises nearly anything here
        raise FileError(f"{where}: no ONNX form: {_culprit(error)}; nothing is written") from None
    assert program is not None
    return program


def _with_heads(graph: Graph) -> None:
    """Give attention that has its heads among the batch a dimension of one head, in place: ONNX wants four."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in [node for node in graph.nodes if node.target is attention and node.meta["val"].ndim == 3]:
        before: list[Node] = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, Node)]
        for arg in dict.fromkeys(arg for arg in before if arg.meta["val"].ndim == 3):  # in order: files are the same
            node.replace_input_with(arg, _added(graph, torch.ops.aten.unsqueeze.default, arg, before=node))
        node.meta["val"] = node.meta["val"].unsqueeze(1)
        squeezed = _added(graph, torch.ops.aten.squeeze.dim, node, before=node.next)
        node.replace_all_uses_with(squeezed, delete_user_cb=lambda user, kept=squeezed: user is not kept)


def _added(graph: Graph, operation: Any, of: Node, *, before: Node) -> Node:
    """A new node, operation(of, 1)."""
    with graph.inserting_before(before):
        new = graph.call_function(operation, (of, 1))
    new.meta["val"] = operation(of.meta["val"], 1)
    return new


def _culprit(error: Exception) -> str:
    """Say which operation has no ONNX form, as far as torch's chain of exceptions tells."""
    chain = [error]
    while isinstance(cause := chain[-1].__cause__, Exception):
        chain.append(cause)
    for each in reversed(chain):
        if match := re.search(r"op='([\w.]+)'|torch\.ops\.([\w.]+)", str(each)):
            return f"{match[1] or match[2]} has none"
    return reason_of(chain[-1])


def _first_to_differ(run: nn.Module, given: Mapping[str, Tensor], outputs: list[str], where: str) -> str:
    """Say in words from which operation on onnxruntime differs from torch."""
    program = _traced(run, given, outputs, where)
    recorder = _Recorder(program.exported_program.module())
    recorder.run(*given.values())
    there = {value.name for node in program.model.graph for value in node.outputs}
    names = [name for name in recorder.values if name in there]
    for name, actual in zip(names, program.compute_values(names, tuple(given.values())), strict=True):
        operation, wanted = recorder.values[name]
        if actual.shape != wanted.shape or not (actual - wanted).norm() <= OFF * wanted.norm():
            return f"from {operation} on"
    return "though no operation does by itself"


class _Recorder(Interpreter):
    """Keep every float tensor that a graph computes, with its operation, by the name of its node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, tuple[str, Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            operation = n.args[0] if n.target is operator.getitem else n  # one of several outputs
            self.values[n.name] = (str(operation.target), value.detach())  # type: ignore[union-attr]
        return value


def _trimmed(model: Any, *, largest_folded: int = LARGEST_FOLDED) -> bytes:
    """Return the file without what only the exporter needs: notes on every node, long names, constants in many nodes.

    Args:
        model: onnx_ir.Model.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants, optimize_ir

    limits: Any = {"input_size_limit": largest_folded, "output_size_limit": 4 * largest_folded}
    passes.InlinePass()(model)
    if len(model.graph) <= REWRITTEN:
        optimize_ir(model, **limits)
    else:
        fold_constants(model, **limits)
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedOpsetsPass()(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.LiftSubgraphInitializersToMainGraphPass()(model)
        passes.DeduplicateInitializersPass()(model)
        passes.CommonSubexpressionEliminationPass()(model)
    _without_flips(model)
    _with_zeros_that_count(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)
    interface = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    inner = [value for node in model.graph for value in node.outputs if value.name not in interface]
    for number, value in enumerate(inner):
        value.name, value.type, value.shape = f"{number:x}", None, None
    for node in model.graph:
        node.name = None
    return bytes(_proto(model).SerializeToString(deterministic=True))


def _without_flips(model: Any) -> None:
    """Replace slices with steps of -1, which some tools refuse, by gathers in reverse order, in place.

    Args:
        model: onnx_ir.Model.
    """
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    orders: dict[int, Any] = {}  # by length
    for node in list(model.graph):
        if node.op_type != "Slice" or len(node.inputs) < 5 or node.inputs[4].const_value is None:
            continue
        steps, axes = (node.inputs[place].const_value.numpy().tolist() for place in (4, 3))
        if any(step != -1 for step in steps):
            continue
        value, gathers = node.inputs[0], []
        shape = node.outputs[0].shape
        for axis in axes:
            length = int(shape[axis])
            if length not in orders:
                tensor = ir.tensor(list(range(length - 1, -1, -1)), dtype=ir.DataType.INT64, name=f"reverse{length}")
                orders[length] = ir.val(tensor.name, const_value=tensor)
                model.graph.register_initializer(orders[length])
            gather = ir.node("Gather", [value, orders[length]], attributes={"axis": axis})
            value = gather.outputs[0]
            value.type, value.shape = node.outputs[0].type, shape
            gathers.append(gather)
        replace_nodes_and_values(model.graph, node, [node], gathers, node.outputs, [value])


def _with_zeros_that_count(model: Any) -> None:
    """Pad with the smallest normal float above 0 instead of 0 where a maximum is taken of the result, in place.

    onnxruntime (1.31, its pull request 18136) makes padding with zeros part of the pooling, which then ignores them.

    Args:
        model: onnx_ir.Model.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type != "Pad" or not any(user.op_type == "MaxPool" for user, _ in node.outputs[0].uses()):
            continue
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None or (value.const_value is not None and not value.const_value.numpy().any()):
            least, name = torch.finfo(torch.float32).tiny, f"{node.outputs[0].name}_around"
            tensor = ir.tensor(least, dtype=ir.DataType.FLOAT, name=name)
            around = ir.val(name, const_value=tensor)
            model.graph.register_initializer(around)
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, around)


def _proto(model: Any) -> Any:
    import onnx_ir

    return onnx_ir.to_proto(model)
