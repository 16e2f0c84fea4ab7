"""The losses that train an energy."""

import torch
from torch import Generator, Tensor

from lowenergy.base.team import ALONE, Team
from lowenergy.energies.energy import Energy, twice_differentiable
from lowenergy.energies.langevin import uniform_noise


def contrastive_loss(real: Tensor, fake: Tensor, regularization: float) -> Tensor:
    """mean E(real) - mean E(fake) + regularization * (mean E(real)² + mean E(fake)²).

    The gradient of the difference is that of the negative log-likelihood. The last term keeps both energies near zero,
    as only their difference matters.

    Args:
        real, fake: energies, (batch,), of images and of chains.
    """
    return real.mean() - fake.mean() + regularization * (real.square().mean() + fake.square().mean())


def flow_loss(energy: Energy, images: Tensor, generator: Generator, team: Team = ALONE, rest: float = 0.0) -> Tensor:
    """mean (-∇E(x_t) - c(t) (x_1 - x_0))² on the straight way x_t = (1 - t) x_0 + t x_1 from uniform noise to `images`.

    Descending the energy then carries noise to the data in unit time: in n Langevin steps with step_size = 1/n. One
    energy serves all times t without being told which (Balcerak et al. 2025, the flow regime; Lipman et al. 2023).

    Args:
        team: the processes that share the images.
        rest: 0 for c = 1 and t up to 1: the descent goes on past the images. Otherwise c falls from 1 to 0 over the
            last fraction `rest` of the way, so that images lie in the energy's valleys (Wang & Du 2025, equilibrium
            matching), and on to -1 equally far behind them, where x_t is clamped to [-1, 1], so that what has gone too
            far comes back.
    """
    noise = uniform_noise(tuple(images.shape), generator)
    time = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * (1 + rest)
    between, speed = torch.lerp(noise, images, time), torch.ones((), device=images.device)
    if rest:
        between, speed = between.clamp(-1, 1), ((1 - time) / rest).clamp(max=1)
    between = team.own_rows(between).requires_grad_()
    with twice_differentiable():
        energies = energy(between)
    (gradient,) = torch.autograd.grad(energies.sum(), between, create_graph=True)
    return (team.gather(gradient, len(images)) + speed * images - speed * noise).square().mean()


def silent_flow(images: Tensor, rest: float = 0.0) -> float:
    """The flow loss of an energy without any slope, for these images: E‖x_1 - x_0‖² per pixel times the mean of c².

    Args:
        images: (n, c, h, w) in [-1, 1].
        rest: see flow_loss.
    """
    uniform = 1 / 3  # variance of noise in [-1, 1]
    return (float(images.square().mean()) + uniform) * (1 - rest + 2 * rest / 3) / (1 + rest)
