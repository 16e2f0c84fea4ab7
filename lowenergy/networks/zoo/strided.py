"""The published small MNIST EBM: four strided convolutions and a hidden layer, 77 k parameters at width 16."""

from itertools import pairwise

from torch import nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, ConvNorm


def features(spec: Spec) -> nn.Sequential:
    widths, act = [spec.width * 2**i for i in (0, 1, 2, 2)], ACTIVATIONS[spec.activation]
    layers: list[nn.Module] = [ConvNorm(spec.channels, widths[0], 5, 2, spec.norm), act()]
    for channels, out in pairwise(widths):
        layers += [ConvNorm(channels, out, 3, 2, spec.norm), act()]
    flat = widths[-1] * (-(-spec.image_size // 2**4)) ** 2  # four halvings, rounded up
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, widths[-1]), act())
