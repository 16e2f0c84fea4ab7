"""How one tensor is stored: dense, constant, sparse, int8 or product-quantized. Weights decode to float32.

`parts()` are the tensors that reach the file, `facts()` the few plain values that must go with them. A file's parts and
facts are checked in two steps: `decoded_shape` compares all sizes before anything of that size is allocated, and
`from_parts` decodes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
import zstandard
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

AT_A_TIME = 2**20  # elements to decode at once: each takes eight bytes or more on the way
LARGEST_CODEBOOK = 2**16  # values that a codebook may have even if its weight has fewer

Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**40)]], Field(max_length=8)]


class Facts(BaseModel):
    """What a header says about a tensor that is not dense."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    shape: Shape


class ConstantFacts(Facts):
    value: float


class Int8Facts(Facts):
    shape: Annotated[Shape, Field(min_length=1)]
    bits: Annotated[int, Field(ge=1, le=8)]


FACTS: dict[str, type[Facts] | None] = {  # None: it has none
    "dense": None,
    "constant": ConstantFacts,
    "sparse": Facts,
    "int8": Int8Facts,
    "pq": Facts,
}


class Encoding(Protocol):
    kind: str

    @property
    def shape(self) -> tuple[int, ...]: ...  # of the decoded tensor

    def decode(self) -> Tensor: ...

    def parts(self) -> dict[str, Tensor]: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dense:
    """The values themselves: float32 or float16, or any other type that networks keep in buffers."""

    values: Tensor
    kind = "dense"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def decode(self) -> Tensor:
        return self.values.float() if self.values.dtype == torch.float16 else self.values

    def parts(self) -> dict[str, Tensor]:
        return {"": self.values}

    def facts(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float
    shape: tuple[int, ...]
    kind = "constant"

    def decode(self) -> Tensor:
        return torch.full(self.shape, self.value)

    def parts(self) -> dict[str, Tensor]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"value": self.value, "shape": list(self.shape)}


