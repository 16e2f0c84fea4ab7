"""Target `ebm`: an energy trained by flow and chains; compressed ones match energies and scores."""

from lowenergy.base.params import Ebm
from lowenergy.data import Splits
from lowenergy.networks import AnyNetwork, Spec, of_params
from lowenergy.training import Run
from lowenergy.training.energies import EnergyObjective, fit_energy

objective = EnergyObjective


def train(splits: Splits, p: Ebm, run: Run) -> AnyNetwork:
    a = p.architecture
    spec = Spec.of(a, splits.input_shape, a.logits or 0, a.head, splits.normalisation)
    network = of_params(a, spec, seed=run.seed, where="ebm.architecture")
    if p.train.epochs:
        fit_energy(network, splits.train, p.train, run)
    return network.eval()
