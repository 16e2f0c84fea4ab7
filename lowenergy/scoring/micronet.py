"""The MicroNet challenge's score (NeurIPS 2019, CIFAR-100 track): storage / 36.5 M + operations / 10.49 B.

Storage counts every value inference needs, in 32-bit units: b bits count b / 32, a sparse tensor counts its nonzero
values and one bit per element. Operations count multiplications and additions of one example, at b / 32 for b-bit
operands (the wider one counts). Values stored as floats may count as 16 bits for free, unless the model is quantized
below 16 bits anywhere. Decoding a codeword is a table look-up, without arithmetic.

The rules leave open how wide a sum of integer products is; depending on it, the winner of the ImageNet track scored
0.150 to 0.214 (github.com/peiswang/MicroNetChallenge, Score.md). Three of its four ways are measured here, all exact:

    wide      32 bits, in which this project's runtimes add
    integer   as many bits as the layer's largest possible sum takes: b_w + b_x + ceil(log2 n) for n products
    tree      pairs are added, then pairs of these sums, ...: one bit more at each level
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lowenergy import networks
from lowenergy.runtimes.loading import dense_network
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Dense, Encoding, Int8, Sparse

STORAGE, OPERATIONS = 36.5e6, 10.49e9  # of the challenge's reference, WRN-28-10
FREE_BITS = 16
WIDE = 32  # bits in which integer products are summed, unless said otherwise
aten = torch.ops.aten
# (multiplications, additions) per output; an exponential or a division counts as a multiplication, a comparison as an
# addition. Any other operation that works element by element counts as one of either.
PER_ELEMENT: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((aten.clone, aten.where, aten.masked_fill), (0, 0)),  # these move values, and compute nothing
    **dict.fromkeys((aten.relu, aten.relu_), (0, 1)),
    **dict.fromkeys((aten.hardtanh, aten.hardtanh_), (0, 2)),  # ReLU6
    **dict.fromkeys((aten.leaky_relu, aten.leaky_relu_, aten._prelu_kernel, aten.rrelu_with_noise), (1, 1)),
    **dict.fromkeys((aten.silu, aten.silu_), (3, 1)),  # x / (1 + exp(-x)): negate, exponentiate, divide; add
    **dict.fromkeys((aten.sigmoid, aten.sigmoid_), (2, 1)),
    **dict.fromkeys((aten.elu, aten.elu_, aten.celu, aten.celu_), (1, 2)),
    **dict.fromkeys((aten.gelu, aten.tanh, aten.tanh_, aten.softplus, aten.log_sigmoid_forward, aten.glu), (3, 1)),
    **dict.fromkeys((aten.mish, aten.mish_), (7, 2)),  # x tanh(softplus(x))
    **dict.fromkeys((aten.hardsigmoid, aten.hardsigmoid_), (1, 3)),
    **dict.fromkeys((aten.hardswish, aten.hardswish_), (2, 3)),
    **dict.fromkeys((aten.rsub, aten.cumsum), (0, 1)),
    aten._softmax: (2, 2),  # exponentiate, divide; subtract the largest, sum
    aten._log_softmax: (1, 3),
    **dict.fromkeys((aten.upsample_bilinear2d, aten._upsample_bilinear2d_aa), (4, 3)),  # of four neighbours
    **dict.fromkeys((aten.upsample_bicubic2d, aten._upsample_bicubic2d_aa), (16, 15)),
    **dict.fromkeys((aten.native_layer_norm, aten.native_group_norm), (3, 3)),  # square, scale, weight; sums and shifts
}
MAX_POOLS = (aten.max_pool2d_with_indices, aten.max_pool2d, aten.max_pool3d_with_indices)
AVERAGE_POOLS = (aten.avg_pool2d, aten.avg_pool3d)
ADAPTIVE_POOLS = (aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.adaptive_max_pool2d)
BATCH_NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training)


class Operations(NamedTuple):
    """32-bit operations per image, for each way to sum integer products."""

    wide: float
    integer: float
    tree: float


def measure(model: Model, macs: float) -> dict[str, float]:
    """Return micronet.{storage, operations, score}: 32-bit values, 32-bit operations, and the weighted sum of both.

    score assumes sums of 32 bits, score_integer and score_tree narrower ones. simplified is PunyNet's count, whose
    published figure is 0.1906: it leaves out additions, activations and norms.
    """
    storage, operations = storage_of(model), operations_of(model)
    return {
        "storage": storage,
        "operations": operations.wide,
        "score": storage / STORAGE + operations.wide / OPERATIONS,
        "score_integer": storage / STORAGE + operations.integer / OPERATIONS,
        "score_tree": storage / STORAGE + operations.tree / OPERATIONS,
        "simplified": storage / STORAGE + macs / OPERATIONS,
    }


def _quantized(model: Model) -> bool:
    return any(isinstance(encoded, Int8 | Coded) for encoded in model.tensors.values())


def _float_bits(model: Model, values: Tensor) -> int:
    return values.element_size() * 8 if _quantized(model) else FREE_BITS


def storage_of(model: Model) -> float:
    """The storage in 32-bit values. BatchNorm counts two values a channel: inference needs only scale and shift."""
    bits = 0
    for name, encoded in model.tensors.items():
        norm, _, of_norm = name.rpartition(".")
        if of_norm in ("running_mean", "running_var") and f"{norm}.weight" in model.tensors:
            continue  # they merge with weight and bias
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


def operations_of(model: Model) -> Operations:
    """Count multiplications and additions, except those with a stored zero.

    In a layer of integers, each output is multiplied by the step of its weights, and each input is rounded by another
    multiplication, only once if several layers share it.
    """
    network = dense_network(model)
    images = torch.zeros(1, *model.spec.input_shape)
    with torch.no_grad(), networks.unfused(), sdpa_kernel(SDPBackend.MATH), _Counter(model, network) as counter:
        network(images)
    return Operations(counter.total, counter.total - counter.spared["integer"], counter.total - counter.spared["tree"])


def sum_bits(products: int, width: int) -> tuple[int, int]:
    """Bits of all additions in one sum of so many products that are `width` bits wide: (integer, tree).

    >>> sum_bits(4, width=8)  # 3 additions of 10 bits; 2 of 8 and 1 of 9
    (30, 25)
    """
    levels = max(products - 1, 0).bit_length()
    tree, left = 0, products
    for level in range(levels):
        tree += left // 2 * min(width + level, WIDE)
        left -= left // 2
    return max(products - 1, 0) * min(width + levels, WIDE), tree


def _read(given: torch.Size, out: torch.Size) -> int:
    """How many inputs all windows of an adaptive pool have, which overlap where the sizes do not divide.

    Args:
        given, out: shapes of its inputs and outputs.
    """
    sides = zip(given[2:], out[2:], strict=True)
    return math.prod(given[:2]) * math.prod(sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in sides)


class _Counter(TorchDispatchMode):
    """Adds up what each of torch's operations would cost.

    Operations that move, reshape or look up values are free. So is a norm that could be folded into the convolution
    before it, except for one addition: the convolution's bias.
    """

    def __init__(self, model: Model, network: nn.Module) -> None:
        super().__init__()
        self.model, self.total = model, 0.0
        self.spared = {"integer": 0.0, "tree": 0.0}  # what narrower sums save of the total
        self.rounded: set[tuple[int, Any]] = set()  # inputs counted so far, by place in memory and range
        self.float_bits = 32 if _quantized(model) else FREE_BITS
        self.names = {w.data_ptr(): name for name, w in (*network.named_parameters(), *network.named_buffers())}
        self.calls: Counter[str] = Counter()
        self.made_by: dict[int, str] = {}  # the layer that an output comes from, by its place in memory
        self.outputs: list[Tensor] = []  # kept, so that no place is used twice
        self.products = networks.flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor):
            self.total += self._cost(func, args, kwargs or {}, first)
            self.outputs.append(first)
        return out

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> float:
        operation, n, bits = func.overloadpacket, out.numel(), self.float_bits
        if operation is aten.convolution:
            seen = args[0] if args[6] else out  # transposed: each weight meets each input
            return self._product(args[0], args[1], out, seen.numel() // seen.shape[1])
        if operation is aten.addmm:
            return self._product(args[1], args[2], out, n // out.shape[1])
        if operation is aten.mm:
            return self._product(args[0], args[1], out, n // out.shape[1])
        if operation in self.products:
            return float(self.products[operation](*args, **kwargs, out_val=out)) * bits / 32
        return self._apart_from_products(func, args, out) * bits / 32

    def _apart_from_products(self, func: Any, args: Any, out: Tensor) -> int:
        operation, n = func.overloadpacket, out.numel()
        if operation in BATCH_NORMS:
            if any(given is True for given in args):  # statistics of these very inputs, as those of an InstanceNorm
                return n * sum(PER_ELEMENT[aten.native_group_norm])
            layer = self.made_by.get(args[0].data_ptr())  # coded weights cannot absorb a scale
            return n * (1 + (layer is None or isinstance(self.model.tensors.get(layer), Coded)))
        if operation in MAX_POOLS:
            return n * (math.prod(args[1]) - 1)  # comparisons
        if operation in AVERAGE_POOLS:
            return n * math.prod(args[1])  # k inputs take k - 1 additions and a division
        if operation in ADAPTIVE_POOLS:
            return _read(args[0].shape, out.shape) - n * (operation is aten.adaptive_max_pool2d)
        if operation in PER_ELEMENT:
            return n * sum(PER_ELEMENT[operation])
        if torch.Tag.reduction in func.tags:
            return int(args[0].numel())
        computes = any(isinstance(given, Tensor) and given.is_floating_point() for given in args)
        return n * (computes and torch.Tag.pointwise in func.tags)  # integers are places, known beforehand

    def _product(self, x: Tensor, weight: Tensor, out: Tensor, positions: int) -> float:
        name = self.names.get(weight.data_ptr(), "")
        self.made_by[out.data_ptr()] = name
        products = int(weight.count_nonzero()) * positions
        encoded = self.model.tensors.get(name)
        if not isinstance(encoded, Int8):
            return 2 * products * self.float_bits / 32
        layer = name.removesuffix(".weight")
        self.calls[layer] += 1
        place = layer if self.calls[layer] == 1 else f"{layer}:{self.calls[layer]}"
        given = self.model.activations.get(f"{place}:in")
        scaled = out.numel() * self.float_bits / 32
        if given is None:  # integers that become floats first
            return 2 * products * self.float_bits / 32 + scaled
        bits = max(given.bits, encoded.bits)
        counts = Counter(encoded.values.flatten(1).count_nonzero(1).tolist())  # products of an output: channels
        for products_of_one, channels in counts.items():
            additions = channels * positions / 32
            integer, tree = sum_bits(products_of_one, encoded.bits + given.bits)
            wide = max(products_of_one - 1, 0) * WIDE
            self.spared["integer"] += additions * (wide - integer)
            self.spared["tree"] += additions * (wide - tree)
        rounding = 0.0
        if (key := (x.data_ptr(), given)) not in self.rounded:
            self.rounded.add(key)
            rounding = x.numel() * self.float_bits / 32
        return products * (bits + WIDE) / 32 + scaled + rounding
