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


def flow_loss(energy: Energy, images: Tensor, generator: Generator, team: Team = ALONE) -> Tensor:
    """mean (-∇E(x_t) - (x_1 - x_0))² on the straight way x_t = (1 - t) x_0 + t x_1 from uniform noise to `images`.

    Descending the energy then carries noise to the data in unit time: step_size = 1/n in n Langevin steps. One energy
    serves all times t, which it is not told (Balcerak et al. 2025, the flow regime; Lipman et al. 2023).

    Args:
        team: processes among which the images are divided.
    """
    noise = uniform_noise(tuple(images.shape), generator)
    time = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    between = team.share(torch.lerp(noise, images, time)).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(between).sum(), between, create_graph=True)
    return (team.gather(gradient, len(images)) + images - noise).square().mean()
