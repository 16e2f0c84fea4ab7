"""Read torchvision's data sets, by name, from a root that may have been filled by other means."""

import inspect
import operator
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lowenergy.base.errors import one_line
from lowenergy.data import decoding
from lowenergy.data.images import DataError, Source, Split
from lowenergy.params import Data

KINDS = {"mnist": "MNIST", "cifar100": "CIFAR100"}
PREFIX = "torchvision.datasets."
# Names that data sets give their parts; the first one that exists is used.
TRAIN, VALIDATION, TEST = ("train", "trainval", "train-standard"), ("val", "valid"), "test"
SECRET = {"Places365", "CLEVRClassification"}  # data sets whose test labels are not public
PURPOSES = {"train": "to train on", "test": "to test on", "validation": "to choose by"}
OURS = {"root", "train", "download", "transform", "transforms", "target_transform", "loader"}  # set by us alone


def read_torchvision(p: Data) -> Source:
    """Read a data set's training and test images, the names of its classes, and validation images if it has its own.

    A data set without test images, or without their labels, is tested on its validation images. One without parts
    leaves the splitting to `prepare`.

    Raises:
        DataError: there is no such data set, its files cannot be used, or its images have no classes.
    """
    kind = _kind(p)
    parts, splits, values = [], {}, {}
    for role, which in _roles(kind, p).items():
        with _files_of(p):
            part = _open(kind, p, which)
            split = _split(part, p)
        if split is not None:
            parts.append(part)
            splits[role], values[role] = split, next(iter(which.values()), "all images")
        elif role == "train":
            raise DataError(f"data.source {p.source}: there are images without labels in the part to train on")
    classes = _classes(parts, int(max(split.labels.max() for split in splits.values())) + 1, p)
    if "test" not in splits and "validation" in splits:
        splits["test"], values["test"] = splits.pop("validation"), values.pop("validation")
    if list(values.values()) not in ([True, False], [TRAIN[0], TEST]):
        used = [f"{value} {PURPOSES[role]}" for role, value in values.items()]
        used += [f"{p.test:.0%} of them {PURPOSES[TEST]}"] if TEST not in values else []
        print(f"data.source {p.source}: {', '.join(used)}", flush=True)
    return Source(splits["train"], splits.get("test"), classes, splits.get("validation"))


def _kind(p: Data) -> Any:
    """The class of torchvision that the source names; it can be made with data.arguments.

    Raises:
        DataError: there is no such class for labelled images in files, or it takes other arguments.
    """
    from torchvision import datasets

    name = KINDS.get(p.source, p.source.removeprefix(PREFIX))
    kind = getattr(datasets, name, None)
    if kind in (datasets.ImageFolder, datasets.DatasetFolder):
        raise DataError(f"data.source {p.source}: give data.source: folder, and data.folder")
    known = _parameters(kind) if inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset) else {}
    if "root" not in known or kind is datasets.VisionDataset:
        raise DataError(f"data.source {p.source}: no data set of torchvision with labelled images in files")
    if odd := sorted(p.arguments.keys() - (known.keys() - OURS)):
        free = ", ".join(sorted(known.keys() - OURS)) or "none"
        raise DataError(f"data.arguments: {', '.join(odd)}: not to be set; {name} takes {free}")
    needed = {key for key, default in known.items() if default is inspect.Parameter.empty} - OURS
    if missing := sorted(needed - p.arguments.keys()):
        values = _values(kind, p, missing[0]) or ["…"]
        one_of = f"; it is one of {', '.join(values)}" if len(values) > 1 else ""
        raise DataError(
            f"data.source {p.source}: needs {missing[0]}; set data.arguments: {{{missing[0]}: {values[0]}}}{one_of}"
        )
    return kind


def _parameters(kind: Any) -> dict[str, Any]:
    """The defaults of a class's constructor parameters, including those that it hands on with **kwargs."""
    defaults: dict[str, Any] = {}
    for ancestor in kind.__mro__:
        if "__init__" not in ancestor.__dict__:
            continue
        parameters = list(inspect.signature(ancestor).parameters.values())
        named = {q.name: q.default for q in parameters if q.kind not in (q.VAR_POSITIONAL, q.VAR_KEYWORD)}
        defaults = named | defaults
        if all(q.kind is not q.VAR_KEYWORD for q in parameters):
            break
    return defaults


def _values(kind: Any, p: Data, argument: str) -> list[str]:
    """The values that an argument may have, as torchvision's error for a wrong one lists them; none if it does not."""
    try:
        kind(p.root, **{**p.arguments, argument: "?"})
    except ValueError as error:
        before, _, values = str(error).partition("Valid values are")
        return re.findall(r"'([^']+)'", values) if f"argument {argument}" in before else []
    except Exception:  # it looks at its files before its arguments
        return []
    return []


