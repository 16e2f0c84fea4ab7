"""The arithmetic of the C code in numpy, operation by operation and in the same order, to the same bits.

Slow and plain: it specifies what the C code must compute, with floats and with bytes (docs/device-arithmetic.md).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowenergy.runtimes.c.operations import IMAGE, Buffer, Conv, Map, MatMul, Operation, Pool, Program, Reduce, View
from lowenergy.storage.encodings import Encoding, Int8

Numbers = np.ndarray
f32 = np.float32


def run(
    program: Program, encodings: Mapping[str, Encoding], image: Numbers
) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Compute the logits, energy and gradient of one image, (c, h, w) float32, as the C code does.

    Energy and gradient are None where the program has none.
    """
    memory: dict[Any, Numbers] = {IMAGE: image.astype(f32).flatten()}
    for name, value in program.constants.items():
        memory[name] = value.detach().float().numpy().flatten() + f32(0)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        for operation in program.operations:
            _write(memory, operation.out, _computed(operation, memory, program, encodings))
    wanted = (program.logits, program.energy, program.gradient)
    logits, energy, gradient = (None if view is None else _read(memory, view) for view in wanted)
    assert logits is not None
    return logits, energy, gradient


def _read(memory: Mapping[Any, Numbers], view: View) -> Numbers:
    """The float32 values that the elements of a view stand for."""
    elements = memory[view.of][view.index.numpy()]
    if isinstance(view.of, Buffer) and view.of.kind != "float":
        return (elements.astype(np.int32) - view.of.zero).astype(f32) * f32(view.of.scale)
    return elements


def _write(memory: dict[Any, Numbers], view: View, values: Numbers) -> None:
    buffer = view.of
    assert isinstance(buffer, Buffer)
    kind = f32 if buffer.kind == "float" else np.uint8
    if buffer.kind != "float" and values.dtype != np.uint8:
        values = np.minimum(to_byte(values, buffer.scale, buffer.zero), np.uint8(buffer.most))
    memory.setdefault(buffer, np.zeros(buffer.size, kind))[view.index.numpy()] = values


def _computed(
    op: Operation, memory: Mapping[Any, Numbers], program: Program, encodings: Mapping[str, Encoding]
) -> Numbers:
    if isinstance(op, Conv):
        return _convolved(op, memory, program, encodings)
    if isinstance(op, Map):
        return _mapped(op, memory)
    values = [_read(memory, view) for view in op.views]
    if isinstance(op, Reduce):
        return _reduced(op, values[0])
    if isinstance(op, MatMul):
        a, b = values
        total = np.zeros((a.shape[0], a.shape[1], b.shape[2]), f32)
        for k in range(a.shape[2]):
            total += a[:, :, k, None] * b[:, None, k]
        return total
    assert isinstance(op, Pool)
    return _pooled(op, values)


def _mapped(op: Map, memory: Mapping[Any, Numbers]) -> Numbers:
    names: dict[str, Any] = {**FUNCTIONS, **{f"x{k}": _read(memory, view) for k, view in enumerate(op.views)}}
    for statement in op.statements:
        name, _, text = statement.split(" ", 1)[1].partition(" = ")
        names[name] = eval(_python(text.rstrip(";")), {"__builtins__": {}}, names)
    values = eval(_python(op.result), {"__builtins__": {}}, names)
    return np.broadcast_to(np.asarray(values, f32), op.out.shape)


def _python(text: str) -> str:
    """Turn a C expression of this package into a Python one, with float32 constants."""
    return re.sub(r"(?<![\w.])(\d[\d.]*(?:e[+-]?\d+)?)f\b", r"f32(\1)", text)


def _reduced(op: Reduce, x: Numbers) -> Numbers:
    rest = [d for d in range(x.ndim) if d not in op.dims]
    rows = x.transpose(*op.dims, *rest).reshape(-1, *(x.shape[d] for d in rest))
    if op.how == "largest":
        total = rows.max(0)
    else:
        total = np.zeros(rows.shape[1:], f32)
        for row in rows:
            total = total + row
    if op.factor != 1:
        total = total / f32(op.factor)
    return total.reshape(op.out.shape)


