"""Target `jem`: one network that is classifier and energy, E(x) = -logsumexp of its logits (Grathwohl et al. 2020)."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import models, training
from lowenergy.data import Splits, to_float
from lowenergy.energy import HEADS, EnergyMatch, OwnChains, energy_of, flow_loss, logits_and_gradient, probe_images
from lowenergy.params import Jem, JointTraining, Retrain
from lowenergy.training import Logs, Run


def train(splits: Splits, p: Jem, run: Run) -> models.Network:
    spec = models.Spec.of(p.architecture, splits.input_shape, outputs=len(splits.classes))
    network = models.build(spec, seed=run.seed)

    training.fit_energy(network, splits.train, p.train, run, also=classification(p.train))
    return network


def classification(p: JointTraining) -> Callable[[Tensor, Tensor], tuple[Tensor, Logs]]:
    """(logits, labels) -> the JEM's loss as a classifier."""

    def loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Logs]:
        value = F.cross_entropy(logits, labels, label_smoothing=p.label_smoothing)
        return p.classification_weight * value, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    return loss


class JointObjective:
    """The EBM's objective, and the teacher's class probabilities wherever the energies are matched."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Jem, run: Run) -> None:
        self.teacher, self.splits, self.p = teacher.to(run.device).eval(), splits, p
        self.generator = torch.Generator(run.device).manual_seed(run.own_seed)
        self.own = OwnChains(p.probes, splits.input_shape, run.generator)
        self.state = {"own": self.own}

    @cached_property
    def inputs(self) -> Tensor:  # on demand: the chains take longer than much that needs none
        images = to_float(self.splits.train.images.to(self.generator.device))
        return probe_images(energy_of(self.teacher, "logsumexp"), images, self.p.probes, self.generator)

    @cached_property
    def match(self) -> EnergyMatch:
        return EnergyMatch(energy_of(self.teacher, "logsumexp"), self.inputs, self.p.matching)

    @cached_property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.teacher(batch) for batch in self.inputs.split(500)])

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        t, own = self.p.matching.temperature, self.own.images
        logits, gradients = logits_and_gradient(network, "logsumexp", torch.cat([self.inputs[index], own]))
        loss, logs = self.match.loss(HEADS["logsumexp"](logits), gradients, index, own)
        self.own.step(gradients)
        given, wanted = (F.log_softmax(found / t, 1) for found in (logits[: len(index)], self.logits[index]))
        divergence = t**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return loss + self.p.matching.class_weight * divergence, {**logs, "divergence": divergence}

    def own_loss(self, network: models.Network, run: Run) -> Tensor:
        split = self.splits.train.to(run.device)
        batch = split.take(torch.randint(len(split), (128,), generator=run.generator, device=run.device))
        images = to_float(batch.images)
        flow = flow_loss(energy_of(network, "logsumexp"), images, run.generator)
        return self.p.train.flow_weight * flow + classification(self.p.train)(network(images), batch.labels)[0]

    def retrain(self, network: models.Network, p: Retrain, run: Run) -> None:
        t = self.p.train
        training.fit_energy(network, self.splits.train, t, run, also=classification(t), retrain=p)


objective = JointObjective
