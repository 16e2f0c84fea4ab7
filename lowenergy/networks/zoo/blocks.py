"""Building blocks of the zoo's networks."""

from collections.abc import Callable

from torch import Tensor, nn

from lowenergy.networks.inputconv import InputConv2d
from lowenergy.networks.spec import Spec

# Every place gets a module of its own: the int8 quantizer tells fused patterns apart by module.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}


class ConvNorm(nn.Module):
    """A convolution followed by BatchNorm, or a convolution with a bias if the network has no norm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        batch = norm == "batch"
        # Images have few channels and, in an energy, a gradient, which InputConv2d computes fast if the stride is 2.
        conv = InputConv2d if channels_in <= 3 and stride == 2 and not batch else nn.Conv2d
        self.conv = conv(channels_in, channels_out, kernel, stride, kernel // 2, bias=not batch)
        self.norm = nn.BatchNorm2d(channels_out) if batch else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, spec: Spec) -> None:
        super().__init__()
        act = ACTIVATIONS[spec.activation]
        self.first = ConvNorm(channels_in, channels_out, 3, stride, spec.norm)
        self.act1 = act()
        self.second = ConvNorm(channels_out, channels_out, 3, 1, spec.norm)
        self.act2 = act()
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else ConvNorm(channels_in, channels_out, 1, stride, spec.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.second(self.act1(self.first(x))) + self.shortcut(x))
