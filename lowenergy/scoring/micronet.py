"""The MicroNet challenge's score (NeurIPS 2019, CIFAR-100 track): storage / 36.5 M + operations / 10.49 B.

Storage counts every value inference needs, in 32-bit units: b bits count b / 32, a sparse tensor counts its nonzero
values and one bit per element. Operations count multiplications and additions of one example, at b / 32 for b-bit
operands (the wider one counts). Values stored as floats may count as 16 bits for free, unless the model is quantized
below 16 bits anywhere. Decoding a codeword is a table look-up, without arithmetic.
"""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lowenergy.runtimes.loading import dense_network
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Dense, Encoding, Int8, Sparse

STORAGE, OPERATIONS = 36.5e6, 10.49e9  # of the challenge's reference, WRN-28-10
FREE_BITS = 16
aten = torch.ops.aten
# (multiplications, additions) per output; an exponential or a division counts as a multiplication, a comparison as an
# addition.
PER_ELEMENT: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((aten.relu, aten.relu_), (0, 1)),
    **dict.fromkeys((aten.hardtanh, aten.hardtanh_), (0, 2)),  # ReLU6
    **dict.fromkeys((aten.leaky_relu, aten.leaky_relu_), (1, 1)),
    **dict.fromkeys((aten.silu, aten.silu_), (3, 1)),  # x / (1 + exp(-x)): negate, exponentiate, divide; add
    **dict.fromkeys((aten.sigmoid, aten.sigmoid_), (2, 1)),
    **dict.fromkeys((aten.elu, aten.elu_), (1, 2)),
    **dict.fromkeys((aten.gelu, aten.tanh, aten.softplus), (3, 1)),
    **dict.fromkeys((aten.hardsigmoid, aten.hardsigmoid_), (1, 3)),
    **dict.fromkeys((aten.hardswish, aten.hardswish_), (2, 3)),
    **dict.fromkeys((aten.add, aten.add_, aten.sub), (0, 1)),
    **dict.fromkeys((aten.mul, aten.mul_, aten.div, aten.pow, aten.exp, aten.log, aten.rsqrt), (1, 0)),
    aten._softmax: (2, 2),  # exponentiate, divide; subtract the largest, sum
    **dict.fromkeys((aten.native_layer_norm, aten.native_group_norm), (3, 3)),  # square, scale, weight; sums and shifts
}


def measure(model: Model, macs: float) -> dict[str, float]:
    """micronet.{storage, operations, score}: 32-bit values, 32-bit operations, and the weighted sum of both.

    simplified is PunyNet's count, whose published figure is 0.1906: additions, activations and norms are left out.
    """
    storage, operations = storage_of(model), operations_of(model)
    return {
        "storage": storage,
        "operations": operations,
        "score": storage / STORAGE + operations / OPERATIONS,
        "simplified": storage / STORAGE + macs / OPERATIONS,
    }


def _quantized(model: Model) -> bool:
    return any(isinstance(encoded, Int8 | Coded) for encoded in model.tensors.values())


def _float_bits(model: Model, values: Tensor) -> int:
    return values.element_size() * 8 if _quantized(model) else FREE_BITS


def storage_of(model: Model) -> float:
    """In 32-bit values. BatchNorm counts two values a channel: scale and shift are all that inference needs."""
    bits = 0
    for name, encoded in model.tensors.items():
        if name.endswith((".running_mean", ".running_var")):
            continue
        bits += _bits(model, encoded)
    bits += sum(32 + given.bits for given in model.activations.values())  # each range: a scale and a zero point
    return bits / 32


def _bits(model: Model, encoded: Encoding) -> int:
    if isinstance(encoded, Sparse):
        nonzero = int(encoded.values.count_nonzero())
        return nonzero * _float_bits(model, encoded.values) + encoded.values.numel()
    if isinstance(encoded, Int8):
        count, nonzero = encoded.values.numel(), int(encoded.values.count_nonzero())
        return min(count * encoded.bits, nonzero * encoded.bits + count) + encoded.scale.numel() * 32
    if isinstance(encoded, Coded):
        return encoded.codes.numel() * encoded.bits + encoded.codebook.numel() * 8 * encoded.codebook.element_size()
    assert isinstance(encoded, Dense)
    return encoded.values.numel() * _float_bits(model, encoded.values)


def operations_of(model: Model) -> float:
    """In 32-bit operations per image, multiplications and additions; multiplications by a stored zero are skipped."""
    network = dense_network(model)
    images = torch.zeros(1, *model.spec.input_shape)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Counter(model, network) as counter:
        network(images)
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up what each of torch's operations would cost.

    What moves, reshapes or looks up values is free, and so is a norm that could be folded into the convolution before
    it, but for one addition: the convolution's bias.
    """

    def __init__(self, model: Model, network: nn.Module) -> None:
        super().__init__()
        self.model, self.total = model, 0.0
        self.float_bits = 32 if _quantized(model) else FREE_BITS
        self.names = {w.data_ptr(): name for name, w in (*network.named_parameters(), *network.named_buffers())}
        self.calls: Counter[str] = Counter()
        self.made_by: dict[int, str] = {}  # the layer that an output comes from, by its place in memory
        self.outputs: list[Tensor] = []  # kept, so that no place is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor):
            self.total += self._cost(func.overloadpacket, args, first)
            self.outputs.append(first)
        return out

    def _cost(self, operation: Any, args: Any, out: Tensor) -> float:
        n, bits = out.numel(), self.float_bits
        if operation is aten.convolution:
            return self._product(args[1], out, n // out.shape[1])
        if operation is aten.addmm:
            return self._product(args[2], out, n // out.shape[1])
        if operation is aten.mm:
            return self._product(args[1], out, n // out.shape[1])
        if operation is aten.bmm:
            return 2 * n * args[0].shape[2] * bits / 32
        if operation in (aten.native_batch_norm, aten._native_batch_norm_legit_no_training):
            layer = self.made_by.get(args[0].data_ptr())  # coded weights cannot take a scale
            coded = layer is None or isinstance(self.model.tensors.get(layer), Coded)
            return n * (1 + coded) * bits / 32
        if operation in (aten.max_pool2d_with_indices, aten.max_pool2d):
            return n * (math.prod(args[1]) - 1) * bits / 32  # comparisons
        if operation in (aten.mean, aten.sum, aten._adaptive_avg_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d):
            return args[0].numel() * bits / 32  # each input is added once; the division is one of them
        multiplications, additions = PER_ELEMENT.get(operation, (0, 0))
        return n * (multiplications + additions) * bits / 32

    def _product(self, weight: Tensor, out: Tensor, positions: int) -> float:
        name = self.names.get(weight.data_ptr(), "")
        self.made_by[out.data_ptr()] = name
        multiplications = int(weight.count_nonzero()) * positions
        # int8 products are summed in 32 bits.
        encoded, bits = self.model.tensors.get(name), self.float_bits
        if isinstance(encoded, Int8):
            layer = name.removesuffix(".weight")
            self.calls[layer] += 1
            place = layer if self.calls[layer] == 1 else f"{layer}:{self.calls[layer]}"
            given = self.model.activations.get(f"{place}:in")
            bits = self.float_bits if given is None else max(given.bits, encoded.bits)
        return multiplications * bits / 32 + multiplications * self.float_bits / 32