def _convolved(op: Conv, memory: Mapping[Any, Numbers], program: Program, encodings: Mapping[str, Encoding]) -> Numbers:
    """Sum from the bias on, tap by tap, and within a tap channel by channel; int8 convolutions sum integers instead."""
    inner, outer = op.channels
    source = op.views[0].of
    (height, width), (rows, columns) = op.size_in, op.size_out
    places = op.start_in + np.arange(height * width)[:, None] * op.step_in + np.arange(inner * op.groups)
    x = memory[source][places].reshape(height, width, op.groups, inner)
    weight = program.constants[op.weight].detach().float().numpy() + f32(0)
    encoded = encodings.get(op.weight)
    taps = math.prod(op.kernel)
    if op.integers:
        assert isinstance(encoded, Int8) and isinstance(source, Buffer)
        x = x.astype(np.int32) - source.zero
        weight = encoded.values.numpy().astype(np.int32)
    elif isinstance(encoded, Int8):
        weight = (encoded.values.float() * encoded.scale.view(-1, *[1] * (encoded.values.ndim - 1))).numpy() + f32(0)
    shape = (op.groups, inner, outer, taps) if op.pulled else (op.groups, outer, inner, taps)
    weight = weight.reshape(shape)
    if not op.pulled:
        weight = weight.swapaxes(1, 2)  # (groups, in, out, taps)
    total = np.zeros((rows, columns, op.groups, outer), x.dtype)
    bias = None if op.bias is None else program.constants[op.bias].detach().float().numpy() + f32(0)
    if bias is not None and not op.integers:
        total[:] = bias.reshape(op.groups, outer)
    for ky in range(op.kernel[0]):
        for kx in range(op.kernel[1]):
            into, of = zip(_meeting(rows, height, ky, op, 0), _meeting(columns, width, kx, op, 1), strict=True)
            if not len(into[0]) or not len(into[1]):
                continue
            seen = x[np.ix_(*of)]
            part = total[np.ix_(*into)]
            for channel in range(inner):
                part = part + weight[:, channel, :, ky * op.kernel[1] + kx] * seen[:, :, :, channel, None]
            total[np.ix_(*into)] = part
    if not op.integers:
        return (
            total.reshape(op.out.shape)
            if len(op.out.shape) == 2
            else total.reshape(rows, columns, -1).transpose(2, 0, 1)[None]
        )
    assert isinstance(encoded, Int8) and isinstance(source, Buffer)
    factor = f32(source.scale) if op.pulled else f32(source.scale) * encoded.scale.numpy().reshape(op.groups, outer)
    values = total.astype(f32) * factor
    if bias is not None:
        values = values + bias.reshape(op.groups, outer)
    return (
        values.reshape(op.out.shape)
        if len(op.out.shape) == 2
        else values.reshape(rows, columns, -1).transpose(2, 0, 1)[None]
    )


