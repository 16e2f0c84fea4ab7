"""Turn a model file into a directory of C that compiles anywhere, written completely or not at all."""

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError
from lowenergy.runtimes.c import emit, integers, memory, operations, reference, trace
from lowenergy.runtimes.c.memory import NoPlanError, Plan
from lowenergy.runtimes.c.operations import Conv, Program
from lowenergy.runtimes.loading import dense_network
from lowenergy.runtimes.sampling import constants_of
from lowenergy.storage.artifact import Model

HERE = Path(__file__).parent
CORTEX_M7 = ["arm-none-eabi-gcc", "-mthumb", "-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard"]
COMPILERS = {  # each with the tool that prints sizes
    "gcc": (["gcc", "-DMODEL_LANES=1"], "size"),
    "clang": (["clang", "-DMODEL_LANES=1"], "size"),
    "cortex-m7": (CORTEX_M7, "arm-none-eabi-size"),
}
BUILT = "main"  # what the Makefile makes, besides object files
LARGEST_COMPILED = 2**21  # bytes of constants; more compile slowly and outweigh the code anyway


def planned(model: Model, *, ram: int | None = None, sampler: bool = True) -> Plan:
    """Return the operations of a model and where in memory they work.

    Args:
        ram: bytes that the arena (with one lane) and the stack may take together; None for the fastest plan.
        sampler: whether to include the input gradient, if the model is an energy.
    Raises:
        UserError: an operation has no C form, or no plan fits into `ram`.
    """
    head = model.spec.head
    traced = trace.trace(dense_network(model), head, model.spec.input_shape, gradient=sampler and head is not None)
    program = replace(operations.lower(traced, model.spec.input_shape), classes=model.target != "ebm")
    _check(program, traced, model.spec.input_shape)
    if model.activations:
        program = integers.with_integers(program, model.tensors, model.activations)
    return within(program, ram)


def _check(program: Program, traced: trace.Trace, input_shape: tuple[int, int, int]) -> None:
    """Check that the operations compute what the network does, on one image.

    Raises:
        UserError: they do not.
    """
    image = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def outputs(image: Tensor) -> list[Tensor]:
        found = Interpreter(traced.graph).run(*traced.weights.values(), image)
        return [part.clamp(-operations.LARGEST, operations.LARGEST) for part in found]

    wanted = outputs(image)
    computed = [np.array(part) for part in reference.run(program, {}, image[0].numpy()) if part is not None]
    pairs = [(torch.from_numpy(part).view_as(right), right) for part, right in zip(computed, wanted, strict=True)]
    off = [networks.distance(*pair) for pair in pairs]
    if all(by <= networks.SAME for by in off):
        return
    bounds = networks.sensitivity(outputs, image)
    if not all(by <= bound for by, bound in zip(off, bounds, strict=True)):
        raise UserError(f"no C form: it would differ from the network by {max(off):.2g}; export it as ONNX")


def within(program: Program, ram: int | None) -> Plan:
    """Plan a program so that its arena and stack fit into `ram` bytes; None for the fastest plan.

    Raises:
        NoPlanError: no plan fits.
    """
    taken = stack(program)
    try:
        return memory.plan(program, None if ram is None else max(0, ram - taken))
    except NoPlanError as error:
        raise NoPlanError(ram or 0, error.smallest + taken) from None


def stack(program: Program) -> int:
    """The most bytes of stack that the C code needs: more than any model took on a Cortex-M (benchmarks/device.py).

    Convolutions keep a list of their kernel's taps there.
    """
    taps = [math.prod(operation.kernel) for operation in program.operations if isinstance(operation, Conv)]
    return 568 + 8 * max(taps, default=0)


def code(
    model: Model, header: Mapping[str, Any], *, ram: int | None = None, unpack: bool = False,
    step_size: float | None = None, sampler: bool = True,
) -> tuple[Plan, emit.Code]:  # fmt: skip
    """Return the plan and the C code of a model as read from its file; see `export` for the arguments."""
    constants, steps = None, 0
    if model.spec.head is not None and sampler:
        constants = constants_of(header, f"the {model.target}'s file", step_size)
        steps = int(header["provenance"]["sampler"].get("chain_steps", 0))
    elif step_size is not None:
        raise UserError(f"step size {step_size}: there is no Langevin step in this file; leave it out")
    plan = planned(model, ram=ram, sampler=constants is not None)
    title = f"{model.target}: {model.spec.name}, {' x '.join(map(str, model.spec.input_shape))}"
    return plan, emit.write(plan, dict(model.tensors), title=title, sampler=constants, steps=steps, unpack=unpack)


