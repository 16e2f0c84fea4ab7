"""Write a program as C: constants, the sections of kernels.c that it needs, elementwise loops, and calls in order."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lowenergy.base.errors import UserError
from lowenergy.params import Sampler
from lowenergy.runtimes.c import weights
from lowenergy.runtimes.c.expressions import literal
from lowenergy.runtimes.c.memory import Plan, view_strides
from lowenergy.runtimes.c.operations import IMAGE, Buffer, Conv, Map, MatMul, Operation, Pool, Reduce, View
from lowenergy.runtimes.c.weights import PLACE, Array, Stored
from lowenergy.storage.encodings import Constant, Dense, Encoding, Int8

KERNELS = Path(__file__).with_name("kernels.c")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
CONSTANT = re.compile(r"static const \w+ w\d+_\w+\[\d+\] = \{[^}]*\};")
MOST_LANES = 16
LEAST_ROOM = 255  # the largest number that a byte holds
SECTION = re.compile(r"/\* == (\w+) == \*/\n")


@dataclass
class Code:
    """The text that is written, and the memory that its parts take."""

    header: str
    source: str
    constants: dict[str, int]  # tensor -> bytes
    tile: int  # floats in the largest tile, for one lane
    kept: int  # bytes of all decoded weights


@dataclass
class _Writer:
    plan: Plan
    encodings: dict[str, Encoding]
    unpack: bool
    arrays: dict[str, Array] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    structs: list[str] = field(default_factory=list)
    counted: int = 0  # the largest size that any struct holds
    functions: dict[str, str] = field(default_factory=dict)  # body -> name
    kept: list[int] = field(default_factory=list)  # by convolution: floats for a mark and the decoded weights after it
    ranges: list[str] = field(default_factory=list)
    most_taps: int = 1
    tile: int = 0
    zeros: int = 1
    numbers: dict[str, int] = field(default_factory=dict)  # of tensors, by name
    as_floats: set[str] = field(default_factory=set)
    as_integers: set[str] = field(default_factory=set)

    def c_name(self, name: str) -> str:
        """Return a C name that is this tensor's alone, with whatever is appended to it: neither a.b and a_b nor the
        scale of `weight` and a tensor `weight_scale` share one."""
        number = self.numbers.setdefault(name, len(self.numbers))
        return f"w{number}_" + re.sub(r"\W", "_", name)

    # -- where things are ---------------------------------------------------------------------------------------------

    def at(self, buffer: Buffer | str, offset: int = 0) -> str:
        """A C pointer to an element of a buffer, of the image or of a constant."""
        if isinstance(buffer, str):
            return self.array(buffer) + (f" + {offset}" if offset else "")
        if buffer is IMAGE:
            return "image" + (f" + {offset}" if offset else "")
        place = self.plan.offsets[buffer]
        if buffer.kind != "float":
            return f"(({buffer.kind} *)a + {place + offset})"
        place = place // 4 + offset
        return f"a + {place}" if place else "a"

    def array(self, name: str) -> str:
        """The C name of a constant whose elements are read one by one."""
        if name.endswith(":scale"):  # stored with its weight
            self.weight(name.removesuffix(":scale"))
            return self.stored[name.removesuffix(":scale")].scale
        if name not in self.arrays:
            value = self.plan.program.constants[name]
            self.arrays[name] = weights.plain(self.c_name(name), value)
        return self.arrays[name].name

    def weight(self, name: str) -> str:
        if name not in self.stored:
            encoded = self.encodings.get(name)
            value = self.plan.program.constants[name]
            if encoded is None or (self.unpack and not isinstance(encoded, Constant | Int8)):
                encoded = Dense(value)
            self.stored[name] = weights.stored(self.c_name(name), encoded)
        return f"{self.stored[name].name}_stored"

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, operation: Operation) -> str:
        if isinstance(operation, Conv):
            return self.conv(operation)
        if isinstance(operation, Map):
            return self.map(operation)
        if isinstance(operation, Reduce):
            return self.reduce(operation)
        if isinstance(operation, MatMul):
            return self.matmul(operation)
        assert isinstance(operation, Pool)
        return self.pool(operation)

    def conv(self, op: Conv) -> str:
        self.most_taps = max(self.most_taps, math.prod(op.kernel))
        self.tile = max(self.tile, op.tile)
        self.zeros = max(self.zeros, op.channels[0])
        (self.as_integers if op.integers else self.as_floats).add(op.weight)
        self.count(*op.kernel, *op.stride, *op.padding, *op.dilation, most=LEAST_ROOM)
        inner, outer = op.channels
        bias = self.array(op.bias) if op.bias else "0"
        numbers = [op.groups, inner, outer, *op.size_in, *op.size_out, op.step_in, outer * op.groups]
        self.count(*numbers)
        pairs = ", ".join(f"{{{a}, {b}}}" for a, b in (op.kernel, op.stride, op.padding, op.dilation))
        body = f"&{self.weight(op.weight)}, {bias}, {', '.join(map(str, numbers))}, {pairs}, {int(op.pulled)}"
        if body not in self.structs:
            self.structs.append(body)
            blocks = op.groups * -(-outer // MOST_LANES)
            self.kept.append(MOST_LANES * (1 + blocks * op.tile))
        number = self.structs.index(body)
        name = f"conv{number}"
        x, y = self.at(op.views[0].of, op.start_in), self.at(op.out.of)
        tile = f"TILE({-(-self.plan.tiles[op] // 4)}, {self.kept_at(number)})"
        if op.integers:
            return self.conv_of_bytes(op, name, tile)
        if not op.line:
            return f"convolve(&{name}, {x}, {y}, {tile}, 0, {op.size_out[0]});"
        order = "conv_up" if op in self.plan.descending else "conv_down"
        return f"{order}(&{name}, {x}, {y}, {tile});"

    def count(self, *numbers: int, most: int = 2**31 - 1) -> None:
        """Note the largest of the numbers that go into a struct.

        Raises:
            UserError: it is above `most`, so the struct has no room for it.
        """
        largest = max(numbers)
        if largest > most:
            raise UserError(f"a kernel, stride, padding or dilation of {largest}: code in C has room for {most}")
        self.counted = max(self.counted, largest)

    def kept_at(self, number: int) -> int:
        """Offset, in floats, of a convolution's decoded weights where they are kept."""
        return sum(self.kept[:number])

    def conv_of_bytes(self, op: Conv, name: str, tile: str) -> str:
        given, out = op.views[0].of, op.out.of
        assert isinstance(given, Buffer) and isinstance(out, Buffer)
        ends = (1 / np.float32(out.scale), float(out.zero)) if out.kind != "float" else (0.0, 0.0)
        numbers = ", ".join(literal(n) for n in (given.scale, *ends))
        body = f"{{{numbers}, {given.zero}}}"
        if body not in self.ranges:
            self.ranges.append(body)
        rows = f"&{name}, &range{self.ranges.index(body)}, {self.at(given)}, {self.at(out)}, {tile}"
        if not op.line:
            return f"convolve_bytes({rows}, 0, {op.size_out[0]});"
        start, step = (f"row = {op.size_out[0]}; row-- > 0;", "") if op in self.plan.descending else (
            f"row = 0; row < {op.size_out[0]};", " row++")  # fmt: skip
        loop = f"for ({start}{step})\n            convolve_bytes({rows}, row, row + 1);"
        return f"{{\n        int row;\n        {loop}\n    }}"

    def map(self, op: Map) -> str:
        out, views = op.out, list(op.views)
        assert isinstance(out.of, Buffer)
        shared = [
            view.of is not IMAGE and isinstance(view.of, Buffer)
            and self.plan.offsets[view.of] == self.plan.offsets[out.of] and bool((view.index == out.index).all())
            and (view.of.size, view.of.kind) == (out.of.size, out.of.kind) for view in views
        ]  # fmt: skip
        sizes, grids = _collapsed(out.shape, [view_strides(view) for view in (out, *views)])
        flat = len(sizes) == 1 and all(strides in ([0], [1]) for _, strides in grids)
        loops, places = [], []
        letters = "ijklmnop"
        for d, size in enumerate(sizes):
            limit = "n" if flat else str(size)
            loops.append(f"{'    ' * (d + 1)}for ({letters[d]} = 0; {letters[d]} < {limit}; {letters[d]}++)\n")
        for _, strides in grids:
            terms = [
                letters[d]
                if stride == 1
                else f"{letters[d]} * {stride}"
                if stride > 0
                else f"{letters[d]} * ({stride})"
                for d, stride in enumerate(strides)
                if stride
            ]
            places.append(" + ".join(terms) or "0")
        inside = "    " * (len(sizes) + 1)
        reads = "".join(
            f"{inside}const float x{k} = {_value(view, ('y' if shared[k] else f'p{k}') + f'[{places[k + 1]}]')};\n"
            for k, view in enumerate(views)
        )
        steps = "".join(f"{inside}{statement.replace('float t', 'const float t')}\n" for statement in op.statements)
        result = op.result
        if out.of.kind != "float":
            numbers = f"{result}, {literal(1 / np.float32(out.of.scale))}, {literal(float(out.of.zero))}"
            result = f"to_byte({numbers})" if out.of.most == 255 else f"to_level({numbers}, {out.of.most})"
        body = f"{inside}y[{places[0]}] = {result};\n"
        block = reads + steps + body
        if reads or steps:
            loops[-1] = loops[-1].rstrip("\n") + " {\n"
            block += "    " * len(sizes) + "}\n"
        counters = f"    int32_t {', '.join(letters[: len(sizes)])};\n"
        given = [f"const {_kind(view)} *restrict p{k}" for k, view in enumerate(views) if not shared[k]]
        parameters = ", ".join([f"{out.of.kind} *restrict y", *given, *(["int32_t n"] if flat else [])])
        name = self.function("map", f"({parameters})\n{{\n{counters}{''.join(loops)}{block}}}\n")
        pointers = [self.at(out.of, grids[0][0])]
        pointers += [self.at(view.of, grids[k + 1][0]) for k, view in enumerate(views) if not shared[k]]
        return f"{name}({', '.join([*pointers, *([str(sizes[0])] if flat else [])])});"

    def function(self, kind: str, body: str) -> str:
        if body not in self.functions:
            self.functions[body] = f"{kind}{len(self.functions)}"
        return self.functions[body]

    def reduce(self, op: Reduce) -> str:
        (view,) = op.views
        offset, strides = view_strides(view)
        out_offset, out_strides = view_strides(op.out)
        kept = [d for d in range(len(strides)) if d not in op.dims and view.shape[d] > 1]
        inner = [d for d in op.dims if view.shape[d] > 1]
        letters = {d: "ijklmnop"[k] for k, d in enumerate([*kept, *inner])}
        counters = f"    int32_t {', '.join(letters.values())};\n" if letters else ""

        def place(of: list[int], dims: Sequence[int]) -> str:
            return " + ".join(f"{letters[d]} * {of[d]}" for d in dims if of[d]) or "0"

        loops = "".join(
            f"    for ({letters[d]} = 0; {letters[d]} < {view.shape[d]}; {letters[d]}++) {{\n" for d in kept
        )
        inside = "".join(
            f"        for ({letters[d]} = 0; {letters[d]} < {view.shape[d]}; {letters[d]}++)\n" for d in inner
        )
        source = f"x[{place(strides, [*kept, *inner])}]"
        first = "-FLT_MAX" if op.how == "largest" else "0.0f"
        update = f"total = {source} > total ? {source} : total;" if op.how == "largest" else f"total += {source};"
        divided = f" / {literal(op.factor)}" if op.factor != 1 else ""
        body = (
            f"(float *restrict y, const float *restrict x)\n{{\n{counters}    float total;\n{loops}"
            f"        total = {first};\n"
            f"{inside}            {update}\n        y[{place(out_strides, kept)}] = total{divided};\n"
            f"    {'}' * len(kept)}\n}}\n"
        )
        body = re.sub(r"\n    \n}", "\n}", body)
        name = self.function("reduce", body)
        return f"{name}({self.at(op.out.of, out_offset)}, {self.at(view.of, offset)});"

    def matmul(self, op: MatMul) -> str:
        a, b = op.views
        (start_a, of_a), (start_b, of_b), (start_y, of_y) = map(view_strides, (a, b, op.out))
        batch, rows, inner = a.shape
        columns = b.shape[2]
        body = (
            "(float *restrict y, const float *restrict p, const float *restrict q)\n{\n    int32_t i, j, k, l;\n"
            f"    for (i = 0; i < {batch}; i++)\n        for (j = 0; j < {rows}; j++)\n"
            f"            for (k = 0; k < {columns}; k++) {{\n                float sum = 0.0f;\n"
            f"                for (l = 0; l < {inner}; l++)\n"
            f"                    sum += p[i * {of_a[0]} + j * {of_a[1]} + l * {of_a[2]}] * "
            f"q[i * {of_b[0]} + l * {of_b[1]} + k * {of_b[2]}];\n"
            f"                y[i * {of_y[0]} + j * {of_y[1]} + k * {of_y[2]}] = sum;\n            }}\n}}\n"
        )
        name = self.function("product", body)
        return f"{name}({self.at(op.out.of, start_y)}, {self.at(a.of, start_a)}, {self.at(b.of, start_b)});"

    def pool(self, op: Pool) -> str:
        name = f"pool_{op.how}"
        channels, height, width = op.size_in
        self.count(*op.size_in, *op.size_out)
        self.count(*op.kernel, *op.stride, *op.padding, most=LEAST_ROOM)
        numbers = ", ".join(map(str, (channels, height, width, *op.size_out)))
        pairs = ", ".join(f"{{{a}, {b}}}" for a, b in (op.kernel, op.stride, op.padding))
        struct = f"static const struct pool pool = {{{numbers}, {pairs}, {int(op.counted)}}};"
        given = ", ".join(self.at(view.of) for view in op.views)
        return f"{{\n        {struct}\n        {name}(&pool, {given}, {self.at(op.out.of)});\n    }}"


