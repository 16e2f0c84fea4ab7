"""The losses of a network that gives every image the same answer: no training may end there without saying so."""

from torch import Tensor

LEAST_SAID = 1e-3  # nats


def silent_cross_entropy(labels: Tensor, smoothing: float = 0.0) -> float:
    """The least cross-entropy that one answer for all images can have: the entropy of the smoothed classes.

    >>> import torch
    >>> round(silent_cross_entropy(torch.tensor([0, 1, 2, 3])), 4)  # log 4
    1.3863
    """
    shares = labels.bincount().double() / len(labels)
    shares = (1 - smoothing) * shares + smoothing / len(shares)
    return float(-(shares * shares.clamp_min(1e-12).log()).sum())


def silent_answers(logits: Tensor, temperature: float) -> dict[str, float]:
    """Return silent_divergence as `divergence`; nothing if the teacher itself gives every image the same answer."""
    divergence = silent_divergence(logits, temperature)
    return {"divergence": divergence} if divergence > LEAST_SAID else {}


def silent_divergence(logits: Tensor, temperature: float) -> float:
    """T² times the least mean divergence of one answer for all images from the teacher's: that of its mean answer.

    Args:
        logits: the teacher's, (n, classes).
    """
    answers = (logits.double() / temperature).log_softmax(1)
    mean = answers.exp().mean(0)
    entropies = -(answers.exp() * answers).sum(1)
    return temperature**2 * float(-(mean * mean.clamp_min(1e-12).log()).sum() - entropies.mean())
