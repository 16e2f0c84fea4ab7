"""Figures of a network as a classifier."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.base import UserError
from lowenergy.base.device import measured
from lowenergy.data import Split, to_float
from lowenergy.networks import spec_of


def predict(network: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits, (n, outputs), of uint8 images.

    Raises:
        UserError: some are NaN, of which the largest would be any.
    """
    with measured(network) as device, torch.no_grad():
        logits = torch.cat([network(to_float(batch.to(device))).cpu() for batch in images.split(batch_size)])
    if len(bad := logits.isnan().any(1).nonzero()):
        raise UserError(
            f"{spec_of(network).name}: its outputs are NaN for {len(bad)} of {len(images)} images, the first of them "
            f"number {int(bad[0])} (from 0); see which operation has no answer there"
        )
    return logits


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy: fraction whose largest logit is the label's; nll: mean negative log-likelihood in nats."""
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(F.cross_entropy(logits.double(), labels)),
    }


def write_confusion(logits: Tensor, test: Split, classes: list[str], path: Path, teacher: Tensor | None = None) -> None:
    """Write one row per test image: actual and predicted class by name, for DVC's confusion plot, and for a branch
    what its teacher predicts.

    Args:
        teacher: the teacher's logits.
    """
    import pandas as pd  # imported here: a call of the library writes no tables

    answers = {"actual": test.labels, "predicted": logits.argmax(1)}
    answers |= {} if teacher is None else {"teacher": teacher.argmax(1)}
    rows = pd.DataFrame({name: numbers.numpy() for name, numbers in answers.items()})
    rows.replace(dict(enumerate(classes))).to_csv(path, index=False)