def _kind(view: View) -> str:
    return view.of.kind if isinstance(view.of, Buffer) else "float"


def _value(view: View, element: str) -> str:
    """C expression for the value that an element stands for."""
    if _kind(view) == "float":
        return element
    assert isinstance(view.of, Buffer)
    return f"(float)({element} - {view.of.zero}) * {literal(view.of.scale)}"


def _collapsed(
    shape: Sequence[int], grids: Sequence[tuple[int, list[int]]]
) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """Merge loops: order dimensions as the first grid lies in memory, and join neighbours where all grids allow it."""
    dims = [d for d in range(len(shape)) if shape[d] > 1]
    dims.sort(key=lambda d: -grids[0][1][d])
    sizes: list[int] = []
    strides: list[list[int]] = []  # one list per loop, with one stride per grid
    for d in dims:
        these = [grid[1][d] for grid in grids]
        if sizes and all(outer == inner * shape[d] for outer, inner in zip(strides[-1], these, strict=True)):
            sizes[-1] *= shape[d]
            strides[-1] = these
        else:
            sizes.append(shape[d])
            strides.append(these)
    if not sizes:
        sizes, strides = [1], [[0] * len(grids)]
    return sizes, [(grid[0], [of[g] for of in strides]) for g, grid in enumerate(grids)]


