"""Target `classifier`, and the scorer: cross-entropy on labels, or on a teacher's softened answers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from lowenergy import models, training
from lowenergy.data import Batches, Split, Splits, augment, shrink, to_float
from lowenergy.params import Classifier, Scorer
from lowenergy.training import Logs, Run


def accuracy(network: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Fraction of images whose largest logit is their label's."""
    with torch.inference_mode():
        hits = [
            (network(to_float(images)).argmax(1) == labels).sum()
            for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
        ]
    return float(sum(hits)) / len(split)


def train(splits: Splits, p: Classifier | Scorer, run: Run) -> models.Network:
    """SGD with Nesterov momentum and a one-cycle learning rate, augmented batches, label smoothing.

    Small images first (progressive resizing, Howard 2018): a convolutional network learns most of what it learns at a
    quarter of the cost.
    """
    t = p.train
    spec = models.Spec.of(p.architecture, splits.input_shape, outputs=len(splits.classes))
    network = models.build(spec, seed=run.seed).to(run.device).to(memory_format=torch.channels_last)
    split, held_out = splits.train.to(run.device), splits.validation.to(run.device)
    batches = Batches(len(split), t.batch_size, run.own_seed)
    steps = t.epochs * batches.per_epoch
    optimizer = torch.optim.SGD(network.parameters(), t.lr, 0.9, weight_decay=t.weight_decay, nesterov=True)

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Logs]:
        batch = split.take(batches(step).to(run.device))
        images = augment(to_float(batch.images), t.crop_padding, t.flip, run.generator)
        images = shrink(images, t.image_scales[step * len(t.image_scales) // steps])
        logits = wrapped(images)
        return F.cross_entropy(logits, batch.labels, label_smoothing=t.label_smoothing), {
            "accuracy": (logits.argmax(1) == batch.labels).float().mean()
        }

    training.fit(
        network,
        loss,
        steps=steps,
        optimizer=optimizer,
        schedule=OneCycleLR(optimizer, t.lr, total_steps=steps + 1),
        run=run,
        measure=lambda network: {"validation_accuracy": accuracy(network, held_out)},
        points=t.epochs,
    )
    return network.to(memory_format=torch.contiguous_format)


class LabelObjective:
    """label_weight * cross-entropy + (1 - label_weight) * T² * KL(teacher ‖ student) (Hinton et al. 2015)."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Classifier, run: Run) -> None:
        self.teacher, self.p = teacher.to(run.device).eval(), p
        train = splits.train.to(run.device)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))
        split = train.take(order[: p.probes.images].to(run.device))
        self.inputs, self.labels = to_float(split.images), split.labels

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        p, labels = self.p.matching, self.labels[index]
        images = augment(self.inputs[index], p.crop_padding, p.flip, run.generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images) / p.temperature, 1)
        logits = network(images)
        given = F.log_softmax(logits / p.temperature, 1)
        divergence = p.temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(logits, labels)
        return p.label_weight * hard + (1 - p.label_weight) * divergence, {
            "divergence": divergence,
            "accuracy": (logits.argmax(1) == labels).float().mean(),
        }


objective = LabelObjective
