"""Residual blocks down to an eighth of the image and up again (Ronneberger et al. 2015), with attention at a quarter.

The way up ends in an image f(x), and the energy is Σ x·f(x). Its slope at a pixel is about f there, so the network says
at full resolution where an image should go, as diffusion networks do, and is still an energy. Places that attend to
each other can agree on what is being drawn (Vaswani et al. 2017). The bottom of the U tells the classes apart.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.networks.spec import Spec
from lowenergy.networks.zoo.blocks import ACTIVATIONS
from lowenergy.networks.zoo.residual import Block, scaled

WIDTHS = 1, 2, 2, 4  # at each resolution, as multiples of the spec's width
ATTENTIVE = 2  # the resolution whose places attend to each other: a quarter of the image


def features(spec: Spec) -> nn.Sequential:
    return nn.Sequential(Unet(spec))


class Unet(nn.Module):
    """Images -> features of the bottom, (batch, 4 * width), and a term that all logits share, (batch, 1)."""

    keeps_channels = ("draw",)  # it puts out as many channels as the images have

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        widths = [multiple * spec.width for multiple in WIDTHS]
        self.stem = scaled(spec.channels, widths[0], 3, 1, 1.0, spec)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            block = Block(widths[max(0, i - 1)], width, 2 if i else 1, spec)
            self.down.append(nn.Sequential(block, Attention(width, spec)) if i == ATTENTIVE else block)
        self.act1 = ACTIVATIONS[spec.activation]()
        for i in reversed(range(len(widths) - 1)):
            self.up.append(Up(widths[i + 1], widths[i], spec))
        self.act2 = ACTIVATIONS[spec.activation]()
        self.draw = scaled(widths[0], spec.channels, 3, 1, 0.3, spec)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, skips = self.stem(x), []
        for down in self.down:
            h = down(h)
            skips.append(h)
        bottom = self.act1(skips.pop())
        for up in self.up:
            h = up(h, skips.pop())
        drawn = self.draw(self.act2(h))
        return bottom.sum((2, 3)), (x * drawn).sum((1, 2, 3))[:, None]


class Up(nn.Module):
    """Double the resolution, add the features that had it on the way down, and apply a block."""

    def __init__(self, channels_in: int, channels_out: int, spec: Spec) -> None:
        super().__init__()
        self.narrow = scaled(channels_in, channels_out, 1, 1, 1.0, spec)
        self.block = Block(channels_out, channels_out, 1, spec)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        doubled = F.interpolate(self.narrow(x), scale_factor=2.0)
        return self.block((doubled[..., : skip.shape[2], : skip.shape[3]] + skip) * 0.7)


class Attention(nn.Module):
    """x + what each place gathers from all places."""

    def __init__(self, channels: int, spec: Spec) -> None:
        super().__init__()
        self.query, self.key, self.value = (scaled(channels, channels, 1, 1, 1.0, spec) for _ in range(3))
        self.gathered = scaled(channels, channels, 1, 1, 0.5, spec)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (query.mT @ key * query.shape[1] ** -0.5).softmax(-1)  # (batch, places that look, places looked at)
        return x + self.gathered((value @ weights.mT).unflatten(2, x.shape[2:]))
