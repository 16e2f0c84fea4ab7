"""A stored model as one ONNX file that onnxruntime runs without this project.

Its weights stay as small as in the model file: the graph itself unpacks bits, looks up codewords, scatters sparse
values and rescales int8, which onnxruntime does once, when it loads the file. int8 models keep rounding their
activations (QuantizeLinear and DequantizeLinear around every layer), for which onnxruntime has int8 kernels.

Inputs and outputs, all float32:

    classifier      images (batch, c, h, w) in [-1, 1] -> logits (batch, classes)
    ebm, jem        images, noise (batch, c, h, w) -> energy (batch,), next (batch, c, h, w); a jem also logits
                    or, without the sampler, images -> energy; a jem also logits

`next` is one Langevin step from `images`: noise is standard normal, the sampler's constants are in the graph.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Node

from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.base.params import Sampler
from lowenergy.energies import HEADS
from lowenergy.energies.gradient import gradient_graph
from lowenergy.runtimes import int8
from lowenergy.runtimes.loading import dense_network
from lowenergy.runtimes.sampling import constants_of
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, Int8, Sparse, pack_bits

OPSET = 20
LARGEST_FOLDED = 64  # bytes of a constant that may be computed ahead; more, and coded weights would be unpacked
LARGEST_UNPACKED = 2**30  # where the graph is not kept, all of them


# -- weights that the graph decodes -----------------------------------------------------------------------------------


class _Bits(nn.Module):
    """(n,) integers of a few bits each, from bytes."""

    def __init__(self, codes: Tensor, bits: int) -> None:
        super().__init__()
        self.count, self.bits = len(codes), bits
        self.register_buffer("packed", pack_bits(codes, bits))

    def forward(self) -> Tensor:
        assert isinstance(self.packed, Tensor)
        # Division and remainder: runtimes disagree on which shifts they have.
        byte = self.packed.int()[:, None]
        planes = (byte // torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)) % 2  # highest bit first
        places = torch.tensor([2**place for place in range(self.bits - 1, -1, -1)], dtype=torch.int32)
        return (planes.flatten()[: self.count * self.bits].view(self.count, self.bits) * places).sum(1)


class _Stored(nn.Module):
    """One tensor of the network, decoded by the graph."""

    def __init__(self, encoded: Encoding) -> None:
        super().__init__()
        self.encoded = encoded
        if isinstance(encoded, Dense):
            self.register_buffer("values", encoded.values)
        elif isinstance(encoded, Sparse):
            present = (encoded.decode() != 0).flatten()
            self.bits = _Bits(present.long(), 1)
            self.register_buffer("values", torch.cat([torch.zeros(1), encoded.values[encoded.values != 0]]))
        elif isinstance(encoded, Coded):
            self.bits = _Bits(encoded.codes, encoded.bits)
            self.register_buffer("values", encoded.codebook)

    def forward(self) -> Tensor:
        encoded, values = self.encoded, self._buffers.get("values")
        if isinstance(encoded, Constant):
            return torch.full(encoded.shape, encoded.value)
        assert values is not None
        if isinstance(encoded, Dense):
            return values.float() if values.is_floating_point() else values
        if isinstance(encoded, Sparse):
            present = self.bits()
            return values[torch.cumsum(present, 0) * present].view(encoded.values.shape)  # place 0 holds the zero
        if isinstance(encoded, Coded):
            return values.float()[self.bits()].view(encoded.shape)
        raise TypeError(f"no graph for {encoded.kind} weights")


class _Decoded(nn.Module):
    """The network, or its graph with the gradient, with each tensor decoded from how it is stored."""

    def __init__(self, model: Model, *, gradient: bool) -> None:
        super().__init__()
        network: nn.Module = dense_network(model)
        if gradient:
            assert model.spec.head is not None
            network = gradient_graph(network, model.spec.head, model.spec.input_shape)
        self.hidden = [network]  # in a list, its own weights stay out of the file
        used = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        self.names = [name for name in model.tensors if name in used]
        self.stored = nn.ModuleList(_Stored(model.tensors[name]) for name in self.names)

    def forward(self, images: Tensor) -> Any:
        state = {name: stored() for name, stored in zip(self.names, self.stored, strict=True)}
        return functional_call(self.hidden[0], state, (images,))


class _Int8(nn.Module):
    """int8 weights as such, or from fewer bits."""

    def __init__(self, encoded: Int8) -> None:
        super().__init__()
        self.shape = encoded.values.shape
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
        return (self.bits() - self.offset).to(torch.int8).view(self.shape)


def _int8_graph(model: Model, *, gradient: bool, outputs: bool = True) -> GraphModule:
    """The converted graph with the file's integers in it once, where a layer and its pullback both use them."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph = convert_pt2e(int8.restore(model, gradient=gradient, outputs=outputs), fold_quantize=False)
    quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
    stored: dict[str, Node] = {}
    for node in [n for n in graph.graph.nodes if n.target is quantize]:
        path = [node]
        while path[-1].op != "get_attr":
            path.append(path[-1].args[0])
        weight = path[-1].target
        if weight not in stored:
            encoded = model.tensors[weight]
            assert isinstance(encoded, Int8)
            name = f"stored{len(stored)}"
            graph.add_submodule(name, _Int8(encoded))
            with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
                stored[weight] = graph.graph.call_module(name)
        if len(path) == 2:  # weight -> quantize
            node.replace_all_uses_with(stored[weight])
        else:  # weight -> division by the scale -> flips, permutations -> quantize at scale 1: all of it moves integers
            path[-2].replace_all_uses_with(stored[weight])
            node.replace_all_uses_with(path[1])
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in {name for name, _ in (*graph.named_parameters(), *graph.named_buffers())} - used:
        if not name.startswith("stored"):
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    graph.recompile()
    return graph


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
    """Energy, the images after one Langevin step (energies/langevin.py), logits."""

    def __init__(self, network: nn.Module, head: str, constants: Sampler) -> None:
        super().__init__()
        self.network, self.head, self.constants = network, head, constants

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, gradient = self.network(images)
        c = self.constants
        moved = images - c.step_size * gradient.clamp(-c.gradient_clamp, c.gradient_clamp) + c.noise * noise
        return HEADS[self.head](logits), moved.clamp(-1, 1), logits


