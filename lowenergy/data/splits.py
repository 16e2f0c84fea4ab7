"""From a source to seeded train / validation / test splits, and the one file that holds them.

`prepare` reads a source once; everything after it reads the file.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Generator

from lowenergy.base import files
from lowenergy.base.params import Data
from lowenergy.data import sources
from lowenergy.data.images import DataError, Split, Splits
from lowenergy.data.torchvision import KINDS, read_torchvision

SPLITS = "data/splits.safetensors"


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
    train, test, classes = sources.read(p)
    if test is None:
        smallest = int(np.bincount(train.labels.numpy(), minlength=len(classes)).min())
        if smallest < 3:
            raise DataError(f"data.source {p.source}: a class has {smallest} images; each needs at least 3 to split")
        test, train = _split_off(train, p.test, generator)
    if p.limit is not None:
        train, test = (s.take(torch.randperm(len(s), generator=generator)[: p.limit]) for s in (train, test))
    validation, train = _split_off(train, p.validation, generator)
    train, validation, test = (_resized(s, p.image_size, p.channels) for s in (train, validation, test))
    return Splits(train, validation, test, classes, p.source)


def test_images(source: str, root: str) -> Split:
    """The official test images of a source that has them; of other sources, those that stage prepare split off.

    Raises:
        DataError: the files under root cannot be used.
        files.FileError: the pipeline has not prepared this source.
    """
    if source in KINDS:
        return read_torchvision(source, root)[1]
    splits = load(SPLITS)
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
