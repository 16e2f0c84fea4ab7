"""Write tensors as C constants, as small as in the model's file, and the functions that fetch parts of them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, Int8, Sparse, pack_bits

WORST_GAP = 255
PLACE = "place_t"  # C type of places among the elements that are present


@dataclass(frozen=True)
class Array:
    """One constant array."""

    name: str
    kind: str  # C type of its elements
    values: np.ndarray

    @property
    def bytes(self) -> int:
        return {
            "float": 4,
            "uint32_t": 4,
            "uint16_t": 2,
            "uint8_t": 1,
            "int8_t": 1,
            "int16_t": 2,
            "int32_t": 4,
        }[self.kind] * len(self.values)

    def text(self) -> str:
        if self.kind == "float":
            words = [f"{np.float32(v)!s}f" if "." in str(np.float32(v)) or "e" in str(np.float32(v)) else f"{v}.0f"
                     for v in self.values]  # fmt: skip
        else:
            words = [str(int(v)) for v in self.values]
        lines, line = [], ""
        for word in words:
            if len(line) + len(word) > 116:
                lines.append(line.rstrip())
                line = ""
            line += f"{word}, "
        lines.append(line.rstrip(", "))
        body = "\n    ".join(lines)
        body = body or "0"  # C has no empty arrays
        return f"static const {self.kind} {self.name}[{max(1, len(self.values))}] = {{\n    {body}\n}};\n"


@dataclass(frozen=True)
class Stored:
    """One weight: its arrays, and the contents of its `struct weight`."""

    name: str  # in C
    kind: str  # one of KINDS
    arrays: tuple[Array, ...]
    row: int
    values: str = "0"
    codes: str = "0"
    rows: str = "0"
    scale: str = "0"
    bits: int = 0
    length: int = 0

    def bytes(self, place: str) -> int:
        """Bytes of the arrays.

        Args:
            place: C type that PLACE stands for, as narrow as the largest of the model's places allows.
        """
        return sum((replace(array, kind=place) if array.kind == PLACE else array).bytes for array in self.arrays)

    def text(self) -> str:
        facts = (
            self.values,
            self.codes,
            self.rows,
            self.scale,
            self.row,
            KINDS.index(self.kind),
            self.bits,
            self.length,
        )
        arrays = "".join(array.text() for array in self.arrays)
        return f"{arrays}static const struct weight {self.name}_stored = {{{', '.join(map(str, facts))}}};\n"


def plain(name: str, values: Tensor) -> Array:
    """An array of numbers that are read one by one: biases, scales."""
    flat = values.detach().float().flatten().numpy()
    return Array(name, "float", flat + np.float32(0))  # no negative zero


def stored(name: str, encoded: Encoding) -> Stored:
    """Write a weight in C."""
    if isinstance(encoded, Constant):
        value = Array(f"{name}_value", "float", np.array([encoded.value]))
        return Stored(name, "one", (value,), 1, value.name)
    if isinstance(encoded, Coded):
        # Some weights have float32 codewords, because float16 has no room for them.
        halves = bool((encoded.codebook.half().float() == encoded.codebook.float()).all())
        words = Array(f"{name}_words", "uint16_t", _halves(encoded.codebook))
        words = words if halves else plain(f"{name}_words", encoded.codebook)
        codes = Array(f"{name}_codes", "uint8_t", _packed(encoded.codes, encoded.bits))
        length = encoded.codebook.shape[1]
        return Stored(
            name,
            "coded" if halves else "coded_float",
            (words, codes),
            _row(encoded.shape),
            words.name,
            codes.name,
            bits=encoded.bits,
            length=length,
        )
    shape = encoded.decode().shape
    values = encoded.values if isinstance(encoded, Dense | Sparse | Int8) else encoded.decode()
    arrays: tuple[Array, ...] = ()
    kind, codes_name, rows = "", "0", "0"
    if isinstance(encoded, Sparse) or (isinstance(encoded, Int8) and encoded.is_sparse):
        where, starts, values = _places(name, values)
        kind = "gaps_" if where.name.endswith("gaps") else "mask_"
        arrays, codes_name, rows = (where, starts), where.name, starts.name
    if isinstance(encoded, Int8):
        scale = plain(f"{name}_scale", encoded.scale)
        if encoded.bits == 8:
            numbers = Array(f"{name}_values", "int8_t", values.flatten().numpy())
        else:
            packed = _packed(values.int() + 2 ** (encoded.bits - 1), encoded.bits)
            numbers = Array(f"{name}_values", "uint8_t", packed)
        kind += "int8" if encoded.bits == 8 else "packed"
        return Stored(
            name, kind, (numbers, scale, *arrays), _row(shape), numbers.name, codes_name, rows, scale.name, encoded.bits
        )
    if values.dtype == torch.float16:
        numbers = Array(f"{name}_values", "uint16_t", _halves(values))
        return Stored(name, f"{kind}half", (numbers, *arrays), _row(shape), numbers.name, codes_name, rows)
    numbers = plain(f"{name}_values", values)
    return Stored(name, f"{kind}float", (numbers, *arrays), _row(shape), numbers.name, codes_name, rows)


def _row(shape: tuple[int, ...] | torch.Size) -> int:
    return int(np.prod(shape[1:]))


def _halves(values: Tensor) -> np.ndarray:
    return values.detach().half().flatten().numpy().view(np.uint16)


def _packed(codes: Tensor, bits: int) -> np.ndarray:
    """Pack codes and add two bytes, because three are read at a time."""
    return np.concatenate([pack_bits(codes.flatten(), bits).numpy(), np.zeros(2, np.uint8)])


def _places(name: str, values: Tensor) -> tuple[Array, Array, Tensor]:
    """Return a bit for each element, or the gaps of each row; where each row starts; and the elements that are present.

    A gap is the number of absent elements before the next present one. If it does not fit in a byte, zeros are stored
    as elements in between.
    """
    rows = values.flatten(1) if values.ndim > 1 else values[None]
    gaps: list[int] = []
    elements: list[float] = []
    starts = []
    for row in rows.tolist():
        starts.append(len(gaps))
        gap = 0
        for value in row:
            if value != 0 or gap == WORST_GAP:
                gaps.append(gap)
                elements.append(value)
                gap = 0
            else:
                gap += 1
    flat = values.flatten()
    present = flat != 0
    if len(gaps) < len(flat) / 8 and len(elements) - int(present.sum()) < len(flat) / 64:
        extra = Array(f"{name}_rows", PLACE, np.array([*starts, len(gaps)]))
        return Array(f"{name}_gaps", "uint8_t", np.array(gaps)), extra, torch.tensor(elements, dtype=values.dtype)
    counts = (rows != 0).sum(1).cumsum(0).tolist()
    mask = Array(f"{name}_mask", "uint8_t", np.packbits(present.numpy()))
    return mask, Array(f"{name}_rows", PLACE, np.array([0, *counts])), flat[present]


# -- in C -------------------------------------------------------------------------------------------------------------

NUMBERS = {  # how to read the stored number k, and its factor
    "float": ("((const float *)w->values)[k]", ""),
    "half": ("half(((const uint16_t *)w->values)[k])", ""),
    "int8": ("((const int8_t *)w->values)[k]", " * scale"),
    "packed": ("((int)read_bits(w->values, k * w->bits, w->bits) - (1 << (w->bits - 1)))", " * scale"),
}
DENSE = """    uint32_t k = at;
{scale}    int i, j;
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++, k++)
            to[i * a + j * b] = {number};