def _roles(kind: Any, p: Data) -> dict[str, dict[str, Any]]:
    """The arguments that choose the images to train on, to test on and to validate with, if there are parts.

    A part named in data.arguments is trained on; unless its name begins with `train`, no other part is used.

    Raises:
        DataError: it is not clear which part to train on.
    """
    known = _parameters(kind)
    if "train" in known and "what" not in p.arguments:  # what: QMNIST's own name for a part
        return {"train": {"train": True}, "test": {"train": False}}
    if "train" in known or "split" not in known:
        return {"train": {}}
    values = _values(kind, p, "split") or [TRAIN[0], TEST]
    train = p.arguments.get("split") or next((name for name in TRAIN if name in values), None)
    if train is None:
        raise DataError(
            f"data.source {p.source}: has parts {', '.join(values)}; say which to train on, as with data.arguments: "
            f"{{split: {values[0]}}}"
        )
    roles = {"train": {"split": train}}
    if str(train).startswith("train"):
        if TEST in values and kind.__name__ not in SECRET:
            roles["test"] = {"split": TEST}
        held_out = next((name for name in VALIDATION if name in values), None)
        if held_out is not None and train != "trainval":  # trainval includes them
            roles["validation"] = {"split": held_out}
    return roles


def _open(kind: Any, p: Data, which: dict[str, Any]) -> Any:
    arguments = {**p.arguments, **which}
    if "download" not in _parameters(kind):
        return kind(p.root, **arguments)
    try:  # with the files in place, asking for a download would still try to reach the mirrors
        return kind(p.root, **arguments, download=False)
    except (RuntimeError, FileNotFoundError) as error:
        missing = re.sub(r"You \w+ \w+ download=True.*", "", str(error)).rstrip(". ")
    try:
        return kind(p.root, **arguments, download=True)
    except Exception as error:
        raise RuntimeError(missing if missing in str(error) else f"{missing}; when downloading: {error}") from None


@contextmanager
def _files_of(p: Data) -> Iterator[None]:
    """Turn whatever goes wrong within the `with` into an error that names the cause.

    Raises:
        DataError: the arguments are wrong, a package is missing, or else the files under the root cannot be used.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # torchvision raises nearly anything, assertions included, on damaged files
        if "for argument" in str(error):
            raise DataError(f"data.source {p.source}: data.arguments: {error}") from None
        if isinstance(error, ImportError) or "pip install" in str(error):
            raise DataError(f"data.source {p.source}: a package is missing: {error}") from None
        raise DataError(
            f"data.source {p.source}: the files under {p.root} cannot be used ({one_line(error)}); point "
            "data.root to a torchvision root that holds all of them, or, with internet access, to an empty directory"
        ) from None


def _split(part: Any, p: Data) -> Split | None:
    """The images and labels of a part; None if there are images without a label."""
    labels = getattr(part, "targets", getattr(part, "labels", None))
    if hasattr(part, "data") and labels is not None and not isinstance(part.data, list):
        images, labels = torch.as_tensor(part.data), torch.as_tensor(labels).long()
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.permute(0, 3, 1, 2).contiguous()
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST's labels also say who wrote the digit
    else:
        read = _read(part, p)
        if read is None:
            return None
        images, labels = read
    return None if (labels < 0).any() else Split(images, labels)


def _read(part: Any, p: Data) -> tuple[Tensor, Tensor] | None:
    """Read images one by one, cut to squares if data.image_size is given; None if one has no label."""
    from PIL import Image
    from torchvision.transforms.v2 import functional as V

    images: list[Tensor] = []
    labels: list[int] = []
    for i in range(len(part)):
        item = part[i]
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)):
            raise DataError(f"data.source {p.source}: not a data set of images with one label each")
        image, label = item
        if label is None:
            return None
        try:
            labels.append(operator.index(label))
        except TypeError:
            which = " or ".join(key for key in _parameters(type(part)) if "target" in key and key not in OURS)
            hint = f"; set {which} in data.arguments" if which else ""
            raise DataError(f"data.source {p.source}: its labels are not numbers of classes{hint}") from None
        image = decoding.eight_bit(image, p.channels, {})
        images.append(decoding.square(image, p.image_size) if p.image_size else V.pil_to_tensor(image))
        if images[-1].shape != images[0].shape:
            raise DataError(f"data.source {p.source}: images differ in size; give data.image_size, e.g. 32")
    if not images:
        raise DataError(f"data.source {p.source}: no images under {p.root}")
    return torch.stack(images), torch.tensor(labels)


def _classes(parts: list[Any], count: int, p: Data) -> list[str]:
    """The names of the classes, at least `count` of them; their numbers if there are no names.

    Raises:
        DataError: the parts have different classes, or fewer than `count`.
    """
    if any("target" in key for key in p.arguments):  # the names belong to the usual targets
        return [str(number) for number in range(count)]
    names, *others = [getattr(part, "classes", getattr(part, "categories", None)) for part in parts]
    if any(other != names for other in others):
        raise DataError(f"data.source {p.source}: its parts do not have the same classes; is part of {p.root} missing?")
    if names is None:
        return [str(number) for number in range(count)]
    if len(names) < count:
        raise DataError(f"data.source {p.source}: a label is {count - 1}, and there are names of {len(names)} classes")
    first = [str(name[0] if isinstance(name, tuple) else name) for name in names]  # others are synonyms
    twice = {name for name, times in Counter(first).items() if times > 1}  # ImageNet has two cranes
    return [f"{name} {number}" if name in twice else name for number, name in enumerate(first)]
