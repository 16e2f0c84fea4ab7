"""Forecast what a model will take on a device before it exists, from its architecture, an encoding and untrained
weights."""

import math
import re
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowenergy import data, networks
from lowenergy.base.errors import UserError
from lowenergy.params import Architecture, Params, Sampler
from lowenergy.runtimes.c import directory, emit, integers, operations, trace
from lowenergy.runtimes.c.memory import NoPlanError
from lowenergy.storage.artifact import Model, dense
from lowenergy.storage.encodings import Coded, Int8, Range, Sparse

SOME_SAMPLER = Sampler(step_size=0.05, noise=0.015, gradient_clamp=5.0)


@dataclass(frozen=True)
class Forecast:
    flash: int  # constants and code
    constants: int
    ram: int  # arena and stack
    arena: int
    work: int  # multiply-accumulates for one answer or one Langevin step
    compiled: bool  # True if the code was compiled, False if its size is an estimate


@dataclass(frozen=True)
class Coding:
    """How the weights of convolutions and fully connected layers will be stored.

    Args:
        bits: bits of each integer weight; int8 models compute with these integers.
        sparse: fraction of zeros.
        codewords: number of codewords in product quantization, each of `length` weights.
    """

    bits: int | None = None
    sparse: float | None = None
    codewords: int | None = None
    length: int = 4

    def __post_init__(self) -> None:
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise UserError(f"weights of {self.bits} bits: give 2 to 8")
        if self.sparse is not None and not 0 <= self.sparse <= 1:
            raise UserError(f"{self.sparse} of the weights zero: give a share from 0 to 1")
        if (self.codewords is not None and self.codewords < 1) or self.length < 1:
            raise UserError(f"{self.codewords} codewords of {self.length} weights: give at least 1 of each")


def described(p: Params, teacher: str, student: Architecture | None = None) -> tuple[networks.Spec, str]:
    """Return the network of a teacher or of its student, for the images in the data, and its kind.

    Raises:
        FileError: there are no images yet.
    """
    splits = data.load(data.SPLITS)
    own, kind = p.teachers[teacher].architecture, p.teachers[teacher].kind
    head = {"classifier": None, "jem": "logsumexp"}.get(kind, getattr(own, "head", None))
    outputs = (getattr(own, "logits", None) or 1) if kind == "ebm" else len(splits.classes)
    if student is not None and head == "mean":
        outputs = 1  # a student is stored with its outputs averaged into one
    return networks.Spec.of(student or own, splits.input_shape, outputs, head, splits.normalisation), kind


def untrained(spec: networks.Spec, target: str, coding: Coding) -> Model:
    """Return a model with fresh weights in this coding."""
    network = networks.build(spec, seed=0).eval()
    if coding.bits is not None:
        network = networks.fold_batchnorm(network)
    model = dense(network, target)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = dict(model.tensors)
    for name in networks.coded_layers(network):
        weight = model.tensors[f"{name}.weight"].decode()
        tensors[f"{name}.weight"] = _coded(weight, coding, generator) or model.tensors[f"{name}.weight"]
    return Model(target, network.spec, tensors)