"""
MASK = """    const uint32_t row = at / w->row;
    uint32_t k = ((const place_t *)w->rows)[row] + rank(w->codes, row * w->row, at);
{scale}    int i, j;
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++, at++)
            if (w->codes[at >> 3] >> (7u - (at & 7u)) & 1u) {{
                to[i * a + j * b] = {number};
                k++;
            }} else
                to[i * a + j * b] = 0;
"""
GAPS = """    const uint32_t row = at / w->row, end = ((const place_t *)w->rows)[row + 1];
    uint32_t k = ((const place_t *)w->rows)[row], place = row * w->row + (k < end ? w->codes[k] : 0u);
{scale}    int i, j;
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++, at++) {{
            while (k < end && place < at)
                place += 1u + (++k < end ? w->codes[k] : 0u);
            if (k < end && place == at)
                to[i * a + j * b] = {number};
            else
                to[i * a + j * b] = 0;
        }}
"""
CODED = """    const {type} *words = w->values, *word;
    uint32_t bit = at / w->length * w->bits;
    int i, j, left = w->length - (int)(at % w->length);
    word = words + read_bits(w->codes, bit, w->bits) * w->length + (w->length - left);
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++) {{
            if (!left) {{
                bit += w->bits;
                word = words + read_bits(w->codes, bit, w->bits) * w->length;
                left = w->length;
            }}
            to[i * a + j * b] = {number};
            left--;
        }}
"""
ONE = """    int i, j;
    (void)at;
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++)
            to[i * a + j * b] = *(const float *)w->values;
"""
CODEWORDS = {
    "coded": {"type": "uint16_t", "number": "half(*word++)"},
    "coded_float": {"type": "float", "number": "*word++"},
}
PLACES = {"mask": MASK, "gaps": GAPS}


def _body(kind: str, *, integers: bool) -> str:
    if kind == "one":
        return ONE
    if kind in CODEWORDS:
        return CODED.format(**CODEWORDS[kind])
    places, _, numbers = kind.rpartition("_")
    number, factor = NUMBERS[numbers]
    scale = ""
    if integers:
        number = f"(tile_t){number}"
    elif factor:
        number, scale = f"(float){number}{factor}", "    const float scale = w->scale[at / w->row];\n"
    return PLACES.get(places, DENSE).format(number=number, scale=scale)


def fetching(kinds: list[str], *, integers: bool = False) -> str:
    """Write the functions that fetch weights of these kinds, and the one that chooses among them.

    Args:
        integers: fetch the integers as they are stored, without their scale.
    """
    name, to = ("fetch_integers", "tile_t") if integers else ("fetch", "float")
    parameters = f"(const struct weight *w, uint32_t at, int outer, int inner, {to} *to, int a, int b)\n{{\n"
    text = ""
    for kind in kinds:
        text += f"static void {name}_{kind}{parameters}{_body(kind, integers=integers)}}}\n\n"
    text += (
        "/* outer x inner weights that follow one another, from the one at `at` on, all in one row; the one at (i, j)\n"
        f"   goes to to[i * a + j * b]. */\nstatic void {name}{parameters}"
    )
    if len(kinds) == 1:
        return f"{text}    {name}_{kinds[0]}(w, at, outer, inner, to, a, b);\n}}\n"
    text += "    switch (w->kind) {\n"
    for kind in kinds:
        label = f"case {KINDS.index(kind)}" if kind != kinds[-1] else "default"
        text += f"    {label}:\n        {name}_{kind}(w, at, outer, inner, to, a, b);\n        break;\n"
    return text + "    }\n}\n"


KINDS = ("one", *CODEWORDS, *(f"{places}{numbers}" for places in ("", "mask_", "gaps_") for numbers in NUMBERS))
