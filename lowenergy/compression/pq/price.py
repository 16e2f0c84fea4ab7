"""Find the price of bits, one for all layers, at which the file takes the bytes of the budget.

It is first estimated on a sample, before anything is coded, then adjusted until the whole file is below the budget. If
training has made the file larger, some codes are chosen again.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowenergy import networks, training
from lowenergy.base.errors import UserError
from lowenergy.base.precision import Precision
from lowenergy.compression.pq import Params
from lowenergy.compression.pq.activations import moments_of
from lowenergy.compression.pq.codebooks import Codebook, Metric, assign, bits, learn
from lowenergy.compression.pq.encoding import encoded
from lowenergy.compression.pq.layers import (
    PricedCode,
    Shape,
    block_length,
    blocks_and_metric,
    layers_to_code,
    priced_codes,
)
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Coded, Dense, entropy
from lowenergy.training import Run, chance

SAMPLE = 2**13  # blocks per layer that are enough to find the price of a bit
FILL = 0.99, 0.997  # least and largest share of the budget to use before training, which may cost a few bytes
LEAST_PRICE = 1e-3  # to start from where bits were free, as a factor of the first
HEADER_VARIES = 24  # bytes: its digest and its answers compress by chance, and its text is padded to eight


def check(network: networks.Network, target: str, p: Params, run: Run) -> None:
    """Check that the weights can be coded, and that a file of at most p.budget_bytes is possible.

    Raises:
        UserError: a weight is not finite, or the file exceeds the budget even with one codeword per layer.
    """
    layers = layers_to_code(network, p)
    for name, layer in layers.items():
        if not layer.weight.isfinite().all():
            raise UserError(f"{run.name}: the weight of {name} is not finite; train {network.spec.name} again")
    if p.budget_bytes is None:
        return
    tensors = dict(encoded(network, target).tensors)
    for name, layer in layers.items():
        shape = tuple(layer.weight.shape)
        codes = torch.zeros(layer.weight.numel() // (d := block_length(layer, p)), dtype=torch.long)
        tensors[f"{name}.weight"] = Coded(codes, _incompressible(torch.Size((1, d)), torch.float16), shape)
    learning = {name for name, value in network.named_parameters() if value.requires_grad}
    for name, part in tensors.items():
        if isinstance(part, Dense) and (part.values.dtype == torch.float16 or name in learning):
            tensors[name] = Dense(_incompressible(part.values.shape, part.values.dtype))
    said = _provenance(p, run, training.POSSIBLE_WARNINGS)
    smallest = len(artifact.to_bytes(Model(target, network.spec, tensors), said))
    if smallest + HEADER_VARIES > FILL[1] * p.budget_bytes:
        raise _too_small(p, smallest)


def _incompressible(shape: torch.Size, kind: torch.dtype) -> Tensor:
    """Numbers as hard to compress as those that training may make."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)


def _too_small(p: Params, smallest: int) -> UserError:
    enough = math.ceil((smallest + HEADER_VARIES) / FILL[1])
    return UserError(
        f"params.yaml: pq.budget_bytes = {p.budget_bytes}: the smallest file found has {smallest:,} bytes; give at "
        f"least {enough:,}, as training may cost a few, or larger blocks or fewer codewords"
    )


