"""Pull a compressed network towards its teacher."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.hooks import RemovableHandle

from lowenergy.base.precision import Precision
from lowenergy.data import Batches, Floats, at_a_time
from lowenergy.networks import Network, settle_norms
from lowenergy.params import Finetune, Retrain
from lowenergy.training.loop import NOTHING_LEARNT, Logs, Stateful, fit
from lowenergy.training.run import Run

LOOKED_AT = 250  # inputs whose loss shows whether a training has helped
HARM = "ends worse than it began"
POSSIBLE_WARNINGS = [
    f"fit: {HARM}",
    f"fit: {NOTHING_LEARNT}",
    f"retrain: {NOTHING_LEARNT}",
]  # of a stage that finetunes


class Objective(Protocol):
    """What a compressed network is pulled towards; each target has its own."""

    @property
    def inputs(self) -> Tensor | Floats:
        """(n, c, h, w) float32 in [-1, 1]: where the network must behave like its teacher."""

    teacher: nn.Module  # the network that is compressed, as it was
    state: Mapping[str, Stateful]  # the parts of the objective that change while a network is pulled
    precision: Precision  # of the passes through the compressed network
    silent: Mapping[str, float]  # the logs of a network that gives every input the same answer; see fit

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        """How far `network` is from the teacher at the inputs with these indices."""

    def own_loss(self, network: Network, run: Run) -> Tensor:
        """The target's own loss on a random batch of training images."""

    def retrain(self, network: Network, p: Retrain, run: Run) -> None:
        """Train `network` in place by the target's own loss, without the teacher."""


def finetune(
    network: nn.Module,
    objective: Objective,
    p: Finetune,
    run: Run,
    part: str = "fit",
    fraction: float = 1.0,
    before_step: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """Pull the parameters of `network` towards the teacher of `objective`, by Adam with a one-cycle learning rate.

    Args:
        part: see fit.
        fraction: how much of the epochs to spend, if they are spent in parts.
        before_step: called before each step with its number and how many there are.
    """
    learning = [w for w in network.parameters() if w.requires_grad]
    if not p.epochs or not learning:  # or all is frozen
        network.eval()
        return
    batches = Batches(len(objective.inputs), p.batch_size, run.seed)
    steps = round(fraction * p.epochs * batches.per_epoch)
    network.to(run.device)
    optimizer = torch.optim.Adam(learning, lr=p.lr)
    schedule = OneCycleLR(optimizer, p.lr, total_steps=steps + 1)

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Logs]:
        before_step(step, steps)
        with run.autocast(objective.precision):
            return objective.loss(network, batches(step).to(run.device), run)

    count = len(objective.inputs)
    some = torch.linspace(0, count - 1, min(LOOKED_AT, count)).long().to(run.device)  # of all kinds, see probe_images
    network.eval()
    before = mean_loss(network, objective, some, run)
    fit(
        network,
        loss,
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        run=run,
        part=part,
        state=objective.state,
        silent=objective.silent,
    )
    network.to(run.device)
    after = mean_loss(network, objective, some, run)
    network.cpu()
    if after > before:
        run.warn(part, HARM, f"a loss of {after:.4g}, {before:.4g} before; lower its lr")
    first = torch.arange(count, device=run.device)  # they start with random real images
    settle_norms(network, steps, lambda most: objective.inputs[first[:most]].cpu())


def mean_loss(network: nn.Module, objective: Objective, index: Tensor, run: Run) -> float:
    """The objective's mean loss at the inputs with these indices; the run's random numbers stay as they were."""
    state = run.generator.get_state()
    run.generator.manual_seed(run.seed)  # the same augmentation for every network that is compared
    some = at_a_time(objective.inputs[:1], 250)
    with torch.no_grad():
        total = sum(len(part) * float(objective.loss(network, part, run)[0]) for part in index.split(some))
    run.generator.set_state(state)
    return total / len(index)


def hold_zeros(network: nn.Module) -> list[RemovableHandle]:
    """Let no gradient reach the weights that pruning removed, so that zeros stay zero in any further training, until
    the returned handles are removed."""
    handles = []
    for parameter in network.parameters():
        kept = parameter.detach() != 0
        if parameter.requires_grad and parameter.ndim > 1 and not kept.all():
            held = parameter.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient.device))
            handles.append(held)
    return handles
