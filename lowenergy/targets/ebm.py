"""Target `ebm`: an energy trained by persistent contrastive divergence; compressed ones match energies and scores."""

from functools import cached_property

import torch
from torch import Tensor, nn

from lowenergy import models, training
from lowenergy.data import Splits, to_float
from lowenergy.energy import HEADS, EnergyMatch, OwnChains, energy_of, flow_loss, logits_and_gradient, probe_images
from lowenergy.params import Ebm, Retrain
from lowenergy.training import Logs, Run


def train(splits: Splits, p: Ebm, run: Run) -> models.Network:
    spec = models.Spec.of(p.architecture, splits.input_shape, outputs=p.architecture.logits)
    network = models.build(spec, seed=run.seed)
    training.fit_energy(network, splits.train, p.train, run)
    return network


class EnergyObjective:
    """Energies and scores as the teacher's, on data, around it, along the teacher's chains and the network's own."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Ebm, run: Run) -> None:
        self.head = models.spec_of(teacher).head or "mean"
        self.energy, self.splits, self.p = energy_of(teacher.to(run.device).eval(), self.head), splits, p
        self.generator = torch.Generator(run.device).manual_seed(run.own_seed)
        self.own = OwnChains(p.probes, splits.input_shape, run.generator)
        self.state = {"own": self.own}

    @cached_property
    def inputs(self) -> Tensor:  # on demand: the chains take longer than much that needs none
        images = to_float(self.splits.train.images.to(self.generator.device))
        return probe_images(self.energy, images, self.p.probes, self.generator)

    @cached_property
    def match(self) -> EnergyMatch:
        return EnergyMatch(self.energy, self.inputs, self.p.matching)

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        own = self.own.images
        logits, gradients = logits_and_gradient(network, self.head, torch.cat([self.inputs[index], own]))
        loss, logs = self.match.loss(HEADS[self.head](logits), gradients, index, own)
        self.own.step(gradients)
        return loss, logs

    def own_loss(self, network: models.Network, run: Run) -> Tensor:
        images = self.splits.train.images.to(run.device)
        index = torch.randint(len(images), (128,), generator=run.generator, device=run.device)
        return flow_loss(energy_of(network, self.head), to_float(images[index]), run.generator)

    def retrain(self, network: models.Network, p: Retrain, run: Run) -> None:
        training.fit_energy(network, self.splits.train, self.p.train, run, retrain=p)


objective = EnergyObjective
