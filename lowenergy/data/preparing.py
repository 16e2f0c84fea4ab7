"""From a source to seeded train / validation / test splits."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from lowenergy.base import files
from lowenergy.data import sources
from lowenergy.data.images import DataError, Files, Part, Source, Split
from lowenergy.data.splits import SPLITS, Prepared, load, mark
from lowenergy.params import Data

GREY_AT_ONCE = 1000  # images


def prepare(p: Data, seed: int) -> Prepared:
    """Read the source, split it, resize it.

    Raises:
        DataError: the source is missing, truncated, of the wrong format, or too small to split.
    """
    generator = torch.Generator().manual_seed(seed)
    train, test, classes, validation = checked(p)
    official = test is not None
    if test is None:
        test, train = _split_off(train, p.test, generator)
    if p.limit is not None:
        train = _limited(train, p.limit, 1 + (validation is None), generator)
        test = _limited(test, p.limit, 1, generator)
        validation = validation and _limited(validation, p.limit, 1, generator)
    if validation is None:
        validation, train = _split_off(train, p.validation, generator)
    return Prepared(
        _resized(train, p.image_size, p.channels),
        _resized(validation, p.image_size, p.channels),
        _resized(test, p.image_size, p.channels),
        classes,
        p.source,
        p.normalisation,
        seed,
        named=p.classes is not None or p.source == "folder",
        official=official,
    )


def checked(p: Data) -> Source:
    """Read the source, and check that it can be split.

    Raises:
        DataError: see prepare.
    """
    source = _named(sources.read(p), p)
    _check(source, 1 + (source.test is None) + (source.validation is None), p)
    return source


def _named(source: Source, p: Data) -> Source:
    """Return the source with the classes that data.classes names, in that order, or else with those that have images.

    Raises:
        DataError: see _places.
    """
    train, test, classes, validation = source
    parts = [part.labels for part in (train, test, validation) if part is not None]
    used = torch.cat(parts).unique().tolist()
    if p.classes is not None:
        names = p.classes
        place = _places(classes, names, [classes[label] for label in used])
    else:
        names = [classes[label] for label in used]
        place = torch.full([len(classes)], -1)
        place[used] = torch.arange(len(used))
        if unused := [name for label, name in enumerate(classes) if label not in used]:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            print(f"data.source {p.source}: there are no images of {', '.join(unused[:3])}{more}: left out", flush=True)

    def placed(part: Part) -> Part:
        return replace(part, labels=place[part.labels])

    return Source(placed(train), test and placed(test), names, validation and placed(validation))


def _places(classes: list[str], wanted: list[str], used: list[str]) -> Tensor:
    """The place of each class among the wanted ones; -1 if it is not wanted, in which case no image has it.

    Raises:
        DataError: a class in use is not wanted, a wanted one is unknown, or a name is given twice.
    """
    lacking, unknown = (sorted(odd)[:3] for odd in (set(used) - set(wanted), set(wanted) - set(classes)))
    if lacking or unknown or len(set(wanted)) < len(wanted):
        problems = [f"lacks {', '.join(lacking)}"] if lacking else []
        problems += [f"there are no images of {', '.join(unknown)}"] if unknown else []
        raise DataError(f"data.classes: {'; '.join(problems) or 'a name stands there twice'}")
    return torch.tensor([wanted.index(name) if name in wanted else -1 for name in classes])


def _check(source: Source, fewest: int, p: Data) -> None:
    """Check that every class has an image for each part that it is split into, and every part enough to measure on.

    Raises:
        DataError: one has too few, or there are fewer than two classes.
    """
    where, (train, test, classes, validation) = f"data.source {p.source}", source
    if len(classes) < 2:
        raise DataError(f"{where}: one class ({', '.join(classes)}) only; at least two are needed")
    counts = {
        role: torch.bincount(part.labels, minlength=len(classes)).tolist()
        for role, part in (("train", train), ("test", test), ("validation", validation))
        if part is not None
    }
    few = [
        f"class {name} has {count} {'image' if count == 1 else 'images'}"
        for name, count, *others in zip(classes, *counts.values(), strict=True)
        if count < fewest and any((count, *others))  # data.classes may name a class without images
    ]
    if few:
        more = f", and {len(few) - 3} more" if len(few) > 3 else ""
        to = " to train on" if test is not None else ""
        raise DataError(f"{where}: {', '.join(few[:3])}{more}{to}; each needs at least {fewest} to split")
    for role, per_class in counts.items():
        if sum(per_class) < 2:
            raise DataError(f"{where}: {sum(per_class)} {role} images; at least 2 are needed to measure anything")


def _split_off(part: Part, fraction: float, generator: Generator) -> tuple[Part, Part]:
    """Split off a random `fraction` of every class (at least one image); return it and the rest."""
    counts = torch.bincount(part.labels).tolist()
    return _chosen(part, [max(1, round(fraction * count)) for count in counts], generator)


def _limited(part: Part, limit: int, least: int, generator: Generator) -> Part:
    """Pick at most `limit` random images, from every class in proportion and at least `least`.

    Raises:
        DataError: `limit` is too small for that.
    """
    counts = torch.bincount(part.labels).tolist()
    return _chosen(part, _quotas(counts, limit, least), generator)[0]


def _quotas(counts: list[int], limit: int, least: int) -> list[int]:
    """How many images to take of each class: in proportion, by largest remainders, and at least `least` if it has them.

    Raises:
        DataError: that is more than `limit`.
    """
    total, floors = sum(counts), [min(least, count) for count in counts]
    if limit >= total:
        return counts
    if sum(floors) > limit:
        classes = sum(count > 0 for count in counts)
        raise DataError(f"data.limit {limit}: give at least {sum(floors)}, for there are {classes} classes")
    shares = [limit * count / total for count in counts]
    quotas = [max(floor, int(share)) for floor, share in zip(floors, shares, strict=True)]
    while (missing := limit - sum(quotas)) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i, quota in enumerate(quotas) if step > 0 or quota > floors[i]]
        quotas[max(movable, key=lambda i: step * (shares[i] - quotas[i]))] += step
    return quotas


def _chosen(part: Part, quotas: list[int], generator: Generator) -> tuple[Part, Part]:
    """Pick quotas[label] random images of each class; return them, in random order, and the rest."""
    order = torch.randperm(len(part), generator=generator)
    labels = part.labels[order]
    rank = torch.empty(len(order), dtype=torch.long)  # rank of each image within its class
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    chosen = rank < torch.tensor(quotas)[labels]
    return part.take(order[chosen]), part.take(order[~chosen])


def _resized(split: Part, size: int | None, channels: int) -> Part:
    """Bring images to `size` pixels a side (None: as they are) and 1 (grey) or 3 (RGB) channels; Files are read so."""
    if isinstance(split, Files):
        return split
    images = split.images
    if images.shape[1] != channels:
        from torchvision.transforms.v2 import functional as V  # takes seconds; the default images do not need it

        images = _grey(images) if channels == 1 else V.grayscale_to_rgb(images)
    if size is not None and tuple(images.shape[2:]) != (size, size):
        from torchvision.transforms import v2

        images = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])(images)
    if images.shape[2] != images.shape[3]:
        raise DataError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels; networks here take squares: give data.image_size"
        )
    return Split(images.contiguous(), split.labels)


def _grey(images: Tensor) -> Tensor:
    """Turn uint8 RGB images into grey ones, as Pillow does for image files; torchvision makes white 254."""
    grey = torch.empty_like(images[:, :1])
    weights = torch.tensor([19595, 38470, 7471])[:, None, None]  # of 65,536, by ITU-R 601-2
    for part, out in zip(images.split(GREY_AT_ONCE), grey.split(GREY_AT_ONCE), strict=True):
        out.copy_(((part.long() * weights).sum(1, keepdim=True) + 2**15) >> 16)
    return grey


def test_images(
    provenance: Mapping[str, Any], shape: tuple[int, int, int], p: Data, seed: int, splits: str | None = SPLITS
) -> Split:
    """Return the test images of the data that a model was trained on, made as stage `prepare` makes them.

    If the pipeline's splits hold the same data, they are taken from there; otherwise they are the official ones below
    p.root.

    Args:
        provenance: as the model's file has it.
        shape: (c, h, w), of the images that the model takes.
        p, seed: from params.yaml; classes, limit and arguments count only if its source is the model's.
        splits: the pipeline's file; None to ignore it.
    Raises:
        DataError: the files of the source cannot be used, or have other classes.
        files.FileError: the source has no official test images, and the pipeline has not prepared it, or has split it
            with another seed, or otherwise since.
    """
    source = provenance["data"]
    held = load(splits) if splits is not None and Path(splits).exists() else None
    if held is not None and (held.source, held.input_shape) == (source, shape):
        _check_classes(provenance, held.classes)
        if not held.official and "test" not in provenance and held.seed not in (None, provenance.get("seed")):
            raise files.FileError(
                f"{splits}: split with seed {held.seed}, the model's data with seed {provenance.get('seed')}: it may "
                "have been trained on these test images; set seed in params.yaml and run `dvc repro prepare`"
            )
        if provenance.get("test", held.test_mark) != held.test_mark:
            raise files.FileError(
                f"{splits}: not the test images that the model's training left out: it may have been trained on these; "
                "set data in params.yaml as it was then and run `dvc repro prepare`, or train again"
            )
        return held.test
    if p.source != source:
        p = p.model_copy(update={"source": source, "classes": None, "limit": None, "arguments": {}})
    prepared = prepare(p.model_copy(update={"channels": shape[0], "image_size": shape[1]}), seed)
    if not prepared.official:
        if splits is None:
            raise files.FileError(
                f"data.source {source}: has no test images of its own, at no root; without one, those of {SPLITS} count"
            )
        holds = f"holds {held.source} of {held.input_shape}" if held is not None else "not there"
        raise files.FileError(f"{splits}: {holds}; with data.source: {source}, run `dvc repro prepare`")
    _check_classes(provenance, prepared.classes)
    test = prepared.test
    return Split(test.read(0, len(test)), test.labels) if isinstance(test, Files) else test


def _check_classes(provenance: Mapping[str, Any], classes: list[str]) -> None:
    """Check that a model was trained on these classes, in this order, if its file says on which.

    Raises:
        DataError: it was trained on others, or in another order.
    """
    if provenance.get("classes", mark(classes)) != mark(classes):
        raise DataError(
            f"data.source {provenance['data']}: not the classes of the model, or not in its order; set data.classes in "
            "params.yaml as when it was trained"
        )
