"""Turn images as people have them (tensors, arrays, data sets, loaders) into the pipeline's splits: bytes and labels.

All images are read once, in order, into a temporary file that is mapped into memory: there may be more than memory
holds.
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from fractions import Fraction
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lowenergy.base.errors import one_line
from lowenergy.base.progress import EVERY
from lowenergy.data import DataError, Split, Splits, check_brightness

HELD_OUT = 0.1  # share of the images to validate on, unless the caller says
AT_A_TIME = 256  # images of a tensor, array or data set
MOST_CLASSES = 10**6
OVERSHOOT = 0.05  # share of the range from black to white by which resizing with a sharp filter may leave it

Images = Any  # Tensor, array, Dataset, DataLoader or another iterable of batches, or Splits
Normalisation = tuple[list[float], list[float]]
Values = float | Sequence[float] | None


def normalisation(mean: Values, std: Values, channels: int) -> Normalisation | None:
    """Mean and standard deviation with one value for each channel, as a network's file keeps them; None without both.

    Raises:
        DataError: only one of the two is given, or one is not a number, does not have this many channels, or is out of
            range.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DataError("mean and std: give both, or neither")
    try:
        both = [np.asarray(given, float) for given in (mean, std)]
    except (TypeError, ValueError):
        raise DataError(f"mean={mean!r}, std={std!r}: give numbers, one each or one for each channel") from None
    if not all(values.ndim == 0 or values.shape == (channels,) for values in both):
        raise DataError(f"mean and std: the images have {channels} channels; give so many values each, or one number")
    means, stds = (np.broadcast_to(values, channels).tolist() for values in both)
    if not all(0 <= value <= 1 for value in means) or not all(0 < value <= 10 for value in stds):
        raise DataError(f"mean={means}, std={stds}: both are of pixels from 0 (black) to 1 (white)")
    return means, stds


def gathered(
    images: Images, labels: Any = None, *, mean: Values = None, std: Values = None, validation: Any = HELD_OUT
) -> tuple[Splits, bool]:
    """Return the images as splits, and whether they came with labels; without labels, all have label 0.

    Args:
        images, labels, mean, std, validation: see lowenergy.compress.
    Raises:
        DataError: the images cannot be used; the message says what to give.
    """
    if isinstance(images, Splits):
        if labels is not None:
            raise DataError("labels: splits have their own")
        return images, True
    share = None
    if isinstance(validation, Real) and not isinstance(validation, bool):
        share = Fraction(float(validation)).limit_denominator(1000) if 0 < float(validation) <= 0.5 else Fraction(0)
        if not share:
            raise DataError(
                f"validation={validation}: give a share of the images above 0 and up to 0.5, or other images"
            )
    seen: Counter[int] = Counter()

    def held_out(label: int) -> bool:
        """Pick this share of every class, evenly spaced, starting with the second image."""
        seen[label] += 1
        return share is not None and (seen[label] - 2) * share // 1 > (seen[label] - 3) * share // 1

    train, held = _Room(), _Room()
    _fill(images, labels, mean, std, train, held, held_out)
    if share is None:
        of_two = isinstance(validation, tuple | list) and len(validation) == 2
        # A list may also be two images; unlike labels, an image never has just one dimension.
        pair = of_two and (isinstance(validation, tuple) or getattr(validation[1], "ndim", 0) == 1)
        others, answers = validation if pair else (validation, None)
        _fill(others, answers, mean, std, held, _Room(), lambda label: False)
    named = train.labelled
    if share is None and named != held.labelled:
        raise DataError("validation: give labels for both images and validation, or for neither")
    if min(train.count, held.count) < 1:
        of = f" of {len(seen)} classes" if len(seen) > 1 else ""
        raise DataError(
            f"{train.count + held.count} images{of} are too few to hold some out; give more of each, or validation="
        )
    parts = train.split(), held.split()
    if parts[0].images.shape[1:] != parts[1].images.shape[1:]:
        raise DataError("validation: images of another size than the others")
    classes = [str(label) for label in range(1 + max(int(part.labels.max()) for part in parts))]
    channels = parts[0].images.shape[1]
    return Splits(*parts, parts[1], classes, "", normalisation(mean, std, channels)), named


