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
class Files:
    """Images in files, of any size; one by one, cut to squares, they become what a Split holds."""

    paths: list[str]
    labels: Tensor  # (n,) int64
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Files":
        return Files([self.paths[i] for i in index.tolist()], self.labels[index], self.channels, self.size)

    def read(self, first: int, last: int) -> Tensor:
        """Some of them, (last - first, c, size, size) uint8: the shorter side resized to `size`, then the middle.

        Raises:
            DataError: a file is no readable image.
        """
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms import v2

        cut = v2.Compose([v2.Resize(self.size, antialias=True), v2.CenterCrop(self.size), v2.PILToTensor()])
        mode = "L" if self.channels == 1 else "RGB"
        images = torch.empty(last - first, self.channels, self.size, self.size, dtype=torch.uint8)
        for i, path in enumerate(self.paths[first:last]):
            try:
                with Image.open(path) as image:
                    images[i] = cut(image.convert(mode))
            except (UnidentifiedImageError, OSError, SyntaxError) as error:
                raise DataError(f"{path}: not a readable image ({error}); repair or remove it") from None
        return images


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    source: str
    normalisation: tuple[list[float], list[float]] | None = None  # mean and std that networks want; see data.mean

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


class Floats:
    """Images as float32 in [-1, 1] only when they are asked for: all at once would take four times their memory."""

    def __init__(self, images: Tensor, order: Tensor) -> None:
        """
        Args:
            images: (n, c, h, w) uint8.
            order: (m,) indices, on the same device; place i holds images[order[i]].
        """
        self.images, self.order = images, order
        self.device = images.device

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return to_float(self.images[self.order[index]])


IN_MEMORY = 2**27  # bytes of images that are looked at all together, as float32


def at_a_time(images: Tensor, most: int) -> int:
    """How many images to convert at once, at most `most`: fewer of large ones, a quarter of IN_MEMORY."""
    return max(1, min(most, IN_MEMORY // 4 // (4 * images[0].numel())))


def handful(images: Tensor) -> Tensor:
    """As many of the first images as take IN_MEMORY: all 10,000 test images of MNIST or CIFAR, fewer larger ones."""
    return images[: max(500, IN_MEMORY // (4 * images[0].numel()))]


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """float [-1, 1] -> uint8, the inverse of to_float."""
    return images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
