"""Train, validation and test images, and the one file that holds them.

The file is written once. Everything after that maps it into memory, where only the images in use take room: there may
be more of them than memory holds.
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
DIGEST = "digest"  # the last tensor of the file: SHA-256 of everything before it, known once that is written
FLAGS = ("seed", "named", "official")  # fields that the file's header holds as they are
AT_A_TIME = 2**26  # bytes of images read from files at once


def mark(classes: list[str]) -> str:
    """Eight characters that identify these classes in this order."""
    return hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    source: str
    normalisation: tuple[list[float], list[float]] | None = None  # mean and std that networks expect; see data.mean
    seed: int | None = None  # decides which images are in which split; None in files from before it was kept
    named: bool = False  # whether classes or order are the user's own, so that the source's name does not tell them
    official: bool = True  # whether the source says which images are the test set

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the header, labels and images of a file of splits, which also holds it."""
        *_, last = _pieces(self)
        return last.hex()

    @property
    def provenance(self) -> dict[str, Any]:
        """What a model's file says of its training data; not the names of the classes, which take space."""
        named = {"classes": mark(self.classes)} if self.named else {}
        return {"data": self.source, **named, **({} if self.official else {"test": self.test_mark})}

    @cached_property
    def test_mark(self) -> str:
        """Eight characters that identify the test images, which are left out where models are trained."""
        digest = hashlib.sha256(self.test.labels.contiguous().numpy().tobytes())
        for piece in _bytes(self.test):
            digest.update(piece)
        return digest.hexdigest()[:8]


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
        """Read all images into memory."""
        train, validation, test = (
            Split(part.read(0, len(part)), part.labels) if isinstance(part, Files) else part
            for part in (self.train, self.validation, self.test)
        )
        about = {name: getattr(self, name) for name in ("classes", "source", "normalisation", *FLAGS)}
        return Splits(train, validation, test, **about)


def save(splits: Prepared | Splits, path: str | Path) -> None:
    """Write the splits as one safetensors file; images in files are read on the way, AT_A_TIME bytes at once.

    Raises:
        DataError: an image file is not readable; whatever was at `path` before is still there.
    """
    files.write_pieces(path, _pieces(splits))


def _pieces(splits: Prepared | Splits) -> Iterator[bytes]:
    """Yield the content of that file; the last piece is the SHA-256 of all others."""
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
    """Read what `save` wrote; images stay in the file until they are used.

    Raises:
        files.FileError: the file is missing, truncated or not a file of splits.
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
        splits.__dict__["digest"] = tensors[DIGEST].numpy().tobytes().hex()  # so that it is not computed again
    return splits