def read(images: Images, labels: Any = None, *, mean: Values = None, std: Values = None) -> tuple[Split, bool]:
    """Return all of the images as one split, and whether they came with labels.

    Raises:
        DataError: there are none, or they cannot be used; the message says what to give.
    """
    if isinstance(images, Split):
        return images, True
    room = _Room()
    _fill(images, labels, mean, std, room, _Room(), lambda label: False, trained=False)
    if not room.count:
        raise DataError("no images; give at least one")
    return room.split(), room.labelled


class _Room:
    """Collect the images of one split, as they come, in a temporary file that is deleted with its last reader.

    Raises:
        DataError: the images would fill more than half of the free disk space.
    """

    def __init__(self) -> None:
        self.most = shutil.disk_usage(tempfile.gettempdir()).free // 2
        self.file = tempfile.TemporaryFile(prefix="lowenergy-")  # noqa: SIM115 it stays open while it is mapped
        self.labels: list[Tensor] = []
        self.shape: tuple[int, ...] = ()
        self.count = 0
        self.labelled = False

    def add(self, images: Tensor, labels: Tensor) -> None:
        if len(images):
            self.shape, self.count = tuple(images.shape[1:]), self.count + len(images)
            if self.count * images[0].numel() > self.most:
                raise DataError(
                    f"images: the first {self.count:,} fill half of the free disk at {tempfile.gettempdir()}; does the "
                    "loader ever end? Give one that does, or let TMPDIR name a larger disk"
                )
            self.file.write(images.contiguous().numpy().data)
            self.labels.append(labels)

    def split(self) -> Split:
        self.file.flush()
        mapped = np.memmap(self.file, np.uint8, "r+", shape=(self.count, *self.shape))
        return Split(torch.from_numpy(mapped), torch.cat(self.labels))


def _fill(
    images: Images,
    labels: Any,
    mean: Values,
    std: Values,
    room: _Room,
    other: _Room,
    goes_there: Callable[[int], bool],
    trained: bool = True,
) -> None:
    """Read all images into `room`, except those for whose label `goes_there` returns True: they go into `other`."""
    lowest, brightest, floats, count, said = np.inf, 0, False, 0, time.monotonic()
    for batch, answers in _batches(images, labels):
        if time.monotonic() - said > EVERY:
            print(f"images: {count:,} read", file=sys.stderr, flush=True)
            said = time.monotonic()
        pixels = _upright(batch)
        if not len(pixels):
            continue
        if room.shape and tuple(pixels.shape[1:]) != room.shape:
            raise DataError(
                f"images of {tuple(pixels.shape[1:])} among others of {room.shape}; resize all of them to one size"
            )
        if pixels.is_floating_point():
            lowest, floats = min(lowest, float(pixels.min())), True
        pixels = _bytes(pixels, normalisation(mean, std, pixels.shape[1]))
        brightest = max(brightest, int(pixels.max()) if pixels.numel() else 0)
        known = torch.zeros(len(pixels), dtype=torch.int64) if answers is None else _labels(answers, len(pixels))
        if count and room.labelled != (answers is not None):
            raise DataError("some images come with labels, some without; give all of them labels, or none")
        room.labelled, count = answers is not None, count + len(pixels)
        there = torch.tensor([goes_there(label) for label in known.tolist()], dtype=torch.bool)
        other.add(pixels[there], known[there])
        room.add(pixels[~there], known[~there])
    other.labelled = room.labelled
    if not floats and trained:
        check_brightness(brightest, "images")
    if floats and mean is not None and lowest >= 0 and np.max(mean) > 0:
        raise DataError(
            "images: these floats are never below 0: no pixel is darker than the mean, so they are not normalised by "
            "it; give (pixel - mean) / std, or uint8"
        )
    if floats and mean is None and lowest >= -2 * OVERSHOOT:
        raise DataError(
            "images: these floats are never below 0, as pixels from 0 to 1 are. If the network takes them so, give "
            "mean=0, std=1; if they are normalised, their mean and std; if not, give them from -1 to 1, or as uint8"
        )