def _meeting(out: int, size: int, tap: int, op: Conv, d: int) -> tuple[Numbers, Numbers]:
    """Return the output places along dimension `d` that a tap reaches, and the input place that each of them meets."""
    places = np.arange(out)
    if op.pulled:
        at = places + op.padding[d] - tap * op.dilation[d]
        inside = (at % op.stride[d] == 0) & (at >= 0) & (at // op.stride[d] < size)
        return places[inside], at[inside] // op.stride[d]
    at = places * op.stride[d] + tap * op.dilation[d] - op.padding[d]
    inside = (at >= 0) & (at < size)
    return places[inside], at[inside]


def _pooled(op: Pool, values: list[Numbers]) -> Numbers:
    channels, height, width = op.size_in
    back = op.how.endswith("back")
    large = np.zeros((1, channels, height, width), f32) if back else np.zeros((1, channels, *op.size_out), f32)
    for i in range(op.size_out[0]):
        for j in range(op.size_out[1]):
            top, left = i * op.stride[0] - op.padding[0], j * op.stride[1] - op.padding[1]
            ys, xs = (
                slice(max(0, top), min(height, top + op.kernel[0])),
                slice(max(0, left), min(width, left + op.kernel[1])),
            )
            if op.counted:
                ends = min(top + op.kernel[0], height + op.padding[0]), min(left + op.kernel[1], width + op.padding[1])
                count = f32((ends[0] - top) * (ends[1] - left))
            else:
                count = f32((ys.stop - ys.start) * (xs.stop - xs.start))
            if op.how == "largest":
                large[0, :, i, j] = values[0][0, :, ys, xs].max((1, 2))
            elif op.how == "mean":
                total = np.zeros(channels, f32)
                for column in values[0][0, :, ys, xs].reshape(channels, -1).T:
                    total = total + column
                large[0, :, i, j] = total / count
            elif op.how == "mean_back":
                large[0, :, ys, xs] += (values[0][0, :, i, j] / count)[:, None, None]
            else:
                window = values[1][0, :, ys, xs]
                places: Any = window.reshape(channels, -1).argmax(1)
                y, column = divmod(places, window.shape[2])
                large[0, np.arange(channels), ys.start + y, xs.start + column] += values[0][0, :, i, j]
    return large


# -- the functions of kernels.c ---------------------------------------------------------------------------------------


def to_byte(x: Numbers, scale: float, zero: int) -> Numbers:
    n = smaller(larger(x * (f32(1) / f32(scale)), f32(-512)), f32(512))
    whole = (n + f32(12582912)) - f32(12582912)
    return smaller(larger(whole + f32(zero), f32(0)), f32(255)).astype(np.uint8)


def larger(a: Any, b: Any) -> Numbers:
    return np.where(np.asarray(a) > b, a, b).astype(f32)


def smaller(a: Any, b: Any) -> Numbers:
    return np.where(np.asarray(a) < b, a, b).astype(f32)


def exponential(x: Numbers) -> Numbers:
    x = smaller(larger(x, f32(-87)), f32(88))
    n = (x * f32(1.44269504) + f32(12582912)) - f32(12582912)
    r = (x - n * f32(0.693359375)) + n * f32(2.12194440e-4)
    y = np.full_like(r, f32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + f32(c)
    y = (y * r) * r + r + f32(1)
    return y * ((n.astype(np.int32) + 127).astype(np.uint32) << np.uint32(23)).view(f32)


def sigmoid(x: Numbers) -> Numbers:
    return f32(1) / (f32(1) + exponential(-x))


def swish_slope(x: Numbers) -> Numbers:
    s = sigmoid(x)
    return s * (f32(1) + x * (f32(1) - s))


def tanh_of(x: Numbers) -> Numbers:
    size = np.where(x < 0, -x, x)
    e = exponential(f32(2) * size)
    y = np.where(size < f32(0.02), size - size * size * size * f32(0.33333333), f32(1) - f32(2) / (e + f32(1)))
    return np.where(x < 0, -y, y)


def logarithm(x: Numbers) -> Numbers:
    bits = np.asarray(x, f32).view(np.uint32)
    e = ((bits >> np.uint32(23)).astype(np.int32) - 126).astype(f32)
    m = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(f32)
    low = m < f32(0.707106781)
    e, m = np.where(low, e - f32(1), e), np.where(low, m + m, m) - f32(1)
    z = m * m
    y = np.full_like(m, f32(7.0376836292e-2))
    for c in (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1,
              -2.4999993993e-1, 3.3333331174e-1):  # fmt: skip
        y = y * m + f32(c)
    y = y * m * z - f32(2.12194440e-4) * e - f32(0.5) * z
    result = (m + y) + f32(0.693359375) * e
    result = np.where(bits < 0x00800000, f32(-87), result)
    return np.where(x > 0, result, np.where(x == 0, f32(-87), f32(np.nan)))


def expm1_of(x: Numbers) -> Numbers:
    y = exponential(x)
    small = np.where(y == 1, x, (y - f32(1)) * (x / logarithm(y)))
    return np.where((x > f32(-0.5)) & (x < f32(0.5)), small, y - f32(1))


def log1p_of(x: Numbers) -> Numbers:
    y = f32(1) + x
    return np.where(y == 1, x, logarithm(y) * (x / (y - f32(1))))


def root(x: Numbers) -> Numbers:
    y = (np.uint32(0x5F3759DF) - (np.asarray(x, f32).view(np.uint32) >> 1)).view(f32)
    for _ in range(3):
        y = y * (f32(1.5) - f32(0.5) * x * y * y)
    y = x * y
    return np.where(x > f32(1e-37), f32(0.5) * (y + x / y), f32(0))


def error_function(x: Numbers) -> Numbers:
    size = np.where(x < 0, -x, x)
    t = x * x
    y = np.full_like(t, f32(7.853861353e-5))
    for c in (-8.010193625e-4, 5.188327686e-3, -2.685381194e-2, 1.128358515e-1, -3.761262582e-1, 1.128379166):
        y = y * t + f32(c)
    small = x * y
    t = f32(1) / (f32(1) + f32(0.3275911) * size)
    p = f32(-1.453152027) + t * f32(1.061405429)
    for c in (1.421413741, -0.284496736, 0.254829592):
        p = f32(c) + t * p
    y = f32(1) - (t * p) * exponential(-size * size)
    return np.where(size < 1, small, np.where(x < 0, -y, y))


FUNCTIONS: dict[str, Any] = {
    "f32": f32, "choose": lambda condition, a, b: np.asarray(np.where(condition, a, b), f32),
    "to_float": lambda x: np.asarray(x).astype(f32), "larger": larger, "smaller": smaller, "exponential": exponential,
    "sigmoid": sigmoid, "swish_slope": swish_slope, "tanh_of": tanh_of, "logarithm": logarithm, "root": root,
    "error_function": error_function, "expm1_of": expm1_of, "log1p_of": log1p_of,
}  # fmt: skip