def write(
    plan: Plan, encodings: dict[str, Encoding], *, title: str, sampler: Sampler | None, steps: int,
    unpack: bool = False,
) -> Code:  # fmt: skip
    """Write the model's header and source.

    Args:
        encodings: the network's stored tensors by name.
        title: what the model is, for a comment.
        sampler: constants of the Langevin step; None to leave the step out.
        steps: length of the chains used in training.
        unpack: store weights as floats, which is faster and larger; constant and int8 weights stay as they are.
    """
    program = plan.program
    writer = _Writer(plan, encodings, unpack)
    calls = [writer.call(operation) for operation in program.operations]
    ahead, back = calls[: program.ahead], calls[program.ahead :]
    places = [array.values for of in writer.stored.values() for array in of.arrays if array.kind == PLACE]
    place = "uint16_t" if max((int(values.max()) for values in places), default=0) < 65536 else "uint32_t"
    shape = program.input_shape
    tile = writer.tile
    lines = [
        f"/* {title}\n   Written by lowenergy; see model.h. */",
        '#include "model.h"\n\n#include <float.h>\n',
        "#ifdef __clang__\n#pragma STDC FP_CONTRACT OFF\n#endif\n",
    ]
    if places:
        lines.append(f"typedef {place} {PLACE};\n")
    if writer.counted:
        lines.append(f"typedef {'uint16_t' if writer.counted < 65536 else 'int32_t'} count_t;")
    lines.append(f"#define MOST_TAPS {writer.most_taps}\n")
    if writer.stored:
        lines.append(
            f"#if MODEL_KEEP\n#define TILE(place, kept) (a + {plan.bytes // 4} + (kept))\n"
            f"#elif MODEL_LANES > 1\n#define TILE(place, kept) (a + {plan.bytes // 4})\n"
            "#else\n#define TILE(place, kept) (a + (place))\n#endif\n"
        )
    body = _body(plan, ahead, back, sampler, writer)  # first, for what it reads is among the constants
    own = [_constants(writer), *(f"static void {name}{text}" for text, name in writer.functions.items())]
    own += [f"static const struct conv conv{number} = {{{struct}}};" for number, struct in enumerate(writer.structs)]
    own += [f"static const struct range range{number} = {of};" for number, of in enumerate(writer.ranges)]
    own += ["", body]
    text = "\n".join(own)
    lines += [sections(text, _fetching(writer), writer.zeros), text]
    header = _header(plan, tile, sum(writer.kept), title, sampler, steps, shape)
    sizes = {name: of.bytes(place) for name, of in writer.stored.items()}
    sizes |= {name: array.bytes for name, array in writer.arrays.items()}
    return Code(header, "\n".join(lines), sizes, tile, 4 * sum(writer.kept))


