"""From a source to seeded train / validation / test splits, and the one file that holds them.

`prepare` reads a source once; everything after it maps the file into memory, where only what is being looked at takes
room: the images may be more than memory holds.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from lowenergy.base import files
from lowenergy.base.params import Data
from lowenergy.data import sources
from lowenergy.data.images import DataError, Files, Split, Splits
from lowenergy.data.torchvision import KINDS, read_torchvision

SPLITS = "data/splits.safetensors"
PARTS = ("train", "validation", "test")
Part = Split | Files
AT_A_TIME = 2**26  # bytes of images read from files at once


def _split_off(split: Part, fraction: float, generator: Generator) -> tuple[Part, Part]:
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


def _resized(split: Part, size: int | None, channels: int) -> Part:
    """Images of `size` pixels a side (None: as they are), 1 (grey) or 3 (RGB) channels; files are read so."""
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as V

    if isinstance(split, Files):
        return split
    images = split.images
    if images.shape[1] != channels:
        images = V.rgb_to_grayscale(images) if channels == 1 else V.grayscale_to_rgb(images)
    if size is not None and tuple(images.shape[2:]) != (size, size):
        images = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])(images)
    if images.shape[2] != images.shape[3]:
        raise DataError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels; networks here take squares: give data.image_size"
        )
    return Split(images.contiguous(), split.labels)


@dataclass(frozen=True)
class Prepared:
    """Splits about to be written; images in files have not been read yet."""

    train: Part
    validation: Part
    test: Part
    classes: list[str]
    source: str
    normalisation: tuple[list[float], list[float]] | None

    def read(self) -> Splits:
        """All in memory."""
        parts = [
            Split(part.read(0, len(part)), part.labels) if isinstance(part, Files) else part
            for part in (self.train, self.validation, self.test)
        ]
        return Splits(parts[0], parts[1], parts[2], self.classes, self.source, self.normalisation)


def prepare(p: Data, seed: int) -> Prepared:
    """Read the source, split it, resize it.

    Raises:
        DataError: the source is missing, truncated, of the wrong format, or too small to split.
    """
    generator = torch.Generator().manual_seed(seed)
    train: Part
    test: Part | None
    train, test, classes = sources.read(p)
    if p.classes is not None:
        train = _relabelled(train, classes, p.classes)
        test = test and _relabelled(test, classes, p.classes)
        classes = p.classes
    if test is None:
        smallest = int(np.bincount(train.labels.numpy(), minlength=len(classes)).min())
        if smallest < 3:
            raise DataError(f"data.source {p.source}: a class has {smallest} images; each needs at least 3 to split")
        test, train = _split_off(train, p.test, generator)
    if p.limit is not None:
        train, test = (s.take(torch.randperm(len(s), generator=generator)[: p.limit]) for s in (train, test))
    validation, train = _split_off(train, p.validation, generator)
    train, validation, test = (_resized(s, p.image_size, p.channels) for s in (train, validation, test))
    return Prepared(train, validation, test, classes, p.source, p.normalisation)


def _relabelled(part: Part, classes: list[str], wanted: list[str]) -> Part:
    """Labels in the order that a network with weights of its own has learnt.

    Raises:
        DataError: the two do not name the same classes.
    """
    if sorted(classes) != sorted(wanted):
        odd = sorted(set(classes) ^ set(wanted))
        raise DataError(f"data.classes: {', '.join(odd[:3]) or 'a name twice'}: not the classes of the images")
    place = torch.tensor([wanted.index(name) for name in classes])
    labels = place[part.labels]
    if isinstance(part, Files):
        return Files(part.paths, labels, part.channels, part.size)
    return Split(part.images, labels)


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


def save(splits: Prepared | Splits, path: str | Path) -> None:
    """Write the splits as one safetensors file, images in files as they are read: memory holds AT_A_TIME of them.

    Raises:
        DataError: a file is no readable image; what was there before still is.
    """
    header: dict[str, object] = {"classes": splits.classes, "source": splits.source}
    if splits.normalisation is not None:
        header |= {"mean": splits.normalisation[0], "std": splits.normalisation[1]}
    table: dict[str, object] = {"__metadata__": {files.HEADER: json.dumps(header, sort_keys=True)}}
    content: list[Iterator[bytes]] = []
    end = 0
    for name in PARTS:  # safetensors wants the widest type first
        labels: Tensor = getattr(splits, name).labels.contiguous()
        start, end = end, end + labels.numel() * 8
        table[f"{name}.labels"] = {"dtype": "I64", "shape": list(labels.shape), "data_offsets": [start, end]}
        content.append(iter([labels.numpy().tobytes()]))
    for name in PARTS:
        part: Part = getattr(splits, name)
        shape = (part.channels, part.size, part.size) if isinstance(part, Files) else tuple(part.images.shape[1:])
        start, end = end, end + len(part) * int(np.prod(shape))
        table[f"{name}.images"] = {"dtype": "U8", "shape": [len(part), *shape], "data_offsets": [start, end]}
        content.append(_bytes(part, int(np.prod(shape))))
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    files.write_pieces(
        path, (piece for pieces in (iter([len(text).to_bytes(8, "little") + text]), *content) for piece in pieces)
    )


def _bytes(part: Part, each: int) -> Iterator[bytes]:
    at_a_time = max(1, AT_A_TIME // each)
    for first in range(0, len(part), at_a_time):
        last = min(first + at_a_time, len(part))
        images = part.read(first, last) if isinstance(part, Files) else part.images[first:last].contiguous()
        yield images.numpy().tobytes()


def load(path: str | Path) -> Splits:
    """Read what `save` wrote; images stay in the file until they are looked at.

    Raises:
        files.FileError: the file is missing, truncated or not one of splits.
    """
    tensors, header = files.read_safetensors(path)
    try:
        parts = [Split(tensors[f"{n}.images"], tensors[f"{n}.labels"]) for n in PARTS]
        normalisation = (header["mean"], header["std"]) if "mean" in header else None
        return Splits(parts[0], parts[1], parts[2], header["classes"], header["source"], normalisation)
    except KeyError as error:
        raise files.FileError(f"{path}: not a file of splits, {error} is missing; run `dvc repro prepare`") from None
