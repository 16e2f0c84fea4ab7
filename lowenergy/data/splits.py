"""Train, validation and test images, and the one file that holds them.

It is written once; everything after that maps the file into memory, where only what is being looked at takes room: the
images may be more than memory holds.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowenergy.base import files
from lowenergy.data.images import Files, Part, Split

SPLITS = "data/splits.safetensors"
PARTS = ("train", "validation", "test")
DIGEST = "digest"  # the last tensor of the file: SHA-256 of all before it, known when all is written
FLAGS = ("seed", "named", "official")  # in the file's header as they are
AT_A_TIME = 2**26  # bytes of images read from files at once


def mark(classes: list[str]) -> str:
    """Eight characters that other classes, or these in another order, do not have."""
    return hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    source: str
    normalisation: tuple[list[float], list[float]] | None = None  # mean and std that networks want; see data.mean
    seed: int | None = None  # which images are whose; None in files of before it was kept
    named: bool = False  # whether the classes, or their order, are the user's and not known by the source's name
    official: bool = True  # whether the source says which images are the test set

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of images, labels, classes and normalisation; files of splits hold it."""
        *_, last = _pieces(self)
        return last.hex()

    @property
    def provenance(self) -> dict[str, Any]:
        """What files of models say of the data that they were trained on; not the names, which take space."""
        return {"data": self.source, **({"classes": mark(self.classes)} if self.named else {})}


@dataclass(frozen=True)
class Prepared:
    """Splits about to be written; images in files have not been read yet."""

    train: Part
    validation: Part
    test: Part
    classes: list[str]
    source: str
    normalisation: tuple[list[float], list[float]] | None
    seed: int
    named: bool
    official: bool

    def read(self) -> Splits:
        """All in memory."""
        train, validation, test = (
            Split(part.read(0, len(part)), part.labels) if isinstance(part, Files) else part
            for part in (self.train, self.validation, self.test)
        )
        about = {name: getattr(self, name) for name in ("classes", "source", "normalisation", *FLAGS)}
        return Splits(train, validation, test, **about)


def save(splits: Prepared | Splits, path: str | Path) -> None:
    """Write the splits as one safetensors file, images in files as they are read: memory holds AT_A_TIME of them.

    Raises:
        DataError: a file is no readable image; what was there before still is.
    """
    files.write_pieces(path, _pieces(splits))


def _pieces(splits: Prepared | Splits) -> Iterator[bytes]:
    """The content of that file; its last piece is the SHA-256 of all others."""
    header: dict[str, object] = {name: getattr(splits, name) for name in ("classes", "source", *FLAGS)}
    if splits.normalisation is not None:
        header |= {"mean": splits.normalisation[0], "std": splits.normalisation[1]}
    table: dict[str, object] = {"__metadata__": {files.HEADER: json.dumps(header, sort_keys=True)}}
    parts: dict[str, Part] = {name: getattr(splits, name) for name in PARTS}
    end = 0

    def entry(kind: str, width: int, *shape: int) -> dict[str, object]:
        nonlocal end
        start, end = end, end + width * math.prod(shape)
        return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}

    for name, part in parts.items():  # safetensors wants the widest type first
        table[f"{name}.labels"] = entry("I64", 8, len(part))
    for name, part in parts.items():
        shape = (part.channels, part.size, part.size) if isinstance(part, Files) else part.images.shape[1:]
        table[f"{name}.images"] = entry("U8", 1, len(part), *shape)
    digest = hashlib.sha256()
    table[DIGEST] = entry("U8", 1, digest.digest_size)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    labels = (part.labels.contiguous().numpy().tobytes() for part in parts.values())
    images = (piece for part in parts.values() for piece in _bytes(part))
    for piece in (len(text).to_bytes(8, "little"), text, *labels):
        digest.update(piece)
        yield piece
    for piece in images:
        digest.update(piece)
        yield piece
    yield digest.digest()


def _bytes(part: Part) -> Iterator[bytes]:
    each = part.channels * part.size**2 if isinstance(part, Files) else part.images[0].numel()
    at_a_time = max(1, AT_A_TIME // each)
    for first in range(0, len(part), at_a_time):
        last = min(first + at_a_time, len(part))
        images = part.read(first, last) if isinstance(part, Files) else part.images[first:last].cpu().contiguous()
        yield images.numpy().tobytes()


def load(path: str | Path) -> Splits:
    """Read what `save` wrote; images stay in the file until they are looked at.

    Raises:
        files.FileError: the file is missing, truncated or not one of splits.
    """
    tensors, header = files.read_safetensors(path)
    try:
        train, validation, test = (Split(tensors[f"{n}.images"], tensors[f"{n}.labels"]) for n in PARTS)
        normalisation = (header["mean"], header["std"]) if "mean" in header else None
        flags = {name: header[name] for name in FLAGS if name in header}
        splits = Splits(train, validation, test, header["classes"], header["source"], normalisation, **flags)
    except KeyError as error:
        raise files.FileError(f"{path}: not a file of splits, {error} is missing; run `dvc repro prepare`") from None
    if DIGEST in tensors:
        splits.__dict__["digest"] = tensors[DIGEST].numpy().tobytes().hex()  # not to be computed again
    return splits
