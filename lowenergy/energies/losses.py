"""What an energy is trained by."""

import torch
from torch import Generator, Tensor

from lowenergy.base.team import ALONE, Team
from lowenergy.energies.energy import Energy
from lowenergy.energies.langevin import uniform_noise


def contrastive_loss(real: Tensor, fake: Tensor, regularization: float) -> Tensor:
    """mean E(real) - mean E(fake) + regularization * mean E², the gradient of the likelihood's negative logarithm.

    The last term keeps the two energies, which only differ by what matters, near zero.

    Args:
        real, fake: energies, (batch,), of images and of chains.
    """
    return real.mean() - fake.mean() + regularization * (real.square().mean() + fake.square().mean())


def flow_loss(energy: Energy, images: Tensor, generator: Generator, rest: float = 0.0) -> Tensor:
    """mean (-∇E(x_t) - v_t)², places x_t and velocities v_t as of `flow_ways`.

    Descending the energy then carries noise to the data in unit time: step_size = 1/n in n Langevin steps. One energy
    serves all times t, which it is not told (Balcerak et al. 2025, the flow regime; Lipman et al. 2023).
    """
    return slope_loss(energy, *flow_ways(images, generator, rest))


def flow_ways(images: Tensor, generator: Generator, rest: float = 0.0) -> tuple[Tensor, Tensor]:
    """Places x_t = (1 - t) x_0 + t x_1 on straight ways from noise x_0 to `images`; velocities c(t) (x_1 - x_0).

    Args:
        rest: 0 for c = 1 and t up to 1: the descent goes on past the images. Else c falls from 1 to 0 in the last share
            `rest` of the way, so that images lie in the energy's valleys (Wang & Du 2025, equilibrium matching), and
            goes on to -1 as far behind them, clamped to [-1, 1], so that what has gone too far comes back.
    """
    noise = uniform_noise(tuple(images.shape), generator)
    time = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * (1 + rest)
    between, velocities = torch.lerp(noise, images, time), images - noise
    if not rest:
        return between, velocities
    return between.clamp(-1, 1), velocities * ((1 - time) / rest).clamp(max=1)


def slope_loss(energy: Energy, places: Tensor, velocities: Tensor, team: Team = ALONE) -> Tensor:
    """mean (-∇E(places) - velocities)², of a batch that `team` divides among its processes."""
    own = team.share(places).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(own).sum(), own, create_graph=True)
    return (team.gather(gradient, len(places)) + velocities).square().mean()