def _fetching(writer: _Writer) -> dict[str, str]:
    """The C functions that fetch weights as floats and as integers, by name."""
    functions = {}
    for name, which in (("fetch", writer.as_floats), ("fetch_integers", writer.as_integers)):
        kinds = sorted({writer.stored[weight].kind for weight in which}, key=weights.KINDS.index)
        if kinds:
            functions[name] = weights.fetching(kinds, integers=name != "fetch")
    return functions


def sections(text: str, fetches: dict[str, str], zeros: int) -> str:
    """Return the sections of kernels.c that a text needs, in their order there: those whose names it uses.

    Args:
        fetches: the functions that fetch weights, by name.
        zeros: number of zeros that convolutions read beyond an image's edges.
    """
    parts = SECTION.split(KERNELS.read_text())[1:]
    bodies = {name: body.strip() + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)}
    border = f"#if MODEL_LANES > 1\nstatic const float zeros[{zeros}] = {{0}};\n#endif\n"
    before = {name: body for name, body in bodies.items() if name in BEFORE}
    bodies = {**before, **fetches, "zeros": border, **bodies}
    kept: list[str] = []
    for name in reversed(bodies):
        if re.search(rf"\b{name}\b", COMMENT.sub("", text)):
            text += bodies[name]
            kept.append(name)
    return "\n".join(bodies[name] for name in reversed(kept))


