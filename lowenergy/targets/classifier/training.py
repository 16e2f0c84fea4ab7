"""Target `classifier`, and the scorer: cross-entropy on labels, or on a teacher's softened answers."""

from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from lowenergy.base.precision import Precision
from lowenergy.data import Batches, Floats, Split, Splits, at_a_time, augment, shrink, spaced, to_float
from lowenergy.networks import (
    TRIED,
    Given,
    Network,
    Spec,
    features_and_logits,
    memory_format,
    of_params,
    settle_norms,
    settled,
    training_format,
)
from lowenergy.params import Retrain, Scorer, ScorerTraining, StudentRetrain
from lowenergy.targets.classifier import ClassifierTraining, Params
from lowenergy.training import Logs, Run, Stateful, fit, silent_answers, silent_cross_entropy

POINTS = 200  # validation accuracy is measured at most this often: with few images, every epoch would take longer
ONE_AUXILIARY, EACH_AUXILIARY = 0.4, 0.3  # weights of auxiliary losses, as for Inception v3's one and GoogLeNet's two
WEIGHT_DECAY = 5e-4  # the L2 penalty of nearly every published CIFAR ResNet; digits and MNIST do not feel it


def accuracy(network: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Fraction of images whose largest logit is their label's."""
    parts = torch.arange(len(split)).split(at_a_time(split.images, batch_size))
    with torch.no_grad():
        hits = [(network(to_float(part.images)).argmax(1) == part.labels).sum() for part in map(split.take, parts)]
    return float(sum(hits)) / len(split)


def train(splits: Splits, p: Params | Scorer, run: Run, given: Given | None = None) -> Network:
    """Train by SGD with Nesterov momentum and a one-cycle learning rate, augmented batches, label smoothing.

    Small images can come first (progressive resizing, Howard 2018): a convolutional network learns most of what it
    learns on them, at a quarter of the cost.

    Args:
        given: the module that p.architecture names, where it exists in this program.
    """
    classes, normalisation = len(splits.classes), splits.normalisation
    spec = Spec.of(p.architecture, splits.input_shape, classes, None, normalisation, given)
    some = to_float(splits.train.images[:TRIED])
    network = of_params(
        p.architecture,
        spec,
        seed=run.seed,
        where=f"{run.name}.architecture",
        images=some,
        batch_size=p.train.batch_size if p.train.epochs else 0,
        smaller=[shrink(some, scale) for scale in {*p.train.image_scales} - {1.0}],
    )
    if p.train.epochs:
        _fit(network, splits, p.train, run)
    return settled(network, some, run.name)


def _fit(
    network: Network,
    splits: Splits,
    t: ClassifierTraining | ScorerTraining,
    run: Run,
    retrain: Retrain | None = None,
) -> None:
    network.to(run.device).to(memory_format=training_format(network))
    split, held_out = splits.train.to(run.device), splits.validation.to(run.device)
    batches = Batches(len(split), t.batch_size, run.seed)
    epochs, lr = (retrain.epochs, retrain.lr * t.lr) if retrain else (t.epochs, t.lr)
    precision = retrain.precision if isinstance(retrain, StudentRetrain) else t.precision
    scales = [1.0] if retrain else t.image_scales  # it has learnt from small images already
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.SGD(_with_decay(network), lr, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True)

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Logs]:
        batch = split.take(batches(step))
        images = augment(to_float(batch.images), t.crop_padding, t.flip, run.generator)
        images = shrink(images, scales[step * len(scales) // steps])
        with run.autocast(precision):
            parts = cast(Network, network).outputs(run.team.own_rows(images))
        logits, *auxiliary = (run.team.gather(part.float(), len(images)) for part in parts)
        value, *others = (
            F.cross_entropy(part, batch.labels, label_smoothing=t.label_smoothing) for part in (logits, *auxiliary)
        )
        for other in others:
            value = value + (ONE_AUXILIARY if len(others) == 1 else EACH_AUXILIARY) * other
        return value, {"accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    fit(
        network,
        loss,
        steps=steps,
        optimizer=optimizer,
        schedule=OneCycleLR(optimizer, lr, total_steps=steps + 1),
        run=run,
        part="retrain" if retrain else "fit",
        gradient_norm=1.0 if retrain else None,  # students may lack the norms that the teacher's rate relies on
        measure=lambda network: {"validation_accuracy": accuracy(network, held_out)},
        points=min(epochs, POINTS),
        silent={"loss": silent_cross_entropy(split.labels, t.label_smoothing)},
    )
    network.to(memory_format=torch.contiguous_format)
    settle_norms(network, steps, lambda count: to_float(split.take(spaced(len(split), count)).images.cpu()))


def _with_decay(network: nn.Module) -> list[dict[str, Any]]:
    """Group the parameters: steps of integers do not decay, else ranges would shrink though nothing was learnt."""
    steps = [w for m in network.modules() if getattr(m, "holds_steps", False) for w in m.parameters(recurse=False)]
    others = [w for w in network.parameters() if all(w is not step for step in steps)]
    return [{"params": others}, *([{"params": steps, "weight_decay": 0.0}] if steps else [])]


class LabelObjective:
    """label_weight * cross-entropy + (1 - label_weight) * T² * KL(teacher ‖ student) (Hinton et al. 2015), plus
    feature_weight * feature_error."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Params, run: Run) -> None:
        self.teacher, self.splits, self.p = teacher.to(run.device).eval(), splits, p
        self.state: dict[str, Stateful] = {}
        self.precision: Precision = p.train.precision
        train = splits.train.to(run.device)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))
        self.inputs = Floats(train, order.to(run.device))
        self.labels = splits.train.labels[order].to(run.device)

    @cached_property
    def silent(self) -> dict[str, float]:
        some = torch.arange(min(500, len(self.inputs)), device=self.labels.device)
        with torch.no_grad():
            logits = torch.cat([self.teacher(self.inputs[part]) for part in some.split(100)])
        return silent_answers(logits, self.p.matching.temperature)

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        p, labels = self.p.matching, self.labels[index]
        images = augment(self.inputs[index], self.p.train.crop_padding, self.p.train.flip, run.generator)
        with torch.no_grad():
            of_teacher, wanted = self._shared(self.teacher, images, memory_format(self.teacher), run)
        features, logits = self._shared(network, images, training_format(network), run)
        given, wanted = (F.log_softmax(found / p.temperature, 1) for found in (logits, wanted))
        divergence = p.temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        value = p.label_weight * F.cross_entropy(logits, labels) + (1 - p.label_weight) * divergence
        logs = {"divergence": divergence, "accuracy": (logits.argmax(1) == labels).float().mean()}
        if p.feature_weight and features is not None and of_teacher is not None:
            logs["feature_error"] = feature_error(features, of_teacher)
            value = value + p.feature_weight * logs["feature_error"]
        return value, logs

    @staticmethod
    def _shared(
        network: nn.Module, images: Tensor, order: torch.memory_format, run: Run
    ) -> tuple[Tensor | None, Tensor]:
        rows = run.team.own_rows(images).contiguous(memory_format=order)
        features, logits = features_and_logits(network, rows)
        all_features = None if features is None else run.team.gather(features, len(images))
        return all_features, run.team.gather(logits, len(images))

    def own_loss(self, network: Network, run: Run) -> Tensor:
        some = max(1, at_a_time(self.inputs[:1], 2 * 128) // 2)
        index = torch.randint(len(self.inputs), (some,), generator=run.generator, device=run.device)
        return F.cross_entropy(network(self.inputs[index]), self.labels[index])

    def retrain(self, network: Network, p: Retrain, run: Run) -> None:
        _fit(network, self.splits, self.p.train, run, retrain=p)


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """How much student and teacher differ in which images of a batch look alike to them (Tung & Mori 2019, eq. 4).

    Args:
        student, teacher: features (batch, width), of any two widths.
    Returns:
        batch * the mean square of the difference of their row-normalised similarity matrices, in [0, 4].
    """
    similarity = (F.normalize(f.float() @ f.float().t(), dim=1) for f in (student, teacher))
    return (next(similarity) - next(similarity)).square().sum() / len(student)


objective = LabelObjective