def _batches(images: Images, labels: Any) -> Iterator[tuple[Any, Any]]:
    """Yield batches of images, each with its labels or None."""
    if isinstance(images, tuple) and len(images) == 2 and labels is None and len(getattr(images[0], "shape", ())) == 4:
        images, labels = images
    if isinstance(labels, Tensor):
        _check_plain(labels, "labels")
    elif hasattr(labels, "__array__"):
        labels = np.asarray(labels)  # also a Series, whose slices keep their index
    elif isinstance(labels, Collection) and not isinstance(labels, list | tuple | NO_LABELS):
        labels = list(labels)
    if isinstance(images, Tensor):
        _check_plain(images, "images")
    if isinstance(images, Tensor | np.ndarray) or _is_sliced(images):
        if not images.shape:
            raise DataError("images: a single number; give images, (n, c, h, w)")
        _check_count(labels, len(images))
        for first in range(0, len(images), AT_A_TIME):
            part = slice(first, first + AT_A_TIME)
            yield images[part], None if labels is None else labels[part]
    elif isinstance(images, IterableDataset):
        _check_no_labels(labels)
        items, first = iter(images), 0
        while some := list(islice(items, AT_A_TIME)):
            yield _stacked(some, first)
            first += len(some)
    elif isinstance(images, list | tuple | Dataset):
        try:
            count = len(images)  # type: ignore[arg-type]
        except TypeError:
            kind = type(images).__name__
            raise DataError(f"images: {kind} has no length; give it __len__, or give a DataLoader") from None
        _check_count(labels, count)
        for first in range(0, count, AT_A_TIME):
            some = [images[i] for i in range(first, min(first + AT_A_TIME, count))]
            yield _stacked(some, first, None if labels is None else labels[first : first + len(some)])
    elif isinstance(images, DataLoader | Iterable) and not isinstance(images, str | bytes):
        _check_no_labels(labels)
        for batch in images:
            pixels, answers = _pair(batch)
            if pixels is None or not hasattr(pixels, "shape") or len(pixels.shape) < 3:
                raise DataError("a loader must give batches of images, (n, c, h, w), or of (images, labels)")
            if len(pixels.shape) == 3 and pixels.shape[0] in (1, 3) and np.ndim(answers) == 0:
                raise DataError(
                    f"a loader must give batches, and {tuple(pixels.shape)} looks like one image; add a batch "
                    "dimension, (n, c, h, w), or give a list of images"
                )
            yield pixels, answers
    else:
        raise DataError(
            f"images: {type(images).__name__} is none of tensor, array, Dataset, DataLoader; give one of these"
        )


def _stacked(items: Sequence[Any], first: int, labels: Any = None) -> tuple[Tensor, list[Any] | None]:
    """Stack items of a data set, images or pairs of image and label, into a batch.

    Args:
        first: the number of the first item.
        labels: take these instead of the items' own.
    """
    pairs = [_pair(item) for item in items]
    pixels = [_tensor(image) for image, _ in pairs]
    answers = [label for _, label in pairs] if labels is None else list(labels)
    if len({tuple(image.shape) for image in pixels}) > 1:
        raise DataError(f"images {first} to {first + len(pixels) - 1} differ in size; resize all to one size")
    if 0 < sum(answer is None for answer in answers) < len(answers):
        raise DataError("some images come with labels, some without; give all of them labels, or none")
    return torch.stack(pixels), None if answers[0] is None else answers


def _is_sliced(images: Any) -> bool:
    """Return True for objects like arrays, such as those that h5py and zarr keep in files."""
    return all(hasattr(images, name) for name in ("shape", "dtype", "__len__", "__getitem__"))


def _check_no_labels(labels: Any) -> None:
    if labels is not None:
        raise DataError("labels: a loader of batches brings its own; let it give (images, labels)")


def _check_count(labels: Any, images: int) -> None:
    try:
        if isinstance(labels, NO_LABELS):
            raise TypeError
        count = images if labels is None else len(labels)
    except TypeError:
        raise DataError(f"labels: {type(labels).__name__}; give one whole number for each image") from None
    if count != images:
        raise DataError(f"{images} images and {count} labels; give one label for each")