def places(present: Tensor) -> dict[str, Tensor]:
    """Encode which elements are present, (n,) bool, as `bitmask` or `gaps`, whichever is smaller under zstd.

    bitmask: (ceil(n / 8),) uint8; element 0 is the highest bit of byte 0. gaps: uint8, the number of absent elements
    before each present one; 255 stands for 255 absent ones and none present.
    """
    bitmask = np.packbits(present.numpy())
    index = present.nonzero().flatten().numpy()
    gaps = np.diff(index, prepend=-1) - 1
    coded = np.full(len(gaps) + int((gaps // 255).sum()), 255, dtype=np.uint8)
    coded[np.arange(len(gaps)) + np.cumsum(gaps // 255)] = gaps % 255
    small = zstandard.ZstdCompressor(level=19).compress
    if len(small(coded.tobytes())) < len(small(bitmask.tobytes())):
        return {"gaps": torch.from_numpy(coded)}
    return {"bitmask": torch.from_numpy(bitmask)}


def present(parts: Mapping[str, Tensor], count: int) -> Tensor:
    """Decode the (count,) bool that `places` encoded.

    Raises:
        ValueError: a gap leads beyond the end.
    """
    if "bitmask" in parts:
        return torch.from_numpy(np.unpackbits(parts["bitmask"].numpy(), count=count).view(np.bool_))
    mask, at = torch.zeros(count, dtype=torch.bool), -1
    for gaps in parts["gaps"].split(AT_A_TIME):
        ends = gaps != 255
        index = at + (gaps.long() + ends).cumsum(0)  # a present element takes up a place itself
        if len(index):
            at = int(index[-1])
        if at >= count:
            raise ValueError(f"gaps lead to element {at} of {count}")
        mask.index_fill_(0, index[ends], True)
    return mask


@dataclass(frozen=True)
class Sparse:
    """The positions and values of the elements that are not zero."""

    values: Tensor  # (...) float32, zeros included
    kind = "sparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.values + 0.0)  # the file has no place for the sign of a zero

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def decode(self) -> Tensor:
        return self.values

    def parts(self) -> dict[str, Tensor]:
        flat = self.values.flatten()
        return {**places(flat != 0), "values": flat[flat != 0]}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.values.shape)}


@dataclass(frozen=True)
class Int8:
    """Symmetric integer weights of at most 8 bits with one scale per output channel."""

    values: Tensor  # (out, ...) int8, in [-2^(bits-1), 2^(bits-1))
    scale: Tensor  # (out,) float32
    bits: int = 8  # fewer than 8 are packed
    kind = "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def decode(self) -> Tensor:
        return self.values.float() * self.scale.view(-1, *[1] * (self.values.ndim - 1))

    @property
    def is_sparse(self) -> bool:
        """True if the file leaves out the zeros."""
        # A position costs about a bit, which leaving out zeros must save.
        return float((self.values == 0).float().mean()) > max(0.3, 1.2 / self.bits)

    def parts(self) -> dict[str, Tensor]:
        flat = self.values.flatten()
        where = {}
        if self.is_sparse:
            where, flat = places(flat != 0), flat[flat != 0]
        if self.bits == 8:
            return {**where, "": flat.view(self.values.shape) if not where else flat, "scale": self.scale}
        return {**where, "packed": pack_bits(flat.int() + 2 ** (self.bits - 1), self.bits), "scale": self.scale}

    def facts(self) -> dict[str, Any]:
        if self.bits == 8 and not self.is_sparse:
            return {}
        return {"bits": self.bits, "shape": list(self.values.shape)}


class Range(NamedTuple):
    """What rounded activations stand for: the integer q, 0 <= q < 2^bits, stands for scale * (q - zero)."""

    scale: float
    zero: int
    bits: int = 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack (n,) integers below 2^bits into (ceil(n * bits / 8),) uint8, most significant bit first.

    Raises:
        ValueError: a code does not fit.
    """
    array = codes.numpy().astype(np.int64)
    if len(array) and (array.min() < 0 or array.max() >> bits):
        raise ValueError(f"codes from {array.min()} to {array.max()} do not fit in {bits} bits")
    planes = (array[:, None] >> np.arange(bits - 1, -1, -1)) & 1  # (n, bits)
    return torch.from_numpy(np.packbits(planes.astype(np.uint8)))


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` integers that pack_bits packed, (count,) int64."""
    integers = torch.empty(count, dtype=torch.int64)
    for first in range(0, count, AT_A_TIME):  # each chunk starts at a whole byte
        some = min(AT_A_TIME, count - first)
        content = packed[first * bits // 8 : -(-(first + some) * bits // 8)].numpy()
        planes = np.unpackbits(content, count=some * bits).reshape(some, bits)
        codes = planes[:, 0].astype(np.int64)
        for place in range(1, bits):
            codes = 2 * codes + planes[:, place]
        integers[first : first + some] = torch.from_numpy(codes)
    return integers


def entropy(codes: Tensor) -> float:
    """Bits per code of an ideal entropy coder."""
    counts = torch.bincount(codes.flatten()).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())


def code_bits(codewords: int) -> int:
    return max(1, (codewords - 1).bit_length())


@dataclass(frozen=True)
class Coded:
    """Product quantization: every block of d weights is one of k codewords (Jégou et al. 2011)."""

    codes: Tensor  # (n,) int64 below k
    codebook: Tensor  # (k, d) float16, or float32 if float16 has no room for some codewords
    shape: tuple[int, ...]  # of the weight, whose elements in row-major order are the n blocks one after the other
    kind = "pq"

    @property
    def bits(self) -> int:
        return code_bits(len(self.codebook))

    def decode(self) -> Tensor:
        return self.codebook.float()[self.codes].view(self.shape)

    def parts(self) -> dict[str, Tensor]:
        # Codes of uneven frequency take fewer bytes as one byte each, which the file's entropy coder shortens.
        if len(self.codebook) <= 256 and entropy(self.codes) < 0.98 * self.bits:
            return {"symbols": self.codes.to(torch.uint8), "codebook": self.codebook}
        return {"codes": pack_bits(self.codes, self.bits), "codebook": self.codebook}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


def _spread(parts: Mapping[str, Tensor], values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros, with `values` where the parts say."""
    where = present(parts, math.prod(shape))
    if int(where.sum()) != len(values):
        raise ValueError(f"{len(values)} values for {int(where.sum())} places")
    return torch.zeros(where.shape, dtype=values.dtype).masked_scatter(where, values).view(shape)


# -- what a file says, before any of it is decoded --------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a file says about a part."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def decoded_shape(parts: Mapping[str, Part], kind: str, facts: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that these parts decode to, after a check that none of them is much larger than that.

    Args:
        kind, facts: as in FACTS.
    Raises:
        ValueError: they do not belong together.
    """
    if kind == "dense" or (kind == "int8" and not facts):
        values = _known(parts, "", None if kind == "dense" else torch.int8)
        wanted = {"": values}
        if kind == "int8":
            wanted["scale"] = _known(parts, "scale", torch.float32, values.shape[:1])
            if not values.shape:
                raise ValueError("int8 without a dimension for its channels")
        _only(parts, wanted)
        return values.shape
    shape = tuple(facts["shape"])
    n = math.prod(shape)
    if kind == "constant":
        _only(parts, {})
    elif kind == "sparse":
        values = _flat(parts, "values", n)
        if not values.dtype.is_floating_point:
            raise ValueError(f"sparse values of {values.dtype}")
        _only(parts, {**_places(parts, n), "values": values})
    elif kind == "int8":
        bits = facts["bits"]
        where = _places(parts, n) if parts.keys() & {"bitmask", "gaps"} else {}
        name, most = ("", n) if bits == 8 else ("packed", -(-n * bits // 8))
        values = _flat(parts, name, most, torch.int8 if bits == 8 else torch.uint8, exactly=not where)
        _only(parts, {**where, name: values, "scale": _known(parts, "scale", torch.float32, shape[:1])})
    elif kind == "pq":
        codebook = _known(parts, "codebook", None)
        if codebook.dtype not in (torch.float16, torch.float32):  # float32 where float16 has no room
            raise ValueError(f"a codebook of {codebook.dtype}")
        if len(codebook.shape) != 2 or not math.prod(codebook.shape) or n % codebook.shape[1]:
            raise ValueError(f"a codebook of {codebook.shape} for a weight of {shape}")
        k, count = codebook.shape[0], n // codebook.shape[1]
        name, most = ("symbols", count) if "symbols" in parts else ("codes", -(-count * code_bits(k) // 8))
        if (name == "symbols" and k > 256) or math.prod(codebook.shape) > max(n, LARGEST_CODEBOOK):
            raise ValueError(f"{k} codewords of {codebook.shape[1]} for {count} {name}")
        _only(parts, {name: _flat(parts, name, most, torch.uint8, exactly=True), "codebook": codebook})
    else:
        raise ValueError(f"unknown encoding {kind!r}")
    return shape


def _known(
    parts: Mapping[str, Part], name: str, dtype: torch.dtype | None, shape: tuple[int, ...] | None = None
) -> Part:
    if name not in parts:
        raise ValueError(f"no part {name!r}" if name else "no values")
    part = parts[name]
    if (dtype is not None and part.dtype != dtype) or (shape is not None and part.shape != shape):
        raise ValueError(f"{name or 'values'} {part.shape} of {part.dtype}, not {shape or 'any'} of {dtype}")
    return part


def _flat(
    parts: Mapping[str, Part], name: str, most: int, dtype: torch.dtype | None = None, *, exactly: bool = False
) -> Part:
    """Check the size of a part with one dimension; unnamed values may have the dimensions of the tensor."""
    part = _known(parts, name, dtype)
    count = math.prod(part.shape)
    if count > most or (exactly and count != most) or (name and len(part.shape) != 1):
        raise ValueError(f"{name or 'values'} of shape {part.shape}, where {most} are expected")
    return part


def _places(parts: Mapping[str, Part], n: int) -> dict[str, Part]:
    if "bitmask" in parts:
        return {"bitmask": _flat(parts, "bitmask", -(-n // 8), torch.uint8, exactly=True)}
    return {"gaps": _flat(parts, "gaps", n + n // 255, torch.uint8)}


def _only(parts: Mapping[str, Part], wanted: Mapping[str, Part]) -> None:
    if unknown := parts.keys() - wanted.keys():
        raise ValueError(f"unknown part {unknown.pop()!r}")


def from_parts(parts: Mapping[str, Tensor], kind: str, facts: Mapping[str, Any]) -> Encoding:
    """The encoding that wrote these parts and facts. decoded_shape must have checked that they belong together.

    Raises:
        ValueError: their content does not belong together.
    """
    if kind == "dense":
        return Dense(parts[""])
    if kind == "int8" and not facts:
        return Int8(parts[""], parts["scale"])
    shape = tuple(facts["shape"])
    n = math.prod(shape)
    if kind == "constant":
        return Constant(float(facts["value"]), shape)
    if kind == "sparse":
        return Sparse(_spread(parts, parts["values"], shape))
    if kind == "int8":
        bits, is_sparse = facts["bits"], "bitmask" in parts or "gaps" in parts
        if bits == 8:
            values = parts[""].flatten()
        else:
            count = int(present(parts, n).sum()) if is_sparse else n
            if len(parts["packed"]) != -(-count * bits // 8):
                raise ValueError(f"{len(parts['packed'])} bytes for {count} values of {bits} bits")
            values = (unpack_bits(parts["packed"], bits, count) - 2 ** (bits - 1)).to(torch.int8)
        return Int8(_spread(parts, values, shape) if is_sparse else values.view(shape), parts["scale"], bits)
    codebook = parts["codebook"]
    count = n // codebook.shape[1]
    bits = code_bits(len(codebook))
    codes = parts["symbols"].long() if "symbols" in parts else unpack_bits(parts["codes"], bits, count)
    if count and int(codes.max()) >= len(codebook):
        raise ValueError(f"code {int(codes.max())} of a codebook of {len(codebook)} does not make a weight of {shape}")
    return Coded(codes, codebook, shape)
