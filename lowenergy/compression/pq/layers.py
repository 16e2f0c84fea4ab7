"""Codes of layers: which layers get one, their blocks, how much errors matter, and codes chosen by their price."""

import torch
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.errors import UserError
from lowenergy.compression.pq import Params
from lowenergy.compression.pq.codebooks import (
    Codebook,
    Metric,
    Moments,
    assign,
    bits,
    blocks_of,
    outputs_by_position,
    row_major,
)
from lowenergy.storage.coded import CodedWeight, coded_weights

Layer = nn.Conv2d | nn.Linear
Shape = tuple[int, int]  # block length and codewords
SETTLING = 3  # rounds of choosing codes by the bits that they got in the round before


def layers_to_code(network: networks.Network, p: Params) -> dict[str, Layer]:
    """The layers whose weights become codewords; of layers that share a weight, only the first.

    Raises:
        UserError: no layer is left.
    """
    layers = networks.coded_layers(network)
    first = next(iter(layers.values()))
    chosen: dict[str, Layer] = {}
    for name, layer in layers.items():
        spared = p.keep_first and layer.weight is first.weight
        if not spared and all(layer.weight is not other.weight for other in chosen.values()):
            chosen[name] = layer
    if not chosen:
        raise UserError("params.yaml: pq.keep_first leaves no layer to code; give false")
    return chosen


def groups_of(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def owners_of(network: nn.Module, layer: Layer) -> dict[str, Layer]:
    """The layers that use this one's weight in the same groups, by name: as a rule, it alone."""
    alike = [module for module, _ in networks.sharing(network, layer)]
    return {
        name: module
        for name, module in network.named_modules()
        if module in alike and isinstance(module, nn.Conv2d | nn.Linear) and groups_of(module) == groups_of(layer)
    }


def block_length(layer: Layer, p: Params) -> int:
    """Weights per block: `block_conv` for a k x k convolution (`block_small` for a small one), `block_1x1` for a 1x1
    convolution, `block_fc` for a fully connected layer, lowered until it divides an output channel's weights."""
    if isinstance(layer, nn.Linear):
        wanted = p.block_fc
    elif layer.kernel_size == (1, 1):
        wanted = p.block_1x1
    else:
        wanted = p.block_small if layer.weight.numel() <= p.small_weights else p.block_conv
    row = layer.weight[0].numel()
    return max(d for d in range(1, min(wanted, row) + 1) if row % d == 0)


def codewords_for(layer: Layer, d: int, p: Params) -> int:
    """Number of codewords: as many as asked for, but at most the largest power of two up to blocks /
    `vectors_per_codeword`; this bound is never below 2, unless there are fewer blocks."""
    wanted = p.codewords_fc if isinstance(layer, nn.Linear) else p.codewords
    blocks = layer.weight.numel() // d
    return min(wanted, blocks, 2 ** max(1, (blocks // p.vectors_per_codeword).bit_length() - 1))


def blocks_and_metric(
    name: str, layer: Layer, d: int, moments: Moments, weights: dict[str, Tensor] | None, p: Params
) -> tuple[Tensor, Metric]:
    """The blocks of a layer's weight that are to be coded, (p, o, d), and how much their errors matter.

    Args:
        weights: by layer, how much an error of each output channel matters; None for all alike.
    """
    weight, groups = layer.weight.detach(), groups_of(layer)
    blocks = blocks_of(weight, d, groups)
    matter = weights[name] if weights else torch.ones(len(weight))
    return blocks, Metric(grams_for(moments, p), outputs_by_position(matter, len(blocks), groups))


def grams_for(moments: Moments, p: Params) -> Tensor:
    """The matrices that weigh the errors of blocks, (p, d, d), as `pq.gram` says."""
    if p.gram == "none":
        return torch.eye(moments.sums.shape[1]).expand_as(moments.squares)
    if p.gram == "covariance":
        return moments.covariance()
    gram = moments.gram()
    return gram.mean(0, keepdim=True).expand_as(gram) if p.gram == "layer" else gram


class PricedCode(CodedWeight):
    """A coded weight that keeps what it takes to choose its codes again, at another price of bits or after training."""

    def __init__(self, learnt: Codebook, weight: Tensor, metric: Metric, rate: float, groups: int = 1) -> None:
        super().__init__(row_major(learnt.codes, groups), len(learnt.codewords), tuple(weight.shape))
        self.weight, self.metric, self.rate, self.groups = weight, metric, rate, groups
        self.first = self.codes.clone()
        self.penalty = rate * bits(learnt.codes, len(learnt.codewords))  # of each codeword, when codes were last chosen
        self.missed: nn.Parameter | None = None  # see moving.py
        self.scale = 0.0

    def forward(self, codebook: Tensor) -> Tensor:
        decoded = super().forward(codebook)
        if self.missed is None:
            return decoded
        return decoded + self.scale * (self.missed - self.missed.detach())  # 0, with a gradient

    def assign(self, codebook: Tensor, dearer: float) -> None:
        """Choose the codeword of each block again, as if a bit had cost this many times as much.

        It starts from the first codes: codes chosen at a high price would not bring back a codeword they left unused.
        """
        factors, codebook = self.metric.factors(), codebook.detach().cpu()
        white = blocks_of(self.weight, codebook.shape[1], self.groups) @ factors
        chosen = self.first.long()
        for _ in range(SETTLING):
            self.penalty = dearer * self.rate * bits(chosen, len(codebook))
            chosen, _ = assign(white, factors, self.metric.weights, codebook, self.penalty)
        self.codes.copy_(row_major(chosen, self.groups))

    def settle(self, codebook: Tensor) -> None:
        """Make the weight as it now is the one to approximate, and its codes the first ones."""
        self.weight = self(codebook).detach()
        self.first = self.codes.clone()


def priced_codes(network: networks.Network) -> list[tuple[Tensor, PricedCode]]:
    """Codebook and codes of all priced layers; those that layers share appear once."""
    codes = {id(code): (codebook, code) for _, _, codebook, code in coded_weights(network)}
    return [(codebook, code) for codebook, code in codes.values() if isinstance(code, PricedCode)]
