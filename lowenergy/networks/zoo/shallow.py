"""Two strided convolutions, flattened: the smallest student of the earlier study."""

from torch import nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, ConvNorm


def features(spec: Spec) -> nn.Sequential:
    act = ACTIVATIONS[spec.activation]
    first = ConvNorm(spec.channels, spec.width, 5, 2, spec.norm)
    second = ConvNorm(spec.width, 2 * spec.width, 3, 2, spec.norm)
    return nn.Sequential(first, act(), second, act(), nn.Flatten())
