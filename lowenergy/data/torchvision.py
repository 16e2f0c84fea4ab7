"""Data sets that torchvision knows, from a root that may have been filled by other means."""

from pathlib import Path

import torch

from lowenergy.data.images import DataError, Split

KINDS = {"mnist": ("MNIST", "MNIST/raw"), "cifar100": ("CIFAR100", "cifar-100-python")}  # class, its folder in the root


def read_torchvision(source: str, root: str) -> tuple[Split, Split, list[str]]:
    from torchvision import datasets

    kind = getattr(datasets, KINDS[source][0])
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
    return not (Path(root) / KINDS[source][1]).is_dir()
