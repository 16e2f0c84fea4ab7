"""Plain convolutions: one at full resolution, then pairs (halve the image, refine), then flattening.

Unlike pooling, flattening keeps where things are, which suits energies of small images.
"""

from torch import nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, ConvNorm


def features(spec: Spec) -> nn.Sequential:
    layers: list[nn.Module] = [
        ConvNorm(spec.channels, spec.width, 3, 1, spec.norm),
        ACTIVATIONS[spec.activation](),
    ]
    channels, size = spec.width, spec.image_size
    while size > 3:
        out = min(2 * channels, 4 * spec.width)
        for into, stride in ((channels, 2), (out, 1)):
            layers += [ConvNorm(into, out, 3, stride, spec.norm), ACTIVATIONS[spec.activation]()]
        channels, size = out, (size + 1) // 2
    return nn.Sequential(*layers, nn.Flatten())
