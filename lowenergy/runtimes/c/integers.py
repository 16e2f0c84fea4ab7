"""Make a program compute with integers: its int8 convolutions read bytes, and most of them write bytes.

The ranges come from the model's file (runtimes/int8.py). A byte stands for scale * (byte - zero). With fewer than 8
bits, a byte is at most 2^bits - 1. docs/device-arithmetic.md specifies the arithmetic exactly.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from lowenergy.runtimes.c.operations import Buffer, Conv, Map, Operation, Program, View, strides_of
from lowenergy.storage.encodings import Encoding, Int8, Range


def with_integers(program: Program, encodings: Mapping[str, Encoding], activations: Mapping[str, Range]) -> Program:
    """Return the program with int8 convolutions wherever the file has integer weights and an input range for one."""
    done: list[Operation] = []
    made: dict[Buffer, Buffer] = {}  # buffer of floats -> the buffer of bytes that replaces it
    ahead = program.ahead
    constants = dict(program.constants)

    def add(operation: Operation) -> None:
        done.append(operation)

    for place, operation in enumerate(program.operations):
        if place == program.ahead:
            ahead = len(done)
        operation = operation.renamed(made)
        if isinstance(operation, Conv) and _has_integers(operation, encodings, activations):
            add_conv(operation, encodings, activations, add, made, constants)
            continue
        if not isinstance(operation, Map):
            operation = _of_floats(operation, add)
        add(operation)
    if program.ahead == len(program.operations):
        ahead = len(done)
    new = replace(program, operations=done, ahead=ahead, constants=constants)
    for of in ("logits", "energy", "gradient"):
        view = getattr(new, of)
        if view is not None and view.of in made:
            out = View(Buffer(view.index.numel()), torch.arange(view.index.numel()).view(view.shape))
            done.append(Map((View(made[view.of], view.index),), out, of, (), "x0"))
            new = replace(new, **{of: out})  # type: ignore[arg-type]
    return _fused(new)


def _fused(program: Program) -> Program:
    """Remove floats that are only converted to bytes: let the operation that computes them write the bytes."""
    writers: dict[Buffer, list[Operation]] = {}
    readers: dict[Buffer, list[Operation]] = {}
    for operation in program.operations:
        writers.setdefault(operation.writes(), []).append(operation)
        for buffer in set(operation.reads()):
            readers.setdefault(buffer, []).append(operation)
    wanted = {view.of for view in (program.logits, program.energy, program.gradient) if view is not None}
    done: list[Operation] = []
    gone: set[Operation] = set()
    ahead = program.ahead
    for place, operation in enumerate(program.operations):
        if place == program.ahead:
            ahead = len(done)
        source = operation.views[0].of if isinstance(operation, Map) and operation.views else None
        if (
            isinstance(operation, Map)
            and operation.writes().kind != "float"
            and isinstance(source, Buffer)
            and source not in wanted
            and len(writers.get(source, [])) == 1
            and isinstance(before := writers[source][0], Map)
            and readers[source] == [operation]
            and before.out.index.numel() == source.size
            and (joined := _joined(before, operation)) is not None
        ):
            gone.add(before)
            operation = joined
        done.append(operation)
    if program.ahead == len(program.operations):
        ahead = len(done)
    ahead -= sum(operation in gone for operation in done[:ahead])
    return replace(program, operations=[operation for operation in done if operation not in gone], ahead=ahead)


def _joined(first: Map, last: Map) -> Map | None:
    """Join two maps into one, in the order of the last, which may have a second factor. None if no loops do that."""
    source = first.writes()
    place = torch.empty(source.size, dtype=torch.long)
    place[first.out.index.flatten()] = torch.arange(source.size)
    order = place[last.views[0].index]
    views = [View(view.of, view.index.flatten()[order]) for view in first.views]
    if any(strides_of(view.index) is None for view in views):
        return None
    result = first.result
    if len(last.views) == 2:
        result = f"({result}) * x{len(views)}"
        views.append(last.views[1])
    return replace(last, views=tuple(views), statements=first.statements, result=result)


def _has_integers(op: Conv, encodings: Mapping[str, Encoding], activations: Mapping[str, Range]) -> bool:
    return isinstance(encodings.get(op.weight), Int8) and f"{op.place}:in" in activations


def add_conv(
    op: Conv,
    encodings: Mapping[str, Encoding],
    activations: Mapping[str, Range],
    add: Callable[[Operation], None],
    made: dict[Buffer, Buffer],
    constants: dict[str, torch.Tensor],
) -> None:
    """Add the conversion of a convolution's input to bytes, then the convolution on bytes."""
    (view,) = op.views
    given = activations[f"{op.place}:in"]
    encoded = encodings[op.weight]
    assert isinstance(encoded, Int8)
    channels = op.channels[0] * op.groups
    pixels = op.size_in[0] * op.size_in[1]
    # The input in the order in which the convolution reads it: pixel by pixel, all channels of each.
    walk = op.start_in + torch.arange(pixels)[:, None] * op.step_in + torch.arange(channels)
    bytes_ = _bytes(pixels * channels, given)
    out = View(bytes_, torch.arange(pixels * channels).view(pixels, channels))
    source = View(view.of, walk)
    if op.pulled:  # the weights' scales multiply the gradient instead
        name = f"{op.weight}:scale"
        constants[name] = encoded.scale
        scales = View(name, torch.arange(channels).expand(pixels, channels))
        add(Map((source, scales), out, op.layer, (), "x0 * x1"))
    else:
        add(Map((source,), out, op.layer, (), "x0"))
    result = op.out
    assert isinstance(result.of, Buffer)
    # Gradients stay float until the next layer rounds them: rounding them twice raises a sampler's FID by 0.3.
    if f"{op.place}:out" in activations and not op.pulled:
        of_out = _bytes(result.of.size, activations[f"{op.place}:out"])
        made[result.of] = of_out
        result = View(of_out, result.index)
    read = View(bytes_, torch.arange(pixels * channels))
    add(replace(op, views=(read,), out=result, integers=True, step_in=channels, start_in=0))


def _bytes(size: int, given: Range) -> Buffer:
    return Buffer(size, "uint8_t", given.scale, given.zero, 2**given.bits - 1)


def _of_floats(op: Operation, add: Callable[[Operation], None]) -> Operation:
    """Return the operation on floats, after adding a conversion of each input that became bytes."""
    new = {}
    for view in op.views:
        if isinstance(view.of, Buffer) and view.of.kind != "float" and view.of not in new:
            floats = Buffer(view.of.size)
            whole = torch.arange(view.of.size)
            add(Map((View(view.of, whole),), View(floats, whole), op.layer, (), "x0"))
            new[view.of] = floats
    return op.renamed(new)