BEFORE = (
    "float_of",
    "bits_of",
    "half",
    "weight",
    "read_bits",
    "rank",
    "whole",
)  # sections that the fetching functions use


def _constants(writer: _Writer) -> str:
    arrays = "".join(array.text() for array in writer.arrays.values())
    return arrays + "".join(of.text() for of in writer.stored.values())


def _lines(calls: Sequence[str]) -> str:
    return "".join(f"    {call}\n" for call in calls)


def _body(plan: Plan, ahead: Sequence[str], back: Sequence[str], sampler: Sampler | None, writer: _Writer) -> str:
    program = plan.program
    image = "const float *image"
    kind = "void" if program.energy is None else "float"
    text = f"/* Logits{' and energy' if kind == 'float' else ''}. */\nstatic {kind} forward(float *a, {image})\n{{\n"
    text += _lines(ahead)
    text += "".join(
        f"    (void){name};\n" for name in ("a", "image") if not any(re.search(rf"\b{name}\b", call) for call in ahead)
    )
    if program.energy is not None:
        text += f"    return *({writer.at(program.energy.of, view_strides(program.energy)[0])});\n"
    text += "}\n\n"
    if program.classes:
        offset, strides = view_strides(program.logits)
        count, step = program.logits.index.numel(), strides[-1]
        text += (
            f"void model_logits(void *arena, {image}, float *logits)\n{{\n    float *a = arena;\n    int i;\n"
            f"    (void)forward(a, image);\n    for (i = 0; i < {count}; i++)\n"
            f"        logits[i] = ({writer.at(program.logits.of, offset)})[i * {step}];\n}}\n\n"
        )
    if program.energy is not None:
        text += f"float model_energy(void *arena, {image})\n{{\n    return forward(arena, image);\n}}\n\n"
    if sampler is None or program.gradient is None:
        return text.rstrip("\n") + "\n"
    grid = view_strides(program.gradient)
    channels, height, width = program.input_shape
    of_channel, of_row, of_column = grid[1][1:]
    text += (
        "float model_step_by(void *arena, float *image, uint32_t *random, float step_size)\n{\n    float *a = arena;\n"
        "    const float energy = forward(a, image);\n    float pair[2] = {0.0f, 0.0f};\n    int i, j, k, n = 0;\n"
        f"{_lines(back)}"
        f"    for (i = 0; i < {channels}; i++)\n        for (j = 0; j < {height}; j++)\n"
        f"            for (k = 0; k < {width}; k++, n++) {{\n"
        f"                const float g = ({writer.at(program.gradient.of, grid[0])})"
        f"[i * {of_channel} + j * {of_row} + k * {of_column}];\n"
        "                const float slope = smaller(larger(g, -MODEL_GRADIENT_CLAMP), MODEL_GRADIENT_CLAMP);\n"
        "                float x;\n                if (!(n & 1))\n                    normal(random, pair);\n"
        "                x = (image[n] - step_size * slope) + MODEL_NOISE * pair[n & 1];\n"
        "                image[n] = smaller(larger(x, -1.0f), 1.0f);\n            }\n    return energy;\n}\n\n"
        "float model_step(void *arena, float *image, uint32_t *random)\n{\n"
        "    return model_step_by(arena, image, random, MODEL_STEP_SIZE);\n}\n\n"
        "uint32_t model_start(float *image, uint32_t seed)\n{\n    uint32_t random = seed;\n    int i;\n"
        "    random = draw(&random); /* neighbouring seeds start far apart */\n"
        f"    for (i = 0; i < {channels * height * width}; i++)\n"
        "        image[i] = (float)(draw(&random) >> 8) * 1.1920929e-7f - 1.0f; /* 2^-23: uniform in [-1, 1) */\n"
        "    return random;\n}\n\n"
        "void model_sample(void *arena, float *image, uint32_t seed, int steps)\n{\n"
        "    uint32_t random = model_start(image, seed);\n"
        "    while (steps-- > 0)\n        model_step(arena, image, &random);\n}\n"
    )
    return text


