"""Look at what there is: a user's images, and the machine that is to train on them."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil
import torch

from lowenergy.data import DataError, decoding, preparing
from lowenergy.data.images import Files, Part
from lowenergy.params import Data, check_place
from lowenergy.params.data import TORCHVISION

COLOURED = 300  # images that are looked at to find out whether there are colours
COMPARED = 20_000  # images of each part among which equal ones are looked for
GREY = 4  # of 255: as much colour as image compression adds to a grey photograph


@dataclass(frozen=True)
class Images:
    """A source of images as `prepare` will read it."""

    section: dict[str, Any]  # the values of section `data` that name it
    train: int
    test: int | None  # images of its own; None: some are split off
    validation: int | None  # the same
    classes: dict[str, int]
    side: int  # median of the shorter sides, in pixels
    smallest: int
    channels: Literal[1, 3]
    equal: int  # images that are copies of another one
    reading: float  # seconds that reading one image takes

    def lines(self) -> list[str]:
        counts = sorted(self.classes.values())
        colours = "in colour" if self.channels == 3 else "grey"
        sides = f"{self.side} pixels" + (f" (the smallest {self.smallest})" if self.smallest < self.side else "")
        lines = [
            f"{self.train:,} images to train on, {self.test or 'none'} to test on; {colours}, {sides}",
            f"{len(counts)} classes of {counts[0]:,} to {counts[-1]:,} images",
        ]
        if counts[-1] > 10 * counts[0]:
            rare = min(self.classes, key=self.classes.__getitem__)
            lines.append(f"unbalanced: {rare} has {counts[0]}; accuracy will say little about it")
        if self.equal:
            lines.append(f"{self.equal:,} images are copies of others: what was trained on may be tested on, too")
        return lines


@dataclass(frozen=True)
class Machine:
    cores: int
    memory: int  # bytes that are free
    gpu: str | None
    instructions: str

    @property
    def jobs(self) -> int:
        """How many stages `lowenergy run` runs at a time."""
        return 1 if self.gpu else min(max(2, self.cores // 2), self.cores)

    @property
    def threads(self) -> int:
        return max(1, self.cores // self.jobs)

    def line(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cores} cores ({self.instructions}), {self.memory / 2**30:.0f} GiB of free memory{gpu}"


def machine() -> Machine:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if f" {name}" in cpuinfo]
    free = psutil.virtual_memory().available
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Machine(len(os.sched_getaffinity(0)), free, gpu, ", ".join(known) or "no vector instructions known")


def images(place: str, root: str, arguments: Mapping[str, Any]) -> Images:
    """Look at what a folder or a data set of torchvision holds.

    Args:
        place: a folder, or a source as in params.yaml, such as mnist or torchvision.datasets.FashionMNIST.
        root: folder with the files of data sets.
        arguments: for a data set, as `data.arguments`.
    Raises:
        UserError: `place` is neither or takes no arguments, or its images cannot be read or split, or the pipeline
            would delete them.
    """
    named = not Path(place).exists() and (place.startswith(TORCHVISION) or "/" not in place)
    section: dict[str, Any] = {"source": place, "root": root} if named else {"source": "folder", "folder": place}
    if not named:
        check_place(place)
    if arguments:
        if not place.startswith(TORCHVISION):
            raise DataError(f"--arguments are for torchvision.datasets.…; {place} takes none")
        section["arguments"] = dict(arguments)
    usual = {"root": "data/raw", "folder": "data/images", "validation": 0.1, "test": 0.2, "limit": None, "channels": 3}
    try:
        p = Data.model_validate({**usual, **section, "image_size": None if named else 32})
    except ValueError:
        raise DataError(f"{place}: no such folder, and no data set; see `lowenergy params data.source`") from None
    train, test, classes, validation = preparing.checked(p)
    labels = torch.bincount(train.labels, minlength=len(classes)).tolist()
    parts = [part for part in (train, test, validation) if part is not None]
    sides = [_sides(part) for part in parts]
    in_colour, reading = _in_colour(train)
    return Images(
        section,
        train=len(train),
        test=len(test) if test is not None else None,
        validation=len(validation) if validation is not None else None,
        classes=dict(zip(classes, labels, strict=True)),
        side=round(median(sides[0])),
        smallest=min(sides[0]),
        channels=3 if in_colour else 1,
        equal=_equal(parts),
        reading=reading,
    )


def _sides(part: Part) -> list[int]:
    if not isinstance(part, Files):
        return [min(part.images.shape[2:])]
    sides, damaged = [], []
    for path in part.paths:
        try:
            with decoding.opened(path) as image:
                sides.append(min(image.size))
                image.draft("L", (64, 64))  # a JPEG at an eighth of its side takes a quarter of the time
                image.load()
        except DataError as error:
            damaged.append(str(error))
    if damaged:
        more = f" ({len(damaged) - 1} more files are like it)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}{more}")
    return sides


def _in_colour(part: Part) -> tuple[bool, float]:
    """Return whether more than 1 % of the images have colours, and the seconds that reading one took."""
    some = torch.arange(len(part))[:: max(1, len(part) // COLOURED)]
    taken, started = part.take(some), time.monotonic()
    pixels = taken.read(0, len(taken)) if isinstance(taken, Files) else taken.images
    seconds = (time.monotonic() - started) / len(taken)
    if pixels.shape[1] == 1:
        return False, seconds
    difference = (pixels.int().amax(1) - pixels.int().amin(1)).flatten(1).float().mean(1)
    return bool((difference > GREY).float().mean() > 0.01), seconds


def _equal(parts: Sequence[Part]) -> int:
    marks: Counter[bytes] = Counter()
    for part in parts:
        count = min(len(part), COMPARED)
        if isinstance(part, Files):
            marks.update(hashlib.sha256(Path(path).read_bytes()).digest() for path in part.paths[:count])
        else:
            marks.update(hashlib.sha256(image.numpy().tobytes()).digest() for image in part.images[:count])
    return sum(times - 1 for times in marks.values())
