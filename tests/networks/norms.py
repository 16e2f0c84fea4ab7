"""Norms where a network's maker put them, which is not always behind one convolution of their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d


class TwoNorms(nn.Module):
    """One convolution called twice, each time with a norm of its own, as in EfficientDet's heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.fine, self.coarse, self.fc = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        fine, coarse = F.relu(self.fine(self.shared(x))), F.relu(self.coarse(self.shared(F.avg_pool2d(x, 2))))
        return self.fc(torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], 1))


class NormedOnce(nn.Module):
    """One convolution called twice, with a norm the first time only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.shared(F.relu(self.stem(x)))))
        return self.fc(F.relu(self.shared(x)).mean((2, 3)))


class NormCalledTwice(nn.Module):
    """Two convolutions that share one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.second(F.relu(self.norm(self.first(x)))))).mean((2, 3)))


class NormSeesMore(nn.Module):
    """A convolution whose output goes into its norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.silu(self.first(x)))
        return self.fc((self.norm(x) + F.silu(x)).mean((2, 3)))


class NormFirst(nn.Module):
    """A norm and an activation in front of each convolution, and a norm of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.first, self.one = nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.two, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.zero(x))
        x = x + self.second(F.relu(self.one(x)))
        return self.fc(F.relu(self.two(x)).mean((2, 3)))


class NormWithoutAffine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class NormWithoutStatistics(nn.Module):
    """A norm by the statistics of its batch, in evaluation mode as well: an image's answer depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)
        self.norm = nn.BatchNorm2d(16, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class NormOfFeatures(nn.Module):
    """BatchNorm1d behind a fully connected layer, and in front of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.middle, self.norm = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(144, 32), nn.BatchNorm1d(32)
        self.last, self.fc = nn.BatchNorm1d(32, affine=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.middle(F.relu(self.conv(x)).flatten(1)))
        return self.fc(self.last(F.relu(x)))


class NormOfTransposed(nn.Module):
    """A norm behind a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.up(F.relu(self.down(x))))).mean((2, 3)))


class NormThatActivates(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class NormWithActivation(nn.Module):
    """A norm that activates as well, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3, bias=False), NormThatActivates(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


class FrozenNorm(nn.Module):
    """torchvision's norm of buffers alone, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3, bias=False), FrozenBatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class LayerNormed(nn.Module):
    """Over channels alone, channels last, and over all of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.LayerNorm(16)
        self.down, self.whole, self.fc = nn.Conv2d(16, 8, 2, stride=2), nn.LayerNorm([8, 4, 4]), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(F.gelu(self.whole(self.down(x))).mean((2, 3)))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.conv(x))).mean((2, 3)))


class InstanceNormed(nn.Module):
    """With statistics of each image, and with those of training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True)
        self.second, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16, track_running_stats=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.first(x)))
        return self.fc(F.relu(self.two(self.second(x))).mean((2, 3)))
