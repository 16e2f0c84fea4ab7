"""Target `jem`: one network that is classifier and energy, E(x) = -logsumexp of its logits (Grathwohl et al. 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import models, training
from lowenergy.data import Splits, to_float
from lowenergy.energy import HEADS, EnergyMatch, energy_of, probe_images
from lowenergy.params import Jem, JointMatching
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

    def __init__(self, teacher: nn.Module, splits: Splits, p: JointMatching, run: Run) -> None:
        teacher = teacher.to(run.device).eval()
        energy = energy_of(teacher, "logsumexp")
        self.p = p
        self.inputs = probe_images(energy, to_float(splits.train.images.to(run.device)), p, run.generator)
        self.match = EnergyMatch(energy, self.inputs, p.score_weight)
        with torch.no_grad():
            self.logits = torch.cat([teacher(batch) for batch in self.inputs.split(500)])

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        t, kept = self.p.temperature, []

        def energy(images: Tensor) -> Tensor:
            kept.append(network(images))  # one forward pass serves both losses
            return HEADS["logsumexp"](kept[-1])

        loss, logs = self.match.loss(energy, self.inputs[index], index)
        divergence = t**2 * F.kl_div(
            F.log_softmax(kept[-1] / t, 1),
            F.log_softmax(self.logits[index] / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return loss + self.p.class_weight * divergence, {**logs, "divergence": divergence}


def objective(teacher: nn.Module, splits: Splits, p: JointMatching, run: Run) -> JointObjective:
    return JointObjective(teacher, splits, p, run)
