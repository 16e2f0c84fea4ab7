"""Layers whose weight stays coded in memory, as indices and codewords, and is decoded each time the layer is used."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lowenergy import networks


class CodedWeight(nn.Module):
    """A weight made of codewords. Its parametrization's only parameter is the codebook, so training moves codewords."""

    def __init__(self, codes: Tensor, k: int, shape: tuple[int, ...]) -> None:
        """
        Args:
            codes: below k, one for each row-major block of the weight.
            shape: the weight's shape.
        """
        super().__init__()
        self.codes: Tensor
        self.register_buffer("codes", codes.to(torch.uint8 if k <= 256 else torch.int32))
        self.shape = shape

    def forward(self, codebook: Tensor) -> Tensor:
        # embedding, not indexing, because its gradient adds up in a fixed order.
        return F.embedding(self.codes.int(), codebook).view(self.shape)


def attach(network: nn.Module, layer: nn.Module, codebook: Tensor, weight: CodedWeight) -> None:
    """Make the layer, and all that share its weight, decode it from `codebook`, (k, d), whenever it is used."""
    trained = nn.Parameter(codebook)
    for owner, key in networks.sharing(network, layer):
        setattr(owner, key, trained)
        parametrize.register_parametrization(owner, key, weight, unsafe=True)  # unsafe: the shape changes


def coded_weights(network: networks.Network) -> Iterator[tuple[str, nn.Module, nn.Parameter, CodedWeight]]:
    """Yield name, layer, codebook and coded weight of each layer that `attach` was called on, in forward order."""
    for name, layer in networks.coded_layers(network).items():
        if parametrize.is_parametrized(layer, "weight"):
            of_weight: Any = layer.parametrizations.weight  # type: ignore[union-attr]
            yield name, layer, of_weight.original, of_weight[0]
