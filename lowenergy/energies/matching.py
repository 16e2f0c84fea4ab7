"""Match a compressed energy to its teacher's: at which images, and in which quantities."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lowenergy.data import at_a_time, to_float
from lowenergy.energies.energy import Energy, energy_gradient
from lowenergy.energies.langevin import langevin_chain, langevin_step, uniform_noise
from lowenergy.params import EnergyMatching, Sampler

CONVERTED = 250  # images converted from bytes to floats at a time
KEPT = 2**30  # most bytes of the teacher's gradients to keep; more are computed anew for each batch
NOISE = 0.3  # largest standard deviation of the noise on probes; chains near the data stray less


def probe_images(
    energy: Energy,
    images: Tensor,
    p: EnergyMatching,
    sampler: Sampler,
    generator: Generator,
    progress: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Choose where a compressed energy must agree with its teacher's: on data, around data, and on the sampler's way.

    Args:
        images: (n, c, h, w) uint8, real images.
    Returns:
        (m, c, h, w): p.images real images, as many with noise of random strength, then the start and four evenly spaced
        states (fewer if p.chain_steps < 4) of p.chains of the teacher's chains.
    """
    device = generator.device
    order = torch.randperm(len(images), generator=generator, device=device)[: p.images].to(images.device)
    kept = [0, *sorted({max(1, p.chain_steps * quarter // 4) for quarter in (1, 2, 3, 4)})]
    count = len(order)
    # In place throughout: for large images these are gigabytes.
    probes = torch.empty(2 * count + len(kept) * p.chains, *images.shape[1:], device=device)
    real, noisy, states = probes[:count], probes[count : 2 * count], probes[2 * count :]
    for part, out in zip(order.split(CONVERTED), real.split(CONVERTED), strict=True):
        out.copy_(to_float(images[part].to(device)))
    strength = NOISE * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    noisy.normal_(generator=generator).mul_(strength).add_(real).clamp_(-1, 1)
    by_step = dict(zip(kept, states.unflatten(0, (len(kept), p.chains)), strict=True))
    # The start counts: int8 ranges that have not seen uniform noise clip it, and a clipped activation has no slope.
    by_step[0].copy_(uniform_noise((p.chains, *images.shape[1:]), generator))
    some = at_a_time(probes, p.chains)
    for first in range(0, p.chains, some):
        chains = langevin_chain(energy, by_step[0][first : first + some], p.chain_steps, sampler, generator)
        for step, state in enumerate(chains, 1):
            progress(len(state))
            if step in by_step:
                by_step[step][first : first + some] = state
    return probes


class OwnChains:
    """The student's own chains: where its own sampling leads, wrong turns and all.

    Matching along the teacher's chains alone says nothing about the places that only the student visits.
    """

    def __init__(self, p: EnergyMatching, sampler: Sampler, shape: tuple[int, int, int], generator: Generator) -> None:
        self.p, self.sampler, self.generator = p, sampler, generator
        self.images = uniform_noise((p.student_chains, *shape), generator)

    def step(self, gradients: Tensor) -> None:
        """Take one Langevin step along the last gradients; each chain restarts after p.chain_steps on average."""
        if not len(self.images) or not torch.is_grad_enabled():  # nothing moves while a loss is only looked at
            return
        images = self.images
        noise = torch.randn(images.shape, generator=self.generator, device=images.device)
        moved = langevin_step(images, gradients.detach()[-len(images) :], noise, self.sampler)
        fresh = (
            torch.rand(len(images), 1, 1, 1, generator=self.generator, device=images.device) < 1 / self.p.chain_steps
        )
        self.images = torch.where(fresh, uniform_noise(tuple(images.shape), self.generator), moved)

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.images = state["images"]


class EnergyMatch:
    """Squared errors of a student's energies and of its input gradients, each relative to the teacher's spread.

    The gradient is the score that sampling follows: energies alone can agree closely while their slopes do not.
    """

    def __init__(self, teacher: Energy, images: Tensor, p: EnergyMatching, batch_size: int = 500) -> None:
        self.teacher, self.images, self.p = teacher, images, p
        self.energies = torch.empty(len(images), device=images.device)
        self.gradients = torch.empty_like(images) if 4 * images.numel() <= KEPT else None
        total, batch_size = 0.0, at_a_time(images, batch_size)
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            self.energies[part], gradients = energy_gradient(teacher, images[part])
            total += float(gradients.square().sum())
            if self.gradients is not None:
                self.gradients[part] = gradients
        self.scale = total / images.numel() if self.gradients is None else self.gradients.square().mean()

    def slopes(self, index: Tensor) -> Tensor:
        """The teacher's input gradients at the images with these indices."""
        if self.gradients is not None:
            return self.gradients[index]
        return energy_gradient(self.teacher, self.images[index])[1]

    def loss(
        self, energies: Tensor, gradients: Tensor, index: Tensor, more: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a student's energies and input gradients, and its two errors by name.

        Both are those at the images with these indices, then at those of `more`, which the teacher has yet to see.
        """
        wanted, slopes = self.energies[index], self.slopes(index)
        if len(more):
            taught = energy_gradient(self.teacher, more)
            wanted, slopes = torch.cat([wanted, taught[0]]), torch.cat([slopes, taught[1]])
        energy_error = (energies - wanted).square().mean() / self.energies.var()
        score_error = (gradients - slopes).square().mean() / self.scale
        return self.p.energy_weight * energy_error + self.p.score_weight * score_error, {
            "energy_error": energy_error,
            "score_error": score_error,
        }
