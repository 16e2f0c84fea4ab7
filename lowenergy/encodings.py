"""How one tensor is stored: dense, constant, sparse, int8 or product-quantized. Each decodes to float32.

`parts()` are the tensors that reach the file, `facts()` the few plain values that must go with them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Encoding(Protocol):
    kind: str

    def decode(self) -> Tensor: ...

    def parts(self) -> dict[str, Tensor]: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dense:
    """The values themselves, float32 or float16."""

    values: Tensor
    kind = "dense"

    def decode(self) -> Tensor:
        return self.values.float()

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


@dataclass(frozen=True)
class Sparse:
    """One bit per element and the values of the elements that are not zero."""

    bitmask: Tensor  # (ceil(n / 8),) uint8, element 0 is the highest bit of byte 0
    values: Tensor  # (nonzero,) float32
    shape: tuple[int, ...]
    kind = "sparse"

    @classmethod
    def encode(cls, tensor: Tensor) -> "Sparse":
        present = tensor.detach().flatten() != 0
        bitmask = torch.from_numpy(np.packbits(present.numpy()))
        return cls(bitmask, tensor.detach().flatten()[present], tuple(tensor.shape))

    def decode(self) -> Tensor:
        n = int(np.prod(self.shape))
        present = torch.from_numpy(np.unpackbits(self.bitmask.numpy(), count=n)).bool()
        flat = torch.zeros(n)
        flat[present] = self.values
        return flat.view(self.shape)

    def parts(self) -> dict[str, Tensor]:
        return {"bitmask": self.bitmask, "values": self.values}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


@dataclass(frozen=True)
class Int8:
    """Symmetric integer weights of at most 8 bits with one scale per output channel."""

    values: Tensor  # (out, ...) int8, in [-2^(bits-1), 2^(bits-1))
    scale: Tensor  # (out,) float32
    bits: int = 8  # fewer are packed
    kind = "int8"

    def decode(self) -> Tensor:
        return self.values.float() * self.scale.view(-1, *[1] * (self.values.ndim - 1))

    def parts(self) -> dict[str, Tensor]:
        if self.bits == 8:
            return {"": self.values, "scale": self.scale}
        codes = self.values.flatten().int() + 2 ** (self.bits - 1)
        return {"packed": pack_bits(codes, self.bits), "scale": self.scale}

    def facts(self) -> dict[str, Any]:
        return {} if self.bits == 8 else {"bits": self.bits, "shape": list(self.values.shape)}


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
        return Sparse(parts["bitmask"], parts["values"], tuple(facts["shape"]))
    if kind == "int8":
        if "packed" not in parts:
            return Int8(parts[""], parts["scale"])
        bits, shape = int(facts["bits"]), tuple(facts["shape"])
        values = unpack_bits(parts["packed"], bits, int(np.prod(shape))) - 2 ** (bits - 1)
        return Int8(values.to(torch.int8).view(shape), parts["scale"], bits)
    if kind == "pq":
        codebook, shape = parts["codebook"], tuple(facts["shape"])
        coded = Coded(torch.empty(0, dtype=torch.long), codebook, shape)
        count = int(np.prod(shape)) // codebook.shape[1]
        codes = parts["symbols"].long() if "symbols" in parts else unpack_bits(parts["codes"], coded.bits, count)
        if len(codes) != count or (count and int(codes.max()) >= len(codebook)):
            raise ValueError(f"{len(codes)} codes of a codebook of {len(codebook)} do not make a weight of {shape}")
        return Coded(codes, codebook, shape)
    raise ValueError(f"unknown encoding {kind!r}")
