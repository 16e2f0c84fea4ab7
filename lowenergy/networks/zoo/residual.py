"""Residual blocks at four resolutions (He et al. 2016, pre-activated), meant for no norms, summed over the image.

For energies of images too large for `cnn`: through its plain layers, a freshly initialised energy has hardly any slope.
Here shortcuts carry the slope, weights start at a scale that keeps it, and the energy is a sum over places, which grows
with the image.
"""

from torch import Tensor, nn

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS, ConvNorm

STAGES = (1, 2, 2, 4), (1, 2, 2, 1)  # for each stage: its width, as a multiple of the spec's; its number of blocks


def features(spec: Spec) -> nn.Sequential:
    kernel, stride = (5, 2) if spec.stem == "5x5" else (3, 1)
    layers: list[nn.Module] = [scaled(spec.channels, spec.width, kernel, stride, 1.0, spec)]
    channels = spec.width
    for stage, (multiple, blocks) in enumerate(zip(*STAGES, strict=True)):
        for block in range(blocks):
            out = multiple * spec.width
            layers.append(Block(channels, out, 2 if stage and not block else 1, spec))
            channels = out
    return nn.Sequential(*layers, ACTIVATIONS[spec.activation](), Sum())


class Block(nn.Module):
    """shortcut(x) + conv(act(conv(act(x))))."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, spec: Spec) -> None:
        super().__init__()
        act = ACTIVATIONS[spec.activation]
        self.act1 = act()
        self.first = scaled(channels_in, channels_out, 3, stride, 1.4, spec)
        self.act2 = act()
        self.second = scaled(channels_out, channels_out, 3, 1, 0.7, spec)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else scaled(channels_in, channels_out, 1, stride, 1.0, spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.act2(self.first(self.act1(x))))


class Sum(nn.Module):
    """(batch, channels, height, width) -> (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


def scaled(channels_in: int, channels_out: int, kernel: int, stride: int, gain: float, spec: Spec) -> ConvNorm:
    """A ConvNorm with weights of standard deviation gain / √inputs (nn.Conv2d's: 1 / √(3 inputs)) and biases of 0."""
    layer = ConvNorm(channels_in, channels_out, kernel, stride, spec.norm)
    nn.init.normal_(layer.conv.weight, std=gain * (channels_in * kernel**2) ** -0.5)
    if layer.conv.bias is not None:
        nn.init.zeros_(layer.conv.bias)
    return layer