def _pair(item: Any) -> tuple[Any, Any]:
    """Return an image or a batch, and its label or labels, or None without any."""
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise DataError(f"images: items of {len(item)} parts; give images, or (image, label)")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


NO_LABELS = str | bytes | bytearray | Set | Mapping  # although they have a length
INTEGERS = (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64)
INDEXED = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow images


def _native(array: np.ndarray) -> np.ndarray:
    """Return the array in this machine's byte order, the only one torch knows."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_plain(given: Tensor, what: str) -> None:
    if given.is_nested or given.is_meta or given.layout != torch.strided:
        kind = "nested" if given.is_nested else "meta" if given.is_meta else "sparse"
        raise DataError(f"{what}: a {kind} tensor; give a plain one, which holds every value")


def _tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        _check_plain(image, "images")
        return image
    try:
        if getattr(image, "mode", None) in INDEXED:  # their numbers are not grey levels or RGB
            image = image.convert("RGB")
        return torch.from_numpy(_native(np.array(image)))  # also reads Pillow images; a copy, so that it is writable
    except TypeError:
        raise DataError(
            f"images: {type(image).__name__} is no image; give tensors, arrays or Pillow's images"
        ) from None
    except OSError as error:  # of Pillow, which decodes only now
        raise DataError(f"images: one of them cannot be decoded ({one_line(error)}); leave it out") from None


def _upright(batch: Any) -> Tensor:
    """Return images as (n, c, h, w) on the CPU; they may also come without c, or with c last."""
    images = _tensor(batch).detach().cpu()
    if images.is_floating_point() and images.element_size() == 1:
        images = images.float()  # torch knows no minimum of eight bits
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[2] != images.shape[3] and images.shape[1] == images.shape[2] > 1:
        images = images.movedim(3, 1)
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise DataError(f"images of {tuple(images.shape)}, where squares are needed: (n, c, h, w) with h = w")
    return images


def _bytes(images: Tensor, normalised: Normalisation | None) -> Tensor:
    """Return images as uint8; they may be uint8, or floats that are normalised or else from -1 to 1."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images of {str(images.dtype).removeprefix('torch.')}; give uint8 from 0 to 255, or floats")
    pixels = images.float()
    if normalised is None:
        pixels = (pixels + 1) / 2
    else:
        mean, std = (torch.tensor(values)[:, None, None] for values in normalised)
        pixels = pixels * std + mean
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # also refuses NaN
        given = f"from {float(images.min()):.4g} to {float(images.max()):.4g}"
        advice = "give mean and std if they are normalised" if normalised is None else "mean and std are of others"
        raise DataError(f"images: floats {given}, where -1 to 1 is expected of pixels; {advice}")
    return pixels.mul(255).round().clamp(0, 255).to(torch.uint8)


def _labels(given: Any, count: int) -> Tensor:
    if isinstance(given, Tensor):
        _check_plain(given, "labels")
    try:  # copied, since torch takes no array with negative strides
        labels = torch.as_tensor(_native(given.copy()) if isinstance(given, np.ndarray) else given).detach().cpu()
    except Exception:  # torch raises nearly anything for names, ragged lists, or Nones
        kinds = ", ".join(sorted({type(label).__name__ for label in given})) if isinstance(given, list) else ""
        raise DataError(
            f"labels of {kinds or type(given).__name__}; give one whole number for each image, classes from 0"
        ) from None
    if labels.ndim != 1 or len(labels) != count or labels.dtype not in INTEGERS:
        kind = str(labels.dtype).removeprefix("torch.")
        raise DataError(f"labels of {kind}, {tuple(labels.shape)}; give one whole number for each image")
    labels = labels.long()
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"labels: {int(labels.min())}; give classes from 0")
    if len(labels) and int(labels.max()) >= MOST_CLASSES:
        raise DataError(f"labels: {int(labels.max())}; give classes from 0 to one less than there are")
    return labels