def export(
    model: Model, header: Mapping[str, Any], out: str | Path, *, ram: int | None = None, unpack: bool = False,
    step_size: float | None = None, sampler: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write model.h, model.c, main.c, Makefile and card.json into the directory `out`; return the card.

    Args:
        ram: bytes that the arena (with one lane) and the stack may take together; None for the fastest plan.
        unpack: store weights as floats, which is faster and larger; constant and int8 weights stay as they are.
        step_size: size of the Langevin step; None for the one used in training.
        sampler: whether to include the Langevin step, if the model is an energy.
    Raises:
        UserError: an operation has no C form, no plan fits into `ram`, or `step_size` is not above 0 or is given
            without a Langevin step.
        FileError: an energy's file does not say how to sample from it, or `out` holds something else.
    """
    plan, made = code(model, header, ram=ram, unpack=unpack, step_size=step_size, sampler=sampler)
    sampled = model.spec.head is not None and sampler
    example = HERE / (
        "example_sample.c" if sampled else "example_logits.c" if model.spec.head is None else "example_energy.c"
    )
    card = {
        "target": model.target,
        "architecture": model.spec.name,
        "arena_bytes": plan.bytes,
        "tile_bytes_by_lane": 4 * made.tile,
        "multiply_accumulates": plan.work,
        "computed_again": plan.work - plan.least_work,
        "constant_bytes": sum(made.constants.values()),
        "constants": made.constants,
        "stack_bytes_at_most": stack(plan.program),
        "code_bytes": _code_bytes(made),
    }
    write_whole(
        Path(out),
        {
            "model.h": made.header,
            "model.c": made.source,
            "main.c": example.read_text(),
            "Makefile": (HERE / "example.mk").read_text(),
            "card.json": json.dumps(card, indent=2) + "\n",
        },
    )
    return card


def _code_bytes(made: emit.Code) -> dict[str, int]:
    """Bytes of code at -Os for each installed compiler; exporting needs none of them."""
    code_bytes = {}
    constants = sum(made.constants.values())
    for name, (compiler, size) in COMPILERS.items():
        if constants > LARGEST_COMPILED or not shutil.which(compiler[0]) or not shutil.which(size):
            continue
        code_bytes[name] = text_bytes(made, compiler, size) - constants
    return code_bytes


def text_bytes(made: emit.Code, compiler: list[str], size: str) -> int:
    """Bytes of code and constants in model.c, compiled for size.

    Raises:
        UserError: model.c does not compile.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "model.h").write_text(made.header)
        (place / "model.c").write_text(made.source)
        files = [str(place / "model.o"), str(place / "model.c")]
        command = [*compiler, "-std=c99", "-ffp-contract=off", "-Os", "-c", "-o", *files]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            errors = [line.partition("error: ")[2] for line in compiled.stderr.splitlines() if "error: " in line]
            reason = errors[0] if errors else f"it ends with {compiled.returncode}"
            raise UserError(f"{compiler[0]} does not compile this model's C: {reason}")
        shown = subprocess.run([size, place / "model.o"], check=True, capture_output=True, text=True).stdout
        return int(shown.splitlines()[1].split()[0])


def write_whole(out: Path, files: Mapping[str, str]) -> None:
    """Write a directory of files beside `out`, then move it there, so that nobody ever sees half of it.

    Raises:
        FileError: `out` is a file, or holds files that are neither in `files` nor made of them by `make`.
    """
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file; give an empty directory or a new one")
    if out.exists() and any(p.name not in {*files, BUILT} and p.suffix != ".o" for p in out.iterdir()):
        raise FileError(f"{out}: holds other files; give an empty directory or a new one")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    old = new.with_name(f"{new.name}.old")
    try:
        new.chmod(0o777 & ~_umask())
        for name, text in files.items():
            (new / name).write_text(text)
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException as error:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(out)) from None
        raise
    with suppress(OSError):
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