def _header(
    plan: Plan, tile: int, kept: int, title: str, sampler: Sampler | None, steps: int, shape: tuple[int, int, int]
) -> str:
    program = plan.program
    channels, height, width = shape
    text = f"""/* {title}

   An image is float[MODEL_CHANNELS * MODEL_HEIGHT * MODEL_WIDTH], values in [-1, 1] (black is -1, white is 1), one
   channel after the other, each row by row. The arena is MODEL_ARENA_BYTES of memory, aligned to 8 bytes, that the
   caller hands over; nothing in it must be kept between calls (but see MODEL_KEEP), and nothing else is written.

   Results are the same bits on every machine whose float is IEEE 754's and whose compiler keeps the order of sums:
   no -ffast-math; -ffp-contract=off unless in a standard mode (-std=c99). */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define MODEL_CHANNELS {channels}
#define MODEL_HEIGHT {height}
#define MODEL_WIDTH {width}
#define MODEL_OUTPUTS {program.logits.index.numel()}
#define MODEL_PIXELS (MODEL_CHANNELS * MODEL_HEIGHT * MODEL_WIDTH)

/* Channels computed side by side, at most {MOST_LANES}: one on a microcontroller, eight on processors with vectors.
   It changes time and memory, no result; give it on the command line of all files or of none. */
#ifndef MODEL_LANES
#if defined(__GNUC__) && (defined(__SSE2__) || defined(__aarch64__) || defined(__wasm_simd128__))
#define MODEL_LANES 8
#else
#define MODEL_LANES 1
#endif
#endif

/* 1: weights are decoded once and then kept, which is faster and takes more memory. The arena must be all zeros before
   the first call, and what is in it must be kept between calls. */
#ifndef MODEL_KEEP
#define MODEL_KEEP 0
#endif

/* {plan.bytes:,} bytes; with lanes, the weights of a tile more. */
#define MODEL_ARENA_BYTES \\
    ({plan.bytes}L + (MODEL_KEEP ? {4 * kept}L : MODEL_LANES > 1 ? {4 * tile}L * MODEL_LANES : 0L))

"""
    if program.classes:
        text += "#define MODEL_HAS_LOGITS 1\n/* Class scores before the softmax, float[MODEL_OUTPUTS]. */\n"
        text += "void model_logits(void *arena, const float *image, float *logits);\n\n"
    if program.energy is not None:
        text += "#define MODEL_HAS_ENERGY 1\n/* The energy of an image: low where data is likely. */\n"
        text += "float model_energy(void *arena, const float *image);\n\n"
    if sampler is not None:
        text += f"""/* The Langevin step x <- clamp(x - step_size * clamp(slope of the energy) + noise * normal).
   Images stay in [-1, 1], slopes within MODEL_GRADIENT_CLAMP. */
#define MODEL_STEP_SIZE {literal(sampler.step_size)}
#define MODEL_NOISE {literal(sampler.noise)}
#define MODEL_GRADIENT_CLAMP {literal(sampler.gradient_clamp)}
#define MODEL_STEPS {steps} /* of a chain as it was trained */

/* One step in place; the energy before it. `random` is any number, and then what the last step left there. */
float model_step(void *arena, float *image, uint32_t *random);

/* The same with another step size. */
float model_step_by(void *arena, float *image, uint32_t *random, float step_size);

/* Uniform noise, where chains start; the `random` of the first step. */
uint32_t model_start(float *image, uint32_t seed);

/* A whole chain from noise; one seed gives one image, everywhere. */
void model_sample(void *arena, float *image, uint32_t seed, int steps);

"""
    return text + "#ifdef __cplusplus\n}\n#endif\n\n#endif\n"
