"""Target `ebm`: an energy trained by flow and chains; compressed ones match energies and scores."""

from lowenergy.data import Splits, to_float
from lowenergy.networks import TRIED, Given, Network, Spec, of_params, settled
from lowenergy.targets.ebm import Params
from lowenergy.training import Run
from lowenergy.training.energies import EnergyObjective, fit_energy

objective = EnergyObjective


def train(splits: Splits, p: Params, run: Run, given: Given | None = None) -> Network:
    a = p.architecture
    spec = Spec.of(a, splits.input_shape, a.logits or 0, a.head, splits.normalisation, given)
    some = to_float(splits.train.images[:TRIED])
    network = of_params(
        a,
        spec,
        seed=run.seed,
        where=f"{run.name}.architecture",
        images=some,
        batch_size=p.train.batch_size if p.train.epochs else 0,
    )
    if p.train.epochs:
        fit_energy(network, splits.train, p.train, run)
    return settled(network, some, run.name)
