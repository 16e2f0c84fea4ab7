"""Energy-based models: the energy and its gradient, sampling, training losses, matching.

`gradient.gradient_graph` is imported where it is used: tracing imports much of torch.
"""

from lowenergy.energies.buffer import ReplayBuffer
from lowenergy.energies.energy import HEADS, Energy, ExplicitEnergy, energy_gradient, energy_of, logits_and_gradient
from lowenergy.energies.langevin import BATCH, langevin_chain, langevin_step, sample, steps_in, uniform_noise
from lowenergy.energies.losses import contrastive_loss, flow_loss, silent_flow
from lowenergy.energies.matching import EnergyMatch, OwnChains, probe_images
from lowenergy.energies.outside import auroc_of, transformed

__all__ = [
    "BATCH",
    "HEADS",
    "Energy",
    "EnergyMatch",
    "ExplicitEnergy",
    "OwnChains",
    "ReplayBuffer",
    "auroc_of",
    "contrastive_loss",
    "energy_gradient",
    "energy_of",
    "flow_loss",
    "langevin_chain",
    "langevin_step",
    "logits_and_gradient",
    "probe_images",
    "sample",
    "silent_flow",
    "steps_in",
    "transformed",
    "uniform_noise",
]
