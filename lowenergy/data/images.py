"""What the pipeline calls images: uint8 splits on disk and in memory, float32 in [-1, 1] in front of the networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowenergy.base import UserError


class DataError(UserError):
    """The images cannot be used; the message names the source or file and what to do."""


@dataclass(frozen=True)
class Split:
    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    source: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """float [-1, 1] -> uint8, the inverse of to_float."""
    return images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
