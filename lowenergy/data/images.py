"""The pipeline's images: uint8 splits on disk and in memory, float32 in [-1, 1] as input of the networks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lowenergy.base import UserError


class DataError(UserError):
    """The images cannot be used; the message names the source or file and what to do."""


GPU_SHARE = 0.25  # of a GPU's memory; images that need more stay where they are, and each batch is moved


def fits(images: Tensor, device: torch.device) -> bool:
    """True if a device may hold all of the images; the CPU may, since it maps them from their file."""
    if device.type != "cuda":
        return True
    return images.nbytes <= GPU_SHARE * torch.cuda.get_device_properties(device).total_memory


@dataclass(frozen=True)
class Split:
    images: Tensor  # (n, c, h, w) uint8
    labels: Tensor  # (n,) int64
    destination: torch.device | None = None  # device of the batches, if it is not that of the images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.images.device if self.destination is None else self.destination

    def take(self, index: Tensor) -> "Split":
        """Return the images with these indices (on any device) as a split on this one's device."""
        index = index.to(self.images.device)
        return Split(self.images[index].to(self.device), self.labels[index].to(self.device))

    def to(self, device: torch.device) -> "Split":
        """Return a split whose batches are on that device; all images move there if they fit."""
        if fits(self.images, device):
            return Split(self.images.to(device), self.labels.to(device))
        return Split(self.images, self.labels, device)


@dataclass(frozen=True)
class Files:
    """Images in files, of any size; reading cuts them to squares one by one, as a Split holds them."""

    paths: list[str]
    labels: Tensor  # (n,) int64
    channels: int
    size: int
    whites: Mapping[str, float]  # the value of white in pixels of more than 8 bits, see decoding.survey

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Files":
        return replace(self, paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])

    def read(self, first: int, last: int) -> Tensor:
        """Read some of the images, (last - first, c, size, size) uint8: shorter side resized to `size`, centre cropped.

        Raises:
            DataError: a file is not a readable image.
        """
        from lowenergy.data import decoding

        images = torch.empty(last - first, self.channels, self.size, self.size, dtype=torch.uint8)
        for i, path in enumerate(self.paths[first:last]):
            with decoding.opened(path) as image:
                images[i] = decoding.square(decoding.eight_bit(image, self.channels, self.whites), self.size)
        return images


Part = Split | Files


class Source(NamedTuple):
    """What a source has. Parts that it lacks are split off the training images."""

    train: Part
    test: Part | None
    classes: list[str]
    validation: Part | None = None


class Floats:
    """Images that become float32 in [-1, 1] only when asked for: all at once would take four times their memory."""

    def __init__(self, split: Split, order: Tensor) -> None:
        """
        Args:
            order: (m,) indices; item i is the split's image order[i].
        """
        self.split, self.order = split, order
        self.device = split.device

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return to_float(self.split.take(self.order[index]).images)


IN_MEMORY = 2**27  # bytes of images that are looked at together, as float32


def at_a_time(images: Tensor, most: int) -> int:
    """How many images to convert at once: up to `most`, and no more than fill a quarter of IN_MEMORY (at least 1)."""
    return max(1, min(most, IN_MEMORY // 4 // (4 * images[0].numel())))


def spaced(count: int, most: int) -> Tensor:
    """At most `most` of `count` places, evenly spaced: images may lie class by class, so that the first are of one.

    >>> spaced(10, 4)
    tensor([0, 3, 6, 9])
    """
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.double).round().long()


def handful(images: Tensor) -> Tensor:
    """Images from all over, as many as fill IN_MEMORY, but at least 500.

    These are all 10,000 test images of MNIST or CIFAR; of larger images there are fewer.
    """
    most = max(500, IN_MEMORY // (4 * images[0].numel()))
    return images if len(images) <= most else images[spaced(len(images), most)]


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_bytes(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8, the inverse of to_float."""
    return images.detach().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
