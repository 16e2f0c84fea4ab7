"""Target `jem`: one network, both classifier and energy, E(x) = -logsumexp of its logits (Grathwohl et al. 2020)."""

from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy.data import Splits, at_a_time, to_float
from lowenergy.networks import TRIED, Given, Network, Spec, of_params, settled
from lowenergy.targets.jem import JemTraining, Params
from lowenergy.training import Logs, Run, silent_answers
from lowenergy.training.energies import EnergyObjective, fit_energy

# Softened answers of a classifier say more (Hinton et al. 2015), but a JEM's logits are energies, matched as they are.
TEMPERATURE = 1.0


def train(splits: Splits, p: Params, run: Run, given: Given | None = None) -> Network:
    classes, normalisation = len(splits.classes), splits.normalisation
    spec = Spec.of(p.architecture, splits.input_shape, classes, "logsumexp", normalisation, given)
    some = to_float(splits.train.images[:TRIED])
    network = of_params(
        p.architecture,
        spec,
        seed=run.seed,
        where=f"{run.name}.architecture",
        images=some,
        batch_size=p.train.batch_size if p.train.epochs else 0,
    )
    if p.train.epochs:
        also = partial(classification, p.train)
        fit_energy(network, splits.train, p.train, run, also=also)
    return settled(network, some, run.name)


def classification(p: JemTraining, logits: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Logs]:
    """The JEM's loss as a classifier, with the weight it has at this share of the training, and its accuracy."""
    risen = min(1.0, progress / p.classification_rise) if p.classification_rise else 1.0
    value = risen * p.classification_weight * F.cross_entropy(logits, labels)
    return value, {"accuracy": (logits.argmax(1) == labels).float().mean()}


class JointObjective(EnergyObjective):
    """The EBM's objective, which also matches the teacher's class probabilities wherever the energies are matched."""

    def __init__(self, teacher: nn.Module, splits: Splits, p: Params, run: Run) -> None:
        super().__init__(teacher, splits, p, run, partial(classification, p.train))
        self.divergence_weight = p.matching.divergence_weight

    @cached_property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.teacher(batch) for batch in self.inputs.split(at_a_time(self.inputs, 500))])

    @cached_property
    def silent(self) -> dict[str, float]:
        return super().silent | silent_answers(self.logits, TEMPERATURE)

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        logits, loss, logs = self.matched(network, index)
        given, wanted = (F.log_softmax(raw / TEMPERATURE, 1) for raw in (logits, self.logits[index]))
        divergence = TEMPERATURE**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return loss + self.divergence_weight * divergence, {**logs, "divergence": divergence}


objective = JointObjective