def export(
    model: Model, header: Mapping[str, Any], path: str | Path, *, sampler: bool = True, step_size: float | None = None
) -> None:
    """Write the model, as read from its file, to the ONNX file `path`, atomically.

    Args:
        sampler: of an energy, with the Langevin step; without, scoring takes less than half the time.
        step_size: of that step; None: as it was trained.
    Raises:
        FileError: an energy's file does not say how to sample from it, or a layer has no form in ONNX.
        UserError: the step size is no number above 0, or there is no step.
    """
    head = model.spec.head
    gradient = sampler and head is not None
    if step_size is not None and not gradient:
        raise UserError(f"step size {step_size}: there is no Langevin step in this file; leave it out")
    network: nn.Module = (_int8_graph if model.activations else _Decoded)(model, gradient=gradient)
    run, names, outputs = network, ["images"], ["logits"]
    if head is not None and not sampler:
        run, outputs = _Energy(network, head), ["energy", "logits"]
    elif head is not None:
        run = _Step(network, head, constants_of(header, f"the {model.target}'s file", step_size))
        names, outputs = ["images", "noise"], ["energy", "next", "logits"]
    program = _traced(run, names, outputs, model)
    if model.target == "ebm":  # its logits mean nothing by themselves
        program.graph.outputs[:] = [value for value in program.graph.outputs if value.name != "logits"]
    files.write_bytes(path, _trimmed(program))


def gradient_bytes(model: Model) -> bytes:
    """The energy's gradient graph as ONNX, images -> logits, gradients: for a session of our own, not for a file.

    Weights are decoded; int8 models round their activations where they round in torch, and nowhere else.
    """
    assert model.spec.head is not None
    if model.activations:
        graph: nn.Module = _int8_graph(model, gradient=True, outputs=False)
    else:
        graph = gradient_graph(dense_network(model), model.spec.head, model.spec.input_shape)
    return _trimmed(_traced(graph, ["images"], ["logits", "gradient"], model), largest_folded=LARGEST_UNPACKED)


def _traced(run: nn.Module, names: list[str], outputs: list[str], model: Model) -> Any:
    """The ONNX form, an onnx_ir.Model, of a module whose inputs are all batches of images."""
    images, batch = torch.zeros(2, *model.spec.input_shape), {0: torch.export.Dim("batch")}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                run,
                tuple(images.clone() for _ in names),  # one tensor given twice would become one input
                input_names=names,
                output_names=outputs,
                dynamic_shapes=(batch,) * len(names),
                opset_version=OPSET,
                optimize=False,  # it would unpack the weights into the file
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise FileError(f"{model.spec.name}: no ONNX form: {error}") from None
    assert program is not None
    return program.model


def _trimmed(model: Any, *, largest_folded: int = LARGEST_FOLDED) -> bytes:
    """The file's bytes without what only the exporter needs: notes on every node, long names, constants in many nodes.

    Args:
        model: onnx_ir.Model.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
    from onnxscript.optimizer import optimize_ir

    optimize_ir(model, input_size_limit=largest_folded, output_size_limit=4 * largest_folded)
    DeduplicateInitializersPass()(model)
    ClearMetadataAndDocStringPass()(model)
    given = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    inner = [value for node in model.graph for value in node.outputs if value.name not in given]
    for number, value in enumerate(inner):
        value.name, value.type, value.shape = f"{number:x}", None, None
    for node in model.graph:
        node.name = None
    return bytes(_proto(model).SerializeToString(deterministic=True))


def _proto(model: Any) -> Any:
    import onnx_ir

    return onnx_ir.to_proto(model)
