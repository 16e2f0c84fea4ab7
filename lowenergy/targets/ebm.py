"""Target `ebm`: an energy trained by flow and chains; compressed ones match energies and scores."""

from lowenergy.base.params import Ebm
from lowenergy.data import Splits
from lowenergy.networks import Network, Spec, build
from lowenergy.training import Run
from lowenergy.training.energies import EnergyObjective, fit_energy

objective = EnergyObjective


def train(splits: Splits, p: Ebm, run: Run) -> Network:
    a = p.architecture
    network = build(Spec.of(a, splits.input_shape, outputs=a.logits, head=a.head), seed=run.seed)
    fit_energy(network, splits.train, p.train, run)
    return network
