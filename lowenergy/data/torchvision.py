"""Data sets of torchvision, by name, from a root that may have been filled by other means."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowenergy.data.images import DataError, Split

KINDS = {"mnist": ("MNIST", "MNIST/raw"), "cifar100": ("CIFAR100", "cifar-100-python")}  # class, its folder in the root
PREFIX = "torchvision.datasets."


def kind_of(source: str) -> Any:
    """The class of torchvision that a source names.

    Raises:
        DataError: there is none, or it has no training and test images with labels.
    """
    from torchvision import datasets

    name = KINDS[source][0] if source in KINDS else source.removeprefix(PREFIX)
    kind = getattr(datasets, name, None)
    known = set(inspect.signature(kind).parameters) if inspect.isclass(kind) else set()
    if not {"root", "download"} <= known or not {"train", "split"} & known:
        raise DataError(f"data.source {source}: no data set of torchvision with a training and a test part")
    return kind


def read_torchvision(source: str, root: str, size: int | None = None) -> tuple[Split, Split, list[str]]:
    """Training images, test images, names of the classes.

    Args:
        size: side of the images after a centre crop, for data sets whose images differ in size.
    """
    kind = kind_of(source)
    by_flag = "train" in inspect.signature(kind).parameters
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"train": train} if by_flag else {"split": "train" if train else "test"}
        try:
            part = _open(kind, root, which, _is_missing(source, root))
        except Exception as error:  # torchvision raises nearly anything, assertions included, on damaged files
            raise DataError(
                f"data.source {source}: the files under {root} cannot be used ({error or type(error).__name__}). "
                f"Delete them and run again with internet access to download them, or point data.root to a torchvision "
                f"root that holds {source}"
            ) from None
        parts.append(Split(*_images(part, source, size)))
    labels = int(max(part.labels.max() for part in parts)) + 1
    classes = [str(name) for name in getattr(part, "classes", range(labels))]
    return parts[0], parts[1], classes


def _open(kind: Any, root: str, which: dict[str, Any], missing: bool | None) -> Any:
    if missing is not None:
        return kind(root, **which, download=missing)
    try:  # with the files in place, asking for a download would still try to reach the mirrors
        return kind(root, **which, download=False)
    except RuntimeError:
        return kind(root, **which, download=True)


def _is_missing(source: str, root: str) -> bool | None:
    """Whether to download; None where only torchvision knows."""
    return not (Path(root) / KINDS[source][1]).is_dir() if source in KINDS else None


def _images(part: Any, source: str, size: int | None) -> tuple[Tensor, Tensor]:
    labels = getattr(part, "targets", getattr(part, "labels", None))
    if hasattr(part, "data") and labels is not None and not isinstance(part.data, list):
        images = torch.as_tensor(part.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(labels).long()
    from torchvision.transforms import v2

    crop = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)] if size is not None else [])
    cut: list[Tensor] = []
    found: list[int] = []
    for image, label in part:
        cut.append(crop(v2.functional.pil_to_tensor(image)))
        found.append(int(label))
        if size is None and cut[-1].shape != cut[0].shape:
            raise DataError(f"data.source {source}: images differ in size; give data.image_size, e.g. 32")
        if cut[-1].shape[0] != cut[0].shape[0]:
            raise DataError(f"data.source {source}: some images are grey, some in colour; use a folder of images")
    return torch.stack(cut), torch.tensor(found)
