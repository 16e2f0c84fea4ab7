"""The MicroNet challenge's score (NeurIPS 2019, CIFAR-100 track): storage / 36.5 M + operations / 10.49 B.

Storage counts every value inference needs, in 32-bit units: b bits count b / 32, a sparse tensor counts its nonzero
values and one bit per element. Operations count multiplications and additions of one example, at b / 32 for b-bit
operands (the wider one counts). Values stored as floats may count as 16 bits for free, unless the model is quantized
below 16 bits anywhere. Decoding a codeword is a table look-up, without arithmetic.
"""

import torch
from torch import Tensor, nn

from lowenergy.networks.zoo.blocks import BasicBlock
from lowenergy.runtimes.loading import dense_network
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Dense, Encoding, Int8, Sparse

STORAGE, OPERATIONS = 36.5e6, 10.49e9  # of the challenge's reference, WRN-28-10
FREE_BITS = 16
# (multiplications, additions) per output; an exponential or a division counts as a multiplication, a comparison as an
# addition.
PER_ACTIVATION: dict[type[nn.Module], tuple[int, int]] = {
    nn.ReLU: (0, 1),
    nn.LeakyReLU: (1, 1),
    nn.SiLU: (3, 1),  # x / (1 + exp(-x)): negate, exponentiate, divide; add
    nn.ELU: (1, 2),
    nn.GELU: (3, 1),
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
    bits += len(model.activations) * (32 + 8)  # each range: a scale and a zero point
    return bits / 32


def _bits(model: Model, encoded: Encoding) -> int:
    if isinstance(encoded, Sparse):
        nonzero = int(encoded.values.count_nonzero())
        return nonzero * _float_bits(model, encoded.values) + encoded.values.numel()
    if isinstance(encoded, Int8):
        return encoded.values.numel() * encoded.bits + encoded.scale.numel() * 32
    if isinstance(encoded, Coded):
        return encoded.codes.numel() * encoded.bits + encoded.codebook.numel() * 16
    assert isinstance(encoded, Dense)
    return encoded.values.numel() * _float_bits(model, encoded.values)


def operations_of(model: Model) -> float:
    """In 32-bit operations per image, multiplications and additions; multiplications by a stored zero are skipped."""
    network = dense_network(model)
    float_bits = 32 if _quantized(model) else FREE_BITS
    total = 0.0

    def count(name: str, module: nn.Module, output: Tensor) -> float:
        n = output.numel()
        if isinstance(module, nn.Conv2d | nn.Linear):
            encoded = model.tensors[f"{name}.weight"]
            positions = n // output.shape[1]
            multiplications = int(module.weight.count_nonzero()) * positions
            # int8 products are summed in 32 bits.
            bits = 8 if isinstance(encoded, Int8) else float_bits
            return multiplications * bits / 32 + multiplications * float_bits / 32
        if isinstance(module, nn.BatchNorm2d):  # folds into an uncoded convolution: one addition, its bias
            coded = isinstance(model.tensors[name.replace("norm", "conv") + ".weight"], Coded)
            return n * (1 + coded) * float_bits / 32
        if isinstance(module, nn.MaxPool2d):
            return n * (3 * 3 - 1) * float_bits / 32  # comparisons in the stems' 3x3 windows
        if isinstance(module, BasicBlock):
            return n * float_bits / 32  # the addition of the shortcut
        multiplications, additions = PER_ACTIVATION.get(type(module), (0, 0))
        return n * (multiplications + additions) * float_bits / 32

    def hook(name: str) -> object:
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            nonlocal total
            if isinstance(module, nn.AdaptiveAvgPool2d):
                total += inputs[0].numel() * float_bits / 32  # each input is added once; the division is one of them
            else:
                total += count(name, module, output)

        return add

    for name, module in network.named_modules():
        module.register_forward_hook(hook(name))
    with torch.no_grad():
        network(torch.zeros(1, *model.spec.input_shape))
    return total
