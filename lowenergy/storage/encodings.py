"""How one tensor is stored: dense, constant, sparse, int8 or product-quantized. Each decodes to float32.

`parts()` are the tensors that reach the file, `facts()` the few plain values that must go with them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import zstandard
from torch import Tensor


class Encoding(Protocol):
    kind: str

    def decode(self) -> Tensor: ...

    def parts(self) -> dict[str, Tensor]: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dense:
    """The values themselves: float32 or float16, or integers, as some networks keep in buffers."""

    values: Tensor
    kind = "dense"

    def decode(self) -> Tensor:
        return self.values.float() if self.values.is_floating_point() else self.values

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
    """Which elements are there, (n,) bool, as `bitmask` or `gaps`: whichever is smaller under zstd.

    bitmask: (ceil(n / 8),) uint8, element 0 is the highest bit of byte 0. gaps: uint8, absent elements before each
    present one; 255 stands for 255 absent ones and none present.
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


def present(parts: dict[str, Tensor], count: int) -> Tensor:
    """The (count,) bool that `places` wrote.

    Raises:
        ValueError: a gap leads beyond the end.
    """
    if "bitmask" in parts:
        return torch.from_numpy(np.unpackbits(parts["bitmask"].numpy(), count=count)).bool()
    gaps = parts["gaps"].long()
    ends = gaps != 255
    index = (gaps + ends).cumsum(0)[ends] - 1  # a present element takes a place itself
    if len(index) and int(index[-1]) >= count:
        raise ValueError(f"gaps lead to element {int(index[-1])} of {count}")
    return torch.zeros(count, dtype=torch.bool).index_fill(0, index, True)


@dataclass(frozen=True)
class Sparse:
    """Where the elements that are not zero are, and their values."""

    values: Tensor  # (...) float32, zeros and all
    kind = "sparse"

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
    bits: int = 8  # fewer are packed
    kind = "int8"

    def decode(self) -> Tensor:
        return self.values.float() * self.scale.view(-1, *[1] * (self.values.ndim - 1))

    @property
    def _sparse(self) -> bool:
        # A place costs about a bit, which the zeros left out must pay for.
        return float((self.values == 0).float().mean()) > max(0.3, 1.2 / self.bits)

    def parts(self) -> dict[str, Tensor]:
        flat = self.values.flatten()
        where = {}
        if self._sparse:
            where, flat = places(flat != 0), flat[flat != 0]
        if self.bits == 8:
            return {**where, "": flat.view(self.values.shape) if not where else flat, "scale": self.scale}
        return {**where, "packed": pack_bits(flat.int() + 2 ** (self.bits - 1), self.bits), "scale": self.scale}

    def facts(self) -> dict[str, Any]:
        if self.bits == 8 and not self._sparse:
            return {}
        return {"bits": self.bits, "shape": list(self.values.shape)}


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """(n,) integers below 2^bits -> (ceil(n * bits / 8),) uint8, most significant bit first.

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
    planes = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    return torch.from_numpy(planes.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64)))


def entropy(codes: Tensor) -> float:
    """Bits per code of an ideal entropy coder."""
    counts = torch.bincount(codes.flatten()).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())


@dataclass(frozen=True)
class Coded:
    """Product quantization: every block of d weights is one of k codewords (Jégou et al. 2011)."""

    codes: Tensor  # (n,) int64 below k
    codebook: Tensor  # (k, d) float16
    shape: tuple[int, ...]  # of the weight; its elements in row-major order are the n blocks, one after the other
    kind = "pq"

    @property
    def bits(self) -> int:
        return max(1, (len(self.codebook) - 1).bit_length())

    def decode(self) -> Tensor:
        return self.codebook.float()[self.codes].view(self.shape)

    def parts(self) -> dict[str, Tensor]:
        # Codes of uneven frequency take fewer bytes as one symbol each, for the file's entropy coder to shorten.
        if len(self.codebook) <= 256 and entropy(self.codes) < 0.98 * self.bits:
            return {"symbols": self.codes.to(torch.uint8), "codebook": self.codebook}
        return {"codes": pack_bits(self.codes, self.bits), "codebook": self.codebook}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


def _spread(parts: dict[str, Tensor], values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros with `values` where the parts say."""
    where = present(parts, int(np.prod(shape)))
    if int(where.sum()) != len(values):
        raise ValueError(f"{len(values)} values for {int(where.sum())} places")
    return torch.zeros(where.shape, dtype=values.dtype).masked_scatter(where, values).view(shape)


def from_parts(parts: dict[str, Tensor], kind: str, facts: dict[str, Any]) -> Encoding:
    """The encoding that wrote these parts and facts.

    Raises:
        KeyError, ValueError: they do not belong together.
    """
    if kind == "dense":
        return Dense(parts[""])
    if kind == "constant":
        return Constant(float(facts["value"]), tuple(facts["shape"]))
    if kind == "sparse":
        return Sparse(_spread(parts, parts["values"], tuple(facts["shape"])))
    if kind == "int8":
        if not facts:
            return Int8(parts[""], parts["scale"])
        bits, shape = int(facts["bits"]), tuple(facts["shape"])
        sparse = "bitmask" in parts or "gaps" in parts
        n = int(np.prod(shape))
        count = int(present(parts, n).sum()) if sparse else n
        values = parts[""] if bits == 8 else unpack_bits(parts["packed"], bits, count) - 2 ** (bits - 1)
        values = values.to(torch.int8)
        return Int8(_spread(parts, values, shape) if sparse else values.view(shape), parts["scale"], bits)
    if kind == "pq":
        codebook, shape = parts["codebook"], tuple(facts["shape"])
        coded = Coded(torch.empty(0, dtype=torch.long), codebook, shape)
        count = int(np.prod(shape)) // codebook.shape[1]
        codes = parts["symbols"].long() if "symbols" in parts else unpack_bits(parts["codes"], coded.bits, count)
        if len(codes) != count or (count and int(codes.max()) >= len(codebook)):
            raise ValueError(f"{len(codes)} codes of a codebook of {len(codebook)} do not make a weight of {shape}")
        return Coded(codes, codebook, shape)
    raise ValueError(f"unknown encoding {kind!r}")
