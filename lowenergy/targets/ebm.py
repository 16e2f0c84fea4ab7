"""Target `ebm`: an energy trained by persistent contrastive divergence; compressed ones match energies and scores."""

from functools import cached_property

from torch import Tensor, nn

from lowenergy import models, training
from lowenergy.data import Splits, to_float
from lowenergy.energy import HEADS, EnergyMatch, energy_of, logits_and_gradient, probe_images
from lowenergy.params import Ebm
from lowenergy.training import Logs, Run


def train(splits: Splits, p: Ebm, run: Run) -> models.Network:
    spec = models.Spec.of(p.architecture, splits.input_shape, outputs=p.architecture.logits)
    network = models.build(spec, seed=run.seed)
    training.fit_energy(network, splits.train, p.train, run)
    return network


class EnergyObjective:
    """Energies and scores as the teacher's, on data, around it and along the teacher's chains."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Ebm, run: Run) -> None:
        self.head = models.spec_of(teacher).head or "mean"
        self.energy, self.p = energy_of(teacher.to(run.device).eval(), self.head), p
        self.inputs = probe_images(self.energy, to_float(splits.train.images.to(run.device)), p.probes, run.generator)

    @cached_property
    def match(self) -> EnergyMatch:
        return EnergyMatch(self.energy, self.inputs, self.p.matching.score_weight)

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        logits, gradients = logits_and_gradient(network, self.head, self.inputs[index])
        return self.match.loss(HEADS[self.head](logits), gradients, index)


objective = EnergyObjective
