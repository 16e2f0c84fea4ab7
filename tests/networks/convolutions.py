"""Convolutions of all kinds."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Around(nn.Module):
    """A convolution of 16 channels between a first one and the last layer, for the others to say which."""

    def __init__(self, middle: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.first, self.middle, self.fc = nn.Conv2d(3, 16, 3, padding=1), middle, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.middle(F.silu(self.first(x)))).mean((2, 3)))


class PaddingSame(Around):
    """By name, of an odd and of an even kernel."""

    def __init__(self) -> None:
        odd, even = nn.Conv2d(16, 16, 3, padding="same"), nn.Conv2d(16, 16, 2, padding="same", dilation=3)
        super().__init__(nn.Sequential(odd, nn.SiLU(), even))


class PaddingReflect(Around):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"))


class PaddingReplicate(Around):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 5, padding=2, padding_mode="replicate"))


class PaddingCircular(Around):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"))


class PaddingUneven(Around):
    """Zeros on two sides alone, and an uneven kernel, as TensorFlow pads strided convolutions."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 16, (3, 2), stride=2, padding=(1, 0))))


class SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        down, right = (max(0, (n - 1) // s * s + k - n) for n, s, k in sizes)
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


class PadsItself(Around):
    """In code of its own; the last kernel is larger than what it sees."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(SameConv(16, 16, 3, stride=3), nn.SiLU(), SameConv(16, 16, 5, stride=2)))


class Dilated(Around):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 3, padding=2, dilation=2))


class Strided(Around):
    """Strides that leave a remainder, and one larger than its kernel."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(16, 16, 4, stride=3), nn.SiLU(), nn.Conv2d(16, 16, 1, stride=2)))


class Grouped(Around):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 32, 3, padding=1, groups=4), 32)


class Depthwise(Around):
    """With one and with two filters for each channel."""

    def __init__(self) -> None:
        one, two = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=16)
        super().__init__(nn.Sequential(one, nn.SiLU(), nn.Conv2d(16, 16, 1), nn.SiLU(), two), 32)


class Transposed(Around):
    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), 8)


class GroupedTransposed(Around):
    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1, groups=4), 8)


class OneDimension(nn.Module):
    """Conv1d along the pixels of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.along = nn.Conv2d(3, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm1d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.along(F.silu(self.first(x)).flatten(2)))).mean(2))


class ThreeDimensions(nn.Module):
    """Conv3d over the colours as a depth."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv3d(1, 8, (3, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8)
        self.second, self.fc = nn.Conv2d(8, 16, 3), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.deep(x[:, None]))).squeeze(2)
        return self.fc(F.silu(self.second(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped 1x1 convolutions with channels shuffled between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1, groups=4)
        self.two, self.fc = nn.Conv2d(16, 16, 1, groups=4), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.one(F.silu(self.first(x))))
        x = x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        return self.fc(F.silu(self.two(x)).mean((2, 3)))


class SplitAndJoined(nn.Module):
    """Half of the channels go through a convolution, the others past it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last, self.fc = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.silu(self.first(x)).chunk(2, 1)
        x = self.norm(torch.cat([self.part(left), right], 1))
        return self.fc(F.silu(self.last(x)).mean((2, 3)))


class SplitAndAdded(nn.Module):
    """A residual block for the first half of the channels, as in the stages of CSPNets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.after, self.fc = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.silu(self.first(x)).chunk(2, 1)
        x = torch.cat([F.silu(self.part(left)) + left, right], 1)
        return self.fc(F.silu(self.after(F.silu(self.last(x)))).mean((2, 3)))


class SubPixel(Around):
    """Pixels from channels and back."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2), nn.PixelUnshuffle(4)), 128)
