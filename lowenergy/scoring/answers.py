"""What a classifier's accuracy hides: whom it agrees with, which class pays, and whether its confidence is deserved.

Compression costs few images, but often those of a few classes (Hooker et al. 2019, arXiv 1911.05248).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # of confidence, as published


@dataclass(frozen=True)
class ClassLoss:
    """The class that lost most: the fractions of its images that are answered right, and how many images it has."""

    label: int
    own: float
    teacher: float
    images: int

    def __str__(self) -> str:
        return f"{self.label}: {self.own:.1%} of {self.images} images, the teacher {self.teacher:.1%}"


def agreement(logits: Tensor, teacher: Tensor) -> float:
    """The fraction of images that get the same answer.

    Args:
        logits, teacher: (n, classes), for the same images.

    >>> agreement(torch.eye(3), torch.eye(3).flip(1))  # the middle one
    0.3333333333333333
    """
    return float((logits.argmax(1) == teacher.argmax(1)).double().mean())


def lost_most(logits: Tensor, teacher: Tensor, labels: Tensor) -> ClassLoss:
    """The class whose accuracy is furthest below the teacher's; the first of those with equal losses.

    Args:
        logits, teacher: (n, classes), for the same images.
        labels: (n,)

    >>> print(lost_most(torch.eye(3)[[0, 0, 2]], torch.eye(3), torch.arange(3)))
    1: 0.0% of 1 images, the teacher 100.0%
    """
    classes = int(labels.max()) + 1
    counts = labels.bincount(minlength=classes).double()
    of_own, of_teacher = (
        labels[outputs.argmax(1) == labels].bincount(minlength=classes) / counts.clamp_min(1)
        for outputs in (logits, teacher)
    )
    loss = torch.where(counts > 0, of_teacher - of_own, -torch.inf)
    label = int(loss.argmax())
    return ClassLoss(label, float(of_own[label]), float(of_teacher[label]), int(counts[label]))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """How far confidence is from accuracy, on average (ECE, Naeini et al. 2015; Guo et al. 2017).

    The confidence is the largest probability; images fall into `bins` of equal width, and each bin's distance between
    mean confidence and accuracy is weighted by its number of images.

    Args:
        logits: (n, classes); labels: (n,)

    >>> certain = 100 * torch.eye(2)
    >>> calibration_error(certain, torch.tensor([0, 0]))  # sure of both, and right once
    0.5
    """
    confidence, answer = logits.double().softmax(1).max(1)
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    surplus = confidence - (answer == labels).double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add(0, place, surplus).abs().sum() / len(labels))
