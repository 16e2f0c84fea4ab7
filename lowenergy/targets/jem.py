"""Target `jem`: one network that is classifier and energy, E(x) = -logsumexp of its logits (Grathwohl et al. 2020)."""

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import models, training
from lowenergy.data import Splits, to_float
from lowenergy.energy import HEADS, EnergyMatch, energy_of, logits_and_gradient, probe_images
from lowenergy.params import Jem
from lowenergy.training import Logs, Run


def train(splits: Splits, p: Jem, run: Run) -> models.Network:
    spec = models.Spec.of(p.architecture, splits.input_shape, outputs=len(splits.classes))
    network = models.build(spec, seed=run.seed)

    def classify(logits: Tensor, labels: Tensor) -> tuple[Tensor, Logs]:
        loss = F.cross_entropy(logits, labels, label_smoothing=p.train.label_smoothing)
        return p.train.classification_weight * loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    training.fit_energy(network, splits.train, p.train, run, also=classify)
    return network


class JointObjective:
    """The EBM's objective, and the teacher's class probabilities wherever the energies are matched."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Jem, run: Run) -> None:
        self.teacher, self.p = teacher.to(run.device).eval(), p
        images = to_float(splits.train.images.to(run.device))
        self.inputs = probe_images(energy_of(self.teacher, "logsumexp"), images, p.probes, run.generator)

    @cached_property
    def match(self) -> EnergyMatch:
        return EnergyMatch(energy_of(self.teacher, "logsumexp"), self.inputs, self.p.matching.score_weight)

    @cached_property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.teacher(batch) for batch in self.inputs.split(500)])

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        t = self.p.matching.temperature
        logits, gradients = logits_and_gradient(network, "logsumexp", self.inputs[index])
        loss, logs = self.match.loss(HEADS["logsumexp"](logits), gradients, index)
        given, wanted = (F.log_softmax(found / t, 1) for found in (logits, self.logits[index]))
        divergence = t**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return loss + self.p.matching.class_weight * divergence, {**logs, "divergence": divergence}


objective = JointObjective
