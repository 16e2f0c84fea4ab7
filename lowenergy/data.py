"""From images on disk to seeded train / validation / test splits, and from splits to batches.

`prepare` reads a source once and writes one safetensors file of uint8 images; everything after it reads that file.
Images reach the networks as float32 in [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lowenergy import files
from lowenergy.errors import UserError
from lowenergy.params import Data


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


# -- sources -> (images uint8 (n, c, h, w), labels (n,)) --------------------------------------------------------------


def _digits() -> tuple[Split, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()  # 1,797 images of 8x8, values 0..16
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return Split(images, torch.from_numpy(digits.target).long()), [str(digit) for digit in range(10)]


def _torchvision(source: str, root: str) -> tuple[Split, Split, list[str]]:
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "cifar100": datasets.CIFAR100}[source]
    parts = []
    for train in (True, False):
        try:
            part = kind(root, train=train, download=_is_missing(source, root))
        except Exception as error:  # torchvision raises nearly anything, assertions included, on damaged files
            raise DataError(
                f"data.source {source}: the files under {root} cannot be used ({error or type(error).__name__}). "
                f"Delete them and run again with internet access to download them, or point data.root to a torchvision "
                f"root that holds {source}"
            ) from None
        images = torch.as_tensor(part.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        parts.append(Split(images, torch.as_tensor(part.targets).long()))
    return parts[0], parts[1], [str(name) for name in part.classes]


def _is_missing(source: str, root: str) -> bool:
    """Whether to download: asking torchvision to with the files in place would still try to reach its mirrors."""
    return not (Path(root) / {"mnist": "MNIST/raw", "cifar100": "cifar-100-python"}[source]).is_dir()


def _folder(folder: str, size: int, channels: int) -> tuple[Split, list[str]]:
    from PIL import Image, UnidentifiedImageError
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not Path(folder).is_dir():
        raise DataError(f"data.folder {folder}: no such directory; give one with a sub-directory of images per class")
    resize = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
    mode = "L" if channels == 1 else "RGB"
    try:
        found = ImageFolder(folder, loader=lambda path: Image.open(path).convert(mode), transform=resize)
    except FileNotFoundError as error:
        raise DataError(
            f"data.folder {folder}: {error} Put the images of each class in a sub-directory of their own"
        ) from None
    if len(found.classes) < 2:
        raise DataError(f"data.folder {folder}: one class ({found.classes[0]}) only; at least two are needed")
    images = torch.empty(len(found), channels, size, size, dtype=torch.uint8)
    for i, (path, _) in enumerate(found.samples):
        try:
            images[i] = found[i][0]
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"{path}: not a readable image ({error}); repair or remove it") from None
    return Split(images, torch.tensor(found.targets)), found.classes


# -- splits -----------------------------------------------------------------------------------------------------------


def _split_off(split: Split, fraction: float, generator: Generator) -> tuple[Split, Split]:
    """A random `fraction`, the same share of every class, and the rest."""
    order = torch.randperm(len(split), generator=generator)
    labels = split.labels[order]
    rank = torch.empty(len(order), dtype=torch.long)  # of each image within its class
    share = torch.empty(len(order))
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
        share[members] = max(1.0, round(fraction * len(members)))
    off = rank < share
    return split.take(order[off]), split.take(order[~off])


def _resized(split: Split, size: int | None, channels: int) -> Split:
    """Images of `size` pixels a side (None: as they are) with 1 (grey) or 3 (RGB) channels."""
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as V

    images = split.images
    if images.shape[1] != channels:
        images = V.rgb_to_grayscale(images) if channels == 1 else V.grayscale_to_rgb(images)
    if size is not None and images.shape[-1] != size:
        images = v2.Resize((size, size), antialias=True)(images)
    return Split(images.contiguous(), split.labels)


def prepare(p: Data, seed: int) -> Splits:
    """Read the source, split it, resize it.

    Raises:
        DataError: the source is missing, truncated, of the wrong format, or too small to split.
    """
    generator = torch.Generator().manual_seed(seed)
    if p.source in ("mnist", "cifar100"):
        train, test, classes = _torchvision(p.source, p.root)
    else:
        if p.source == "digits":
            everything, classes = _digits()
        else:
            assert p.image_size is not None  # the schema insists
            everything, classes = _folder(p.folder, p.image_size, p.channels)
        smallest = int(np.bincount(everything.labels.numpy(), minlength=len(classes)).min())
        if smallest < 3:
            raise DataError(f"data.source {p.source}: a class has {smallest} images; each needs at least 3 to split")
        test, train = _split_off(everything, p.test, generator)
    if p.limit is not None:
        train, test = (s.take(torch.randperm(len(s), generator=generator)[: p.limit]) for s in (train, test))
    validation, train = _split_off(train, p.validation, generator)
    train, validation, test = (_resized(s, p.image_size, p.channels) for s in (train, validation, test))
    return Splits(train, validation, test, classes, p.source)


def test_images(source: str, root: str) -> Split:
    """The official test images of mnist or cifar100; of other sources, those that stage prepare split off.

    Raises:
        DataError: the files under root cannot be used.
        files.FileError: the pipeline has not prepared this source.
    """
    if source in ("mnist", "cifar100"):
        return _torchvision(source, root)[1]
    splits = load("data/splits.safetensors")
    if splits.source != source:
        raise files.FileError(f"data/splits.safetensors: holds {splits.source}, not {source}; set data.source to it")
    return splits.test


def save(splits: Splits, path: str | Path) -> None:
    tensors = {
        f"{name}.{part}": getattr(getattr(splits, name), part)
        for name in ("train", "validation", "test")
        for part in ("images", "labels")
    }
    files.write_safetensors(path, tensors, {"classes": splits.classes, "source": splits.source})


def load(path: str | Path) -> Splits:
    """Read what `save` wrote.

    Raises:
        files.FileError: the file is missing, truncated or not one of splits.
    """
    tensors, header = files.read_safetensors(path)
    try:
        parts = [Split(tensors[f"{n}.images"], tensors[f"{n}.labels"]) for n in ("train", "validation", "test")]
        return Splits(parts[0], parts[1], parts[2], header["classes"], header["source"])
    except KeyError as error:
        raise files.FileError(f"{path}: not a file of splits, {error} is missing; run `dvc repro prepare`") from None


# -- batches ----------------------------------------------------------------------------------------------------------


class Batches:
    """Which images make up the batch of a step: each epoch in a new order, its last incomplete batch dropped.

    A pure function of (seed, step), so that a resumed run sees the batches it would have seen.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.per_epoch = count // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """Indices, (batch_size,), on the CPU."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return self._order[batch * self.batch_size :][: self.batch_size]


def augment(images: Tensor, crop_padding: int, flip: bool, generator: Generator) -> Tensor:
    """Random crops (after reflecting `crop_padding` pixels) and mirrors of a whole batch at once, (n, c, h, w)."""
    n, _, height, width = images.shape
    device = images.device
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if crop_padding:
        padded = F.pad(images, [crop_padding] * 4, mode="reflect")
        offset = torch.randint(2 * crop_padding + 1, (2, n, 1, 1, 1), generator=generator, device=device)
        rows = offset[0] + torch.arange(height, device=device)[:, None]
        columns = offset[1] + torch.arange(width, device=device)
        index = (rows * padded.shape[3] + columns).flatten(2).expand(-1, images.shape[1], -1)  # (n, c, h*w)
        images = padded.flatten(2).gather(2, index).view_as(images)
    return images


def shrink(images: Tensor, scale: float) -> Tensor:
    """Images, (n, c, h, w), at `scale` of their side."""
    if scale == 1:
        return images
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