def _coded(weight: Tensor, coding: Coding, generator: torch.Generator) -> Any:
    if coding.bits is not None:
        levels = 2 ** (coding.bits - 1)
        values = torch.randint(-levels, levels, weight.shape, generator=generator).to(torch.int8)
        return Int8(values, torch.ones(len(weight)), coding.bits)
    if coding.sparse is not None:
        return Sparse(weight * (torch.rand(weight.shape, generator=generator) >= coding.sparse))
    if coding.codewords is not None:
        length = math.gcd(coding.length, weight[0].numel())
        count = weight.numel() // length
        words = max(1, min(coding.codewords, count // 4))
        codes = torch.randint(words, (count,), generator=generator)
        return Coded(codes, torch.randn(words, length, generator=generator).half(), tuple(weight.shape))
    return None


def forecast(model: Model, *, ram: int | None = None, sampler: Sampler | None = None) -> Forecast:
    """Forecast the flash, RAM and work of a model, trained or not.

    Args:
        ram: bytes that the arena and the stack may take together; None for the fastest plan.
        sampler: constants of an energy's Langevin step; None for arbitrary ones, so that the step is counted anyway.
    Raises:
        UserError: an operation has no C form, or no plan fits into `ram`.
    """
    head = model.spec.head
    network = model.build()
    traced = trace.trace(network, head, model.spec.input_shape, gradient=head is not None)
    program = operations.lower(traced, model.spec.input_shape)
    activations = dict(model.activations)
    if not activations and any(isinstance(encoded, Int8) for encoded in model.tensors.values()):
        activations = ranges(program)
    if activations:
        program = integers.with_integers(program, model.tensors, activations)
    plan = directory.within(program, ram)
    code = emit.write(
        plan,
        dict(model.tensors),
        title="",
        sampler=(sampler or SOME_SAMPLER) if head is not None else None,
        steps=0,
    )
    constants = sum(code.constants.values())
    flash = _compiled(code)
    taken = directory.stack(plan.program)
    return Forecast(
        flash or constants + _estimated(code), constants, plan.bytes + taken, plan.bytes, plan.work, flash is not None
    )


def smallest(model: Model) -> Forecast:
    """Return the forecast for the least memory that the planner finds."""
    try:
        return forecast(model, ram=1)
    except NoPlanError as error:
        return forecast(model, ram=error.smallest)


def within(model: Model, ram: int) -> Forecast:
    """Return the forecast for `ram` bytes of RAM, or for the least possible memory if that is more."""
    try:
        return forecast(model, ram=ram)
    except NoPlanError as error:
        return forecast(model, ram=error.smallest)


def ranges(program: operations.Program) -> dict[str, Range]:
    """Made-up ranges at every place where calibration will find one; their values do not change any size."""
    convolutions = [operation for operation in program.operations if isinstance(operation, operations.Conv)]
    last = next(op for op in reversed(convolutions) if not op.pulled)
    places = [f"{op.place}:{end}" for op in convolutions for end in ("in", "out") if (op, end) != (last, "out")]
    return {place: Range(0.01 * 1.01**number, number % 256) for number, place in enumerate(places)}  # no two alike


def _compiled(code: emit.Code) -> int | None:
    """Bytes of code and constants as compiled by the cross compiler; None if it is not installed."""
    compiler, size = directory.COMPILERS["cortex-m7"]
    return directory.text_bytes(code, compiler, size) if shutil.which(compiler[0]) else None


def _estimated(code: emit.Code) -> int:
    """Estimate the bytes of code without a compiler.

    This is a fit to the output of arm-none-eabi-gcc 12 for fourteen networks of the zoo in five encodings. With the
    constants added, it is within 0.3 % of the compiled size.
    """
    text = _for_one_lane(emit.CONSTANT.sub("", emit.COMMENT.sub("", code.source)))
    kernels = text[: text.find("static const struct weight")]
    loops = "".join(re.findall(r"static void (?:map|reduce|product)\d+\(.*?\n}\n", text, re.DOTALL))
    calls = len(re.findall(r"^    \w+\(", text[text.index(" forward(") :], re.MULTILINE))
    structs = 36 * text.count("static const struct conv ") + 24 * text.count("static const struct weight ")
    integers, sparse = 84 * ("convolve_bytes" in kernels), 1044 * ("place_t" in kernels)
    size = 0.578 * len("".join(kernels.split())) + 0.412 * len("".join(loops.split())) + 17.3 * calls - 1402
    return round(size) + structs - integers - sparse


def _for_one_lane(text: str) -> str:
    """Return the code that a microcontroller's compiler sees, where none of the preprocessor's conditions holds."""
    kept, seen = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            seen = not line.startswith(("#if", "#elif"))
        elif seen:
            kept.append(line)
    return "".join(kept)