def price_of_bits(
    network: networks.Network,
    images: Tensor,
    weights: dict[str, Tensor] | None,
    shapes: dict[str, Shape],
    p: Params,
    precision: Precision,
    seed: int,
) -> float:
    """Estimate the price of a bit at which the codes of all layers, and the rest as float16, take about `budget_bytes`.

    The estimate comes from a sample of each layer's output channels in the uncoded network; fit_budget corrects it.
    """
    assert p.budget_bytes is not None
    layers = layers_to_code(network, p)
    lengths = {name: d for name, (d, _) in shapes.items()}
    moments = moments_of(network, lengths, images, precision)
    wanted = 8.0 * p.budget_bytes
    sampled: list[tuple[float, Tensor, Tensor, Tensor, Codebook]] = []
    for name, layer in layers.items():
        blocks, metric = blocks_and_metric(name, layer, lengths[name], moments[name], weights, p)
        every = max(1, blocks.shape[0] * blocks.shape[1] // SAMPLE)
        some = torch.arange(blocks.shape[1])[min(every // 2, blocks.shape[1] - 1) :: every]
        metric = Metric(metric.grams, metric.weights[..., some])
        k = min(shapes[name][1], blocks.shape[0] * len(some))
        learnt = learn(blocks[:, some], metric, k, steps=4, generator=torch.Generator().manual_seed(seed))
        factors = metric.factors()
        scale = blocks.shape[1] / len(some)
        sampled.append((scale, blocks[:, some] @ factors, factors, metric.weights, learnt))
    coded = sum(layer.weight.numel() for layer in layers.values())
    wanted -= 16 * (sum(value.numel() for value in artifact.weights(network).values()) - coded)

    def taken(rate: float) -> float:
        total = 0.0
        for scale, white, factors, weight, learnt in sampled:
            codes = learnt.codes
            for _ in range(6):  # enough for bits and choices to agree
                penalty = rate * bits(codes, len(learnt.codewords))
                codes, _ = assign(white, factors, weight, learnt.codewords, penalty)
            used = len(codes.unique())  # codewords that nothing uses are not stored
            total += scale * codes.numel() * entropy(codes) + 16 * used * learnt.codewords.shape[1]
        return total

    low, high = -30.0, 10.0  # bounds of log(rate)
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if taken(math.exp(middle)) > wanted else (low, middle)
    return math.exp((low + high) / 2)


def fit_budget(
    network: networks.Network, target: str, p: Params, run: Run, start: float = 1.0, *, must: bool = True
) -> float:
    """Choose all codes again, at the price of bits that brings the file just below the budget: bracket, then bisect.

    A higher price need not mean fewer bytes, so the largest file that fits is kept. If one fits even with free bits,
    the search ends.

    Args:
        start: the price at which codes are chosen now.
        must: refuse a budget that no price keeps to; otherwise, keep the smallest file.
    Returns:
        the price that was found, as a factor of the first.
    Raises:
        UserError: no price brings the file below the budget.
    """
    if p.budget_bytes is None:
        return start
    low, high = FILL[0] * p.budget_bytes, FILL[1] * p.budget_bytes
    smallest = sys.maxsize
    dear = cheap = None  # prices, as factors of the first: of a file that fits, and of one that does not
    price, stride = start, 1.1
    coded = priced_codes(network)
    best, kept, found = 0, [(code.codes.clone(), code.penalty) for _, code in coded], start
    least = kept
    for _ in range(24):
        size = _size(network, target, p, run, reserved=True)
        print(f"{target}/pq  at {price:.3g} times the price of a bit: {size:,} bytes", flush=True)
        if size < smallest:
            smallest, least = size, [(code.codes.clone(), code.penalty) for _, code in coded]
        if best < size <= high:
            best, kept, found = size, [(code.codes.clone(), code.penalty) for _, code in coded], price
        if low < best:
            break
        if price:
            dear, cheap = (price, cheap) if size <= high else (dear, price)
        elif size <= high:  # even with free bits
            break
        if dear and cheap:
            new = math.sqrt(dear * cheap)
        elif dear == price == start:  # the first file fits; perhaps one with free bits does, too
            new = 0.0
        else:
            last = cheap or dear or price
            new, stride = (last * stride if cheap else last / stride), min(stride**2, 100)
        for codebook, code in coded:
            code.assign(codebook, new)
        price = new
    if not best and must:
        raise _too_small(p, smallest)
    for (_, code), (codes, code.penalty) in zip(coded, kept if best else least, strict=True):
        code.codes.copy_(codes)
    return found


def fit_again(network: networks.Network, target: str, p: Params, run: Run, price: float) -> None:
    """The same for other weights than before, whose price was `price`; what is still too large is for keep_budget."""
    start = price or LEAST_PRICE
    for codebook, code in priced_codes(network) if p.budget_bytes else ():
        code.assign(codebook, start)
    fit_budget(network, target, p, run, start, must=False)


def keep_budget(network: networks.Network, target: str, p: Params, run: Run) -> None:
    """If training has made the file larger than the budget, give blocks that hardly mind another codeword one that
    costs fewer bits.

    Raises:
        UserError: that is not enough.
    """
    if p.budget_bytes is None or (size := _size(network, target, p, run)) <= p.budget_bytes:
        return
    coded = priced_codes(network)
    for codebook, code in coded:
        code.settle(codebook)
    low, high = 1e-6, 1e-6  # prices: of a file that is too large, and of one that is not
    while size > p.budget_bytes and high < 1e30:
        low, high = high, 8 * high
        size = _priced(network, target, coded, high, p, run)
    if size > p.budget_bytes:
        raise _too_small(p, size)
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (
            (low, middle) if _priced(network, target, coded, middle, p, run) <= p.budget_bytes else (middle, high)
        )
    size = _priced(network, target, coded, high, p, run)
    print(f"{target}/pq  training had made it larger; some codes chosen again: {size:,} bytes", flush=True)


def _priced(
    network: networks.Network, target: str, coded: list[tuple[Tensor, PricedCode]], price: float, p: Params, run: Run
) -> int:
    for codebook, code in coded:
        code.assign(codebook, price)
    return _size(network, target, p, run)


def _size(network: networks.Network, target: str, p: Params, run: Run, *, reserved: bool = False) -> int:
    """Bytes of the file, header included; `reserved`: with room for the warnings that training may still add."""
    warnings = training.POSSIBLE_WARNINGS if reserved else run.provenance.get("warnings", [])
    return len(artifact.to_bytes(encoded(network, target), _provenance(p, run, warnings)))


def _provenance(p: Params, run: Run, warnings: Sequence[str]) -> dict[str, Any]:
    """The provenance with these warnings, and with the one that may come of the finished file, see chance.check."""
    warnings = [*warnings, *([chance.POSSIBLE_WARNING] if p.accept_chance else [])]
    return {**run.provenance, "warnings": warnings} if warnings else run.provenance
