"""Figures of a network as a classifier."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.base.device import measured
from lowenergy.data import Split, to_float


def predict(network: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Logits, (n, outputs), of uint8 images."""
    with measured(network) as device, torch.inference_mode():
        return torch.cat([network(to_float(batch.to(device))).cpu() for batch in images.split(batch_size)])


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy: fraction whose largest logit is the label's; nll: mean negative log-likelihood in nats."""
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(F.cross_entropy(logits.double(), labels)),
    }


def write_confusion(logits: Tensor, test: Split, classes: list[str], path: Path) -> None:
    """One row per test image, actual and predicted class by name: what DVC's confusion plot reads."""
    names = dict(enumerate(classes))
    rows = pd.DataFrame({"actual": test.labels.numpy(), "predicted": logits.argmax(1).numpy()})
    rows.replace(names).to_csv(path, index=False)
