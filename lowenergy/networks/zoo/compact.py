"""Few weights, each used often: a strided 5x5 convolution, then two 3x3 ones at each of three resolutions.

A strided 3x3 convolution leads to the next resolution, and all layers have the same width. `strided` has most of its
weights where the image is 2 pixels a side. Here every 3x3 layer has equally many weights, and most of the work is done
where there is much to look at.
"""

from torch import nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, ConvNorm


def features(spec: Spec) -> nn.Sequential:
    act = ACTIVATIONS[spec.activation]
    layers: list[nn.Module] = [ConvNorm(spec.channels, spec.width, 5, 2, spec.norm), act()]
    for stride in (1, 1, 2, 1, 1, 2, 1, 1):
        layers += [ConvNorm(spec.width, spec.width, 3, stride, spec.norm), act()]
    return nn.Sequential(*layers, nn.Flatten())
