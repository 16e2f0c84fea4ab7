"""Energies: low where data is likely, p(x) ∝ exp(-E(x)). Heads, Langevin sampling, the replay buffer.

The score ∇ log p = -∇E is the input gradient that sampling follows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from lowenergy.params import EnergyMatching, EnergyProbes, Langevin, Precision

HEADS: dict[str, Callable[[Tensor], Tensor]] = {  # logits (batch, outputs) -> energies (batch,)
    "mean": lambda logits: logits.mean(1),
    "scalar": lambda logits: logits[:, 0],
    "logsumexp": lambda logits: -logits.logsumexp(1),  # Grathwohl et al. 2020
}

Energy = Callable[[Tensor], Tensor]


def energy_of(network: nn.Module, head: str, precision: Precision = "32-true", *, frozen: bool = False) -> Energy:
    """The energy that a network defines through its head: images (batch, c, h, w) -> energies (batch,), float32.

    Args:
        precision: bf16-mixed runs the network under autocast, about twice as fast where the hardware has bfloat16.
        frozen: the weights take part as constants, so that no step spends time on their gradients.
    """
    weights = {name: weight.detach() for name, weight in network.named_parameters()}  # sees later updates in place

    def energy(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = functional_call(network, weights, (images,)) if frozen else network(images)
        return HEADS[head](logits.float())

    return energy


class ExplicitEnergy:
    """An energy whose input gradient is a graph of its own, as of int8 networks (lowenergy/explicit.py).

    Args:
        network: images -> logits.
        graph: images -> logits, input gradients of the energy.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], graph: Callable[[Tensor], Any], head: str) -> None:
        self.network, self.graph, self.head = network, graph, head

    def __call__(self, images: Tensor) -> Tensor:
        return HEADS[self.head](self.network(images))

    def gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits, gradient = self.graph(images)
        return HEADS[self.head](logits), gradient


def energy_gradient(energy: Energy, images: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (batch,) and their input gradients (batch, c, h, w), both detached; weights collect no gradient."""
    if isinstance(energy, ExplicitEnergy):
        return energy.gradient(images)
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        energies = energy(images)
        (gradient,) = torch.autograd.grad(energies.sum(), images)
    return energies.detach(), gradient


def uniform_noise(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform images in [-1, 1], where chains start."""
    return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1


def langevin_chain(
    energy: Energy, images: Tensor, steps: int, constants: Langevin, generator: Generator
) -> Iterator[Tensor]:
    """The `steps` states after `images`, (batch, c, h, w) in [-1, 1], of one chain per image; `images` stays as it is.

    One step is x <- clamp(x - step_size * clamp(∇E(x), ±gradient_clamp) + noise * N(0, 1), [-1, 1]).

    Every state is the same tensor, overwritten by the next step: copy what is to be kept.
    """
    images, noise = images.clone(), torch.empty_like(images)
    for _ in range(steps):
        _, gradient = energy_gradient(energy, images)
        gradient.clamp_(-constants.gradient_clamp, constants.gradient_clamp)
        images.sub_(gradient, alpha=constants.step_size)
        images.add_(noise.normal_(generator=generator), alpha=constants.noise).clamp_(-1, 1)
        yield images


def sample(
    energy: Energy,
    shape: tuple[int, int, int],
    count: int,
    *,
    steps: int,
    constants: Langevin,
    generator: Generator,
    batch_size: int = 500,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Draw images from noise, `batch_size` chains at a time so that memory stays bounded.

    Returns:
        (count, *shape) in [-1, 1], on the generator's device.
    """
    samples = torch.empty(count, *shape, device=generator.device)
    for start in range(0, count, batch_size):
        images = uniform_noise((min(batch_size, count - start), *shape), generator)
        for images in langevin_chain(energy, images, steps, constants, generator):  # noqa: B020 keep the last state
            progress(len(images))
        samples[start : start + len(images)] = images
    return samples


class ReplayBuffer:
    """Chains that persist from one update of the weights to the next (Tieleman 2008, Du & Mordatch 2019)."""

    def __init__(self, size: int, shape: tuple[int, int, int], generator: Generator) -> None:
        self.generator = generator
        self.images = uniform_noise((size, *shape), generator)  # (size, c, h, w), one preallocated tensor
        self.ages = torch.zeros(size, dtype=torch.long, device=generator.device)  # Langevin steps since noise

    def draw(self, count: int, fresh_fraction: float) -> tuple[Tensor, Tensor]:
        """`count` chains and their places; each restarts from noise with probability `fresh_fraction`."""
        device = self.images.device
        # Without repetition: two chains from one place would race to be put back.
        index = torch.randperm(len(self.images), generator=self.generator, device=device)[:count]
        fresh = torch.rand(len(index), generator=self.generator, device=device) < fresh_fraction
        noise = uniform_noise((len(index), *self.images.shape[1:]), self.generator)
        self.ages[index] = self.ages[index].masked_fill(fresh, 0)
        return torch.where(fresh[:, None, None, None], noise, self.images[index]), index

    def put(self, index: Tensor, images: Tensor, steps: int) -> Tensor:
        """Put chains back after `steps` more Langevin steps; their ages, (len(index),)."""
        self.images[index] = images
        self.ages[index] += steps
        return self.ages[index]

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images, "ages": self.ages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.images.copy_(state["images"])
        self.ages.copy_(state["ages"])


def contrastive_loss(real: Tensor, fake: Tensor, regularization: float) -> Tensor:
    """mean E(real) - mean E(fake) + regularization * mean E², the gradient of the likelihood's negative logarithm.

    The last term keeps the two energies, which only differ by what matters, near zero.

    Args:
        real, fake: energies, (batch,), of images and of chains.
    """
    return real.mean() - fake.mean() + regularization * (real.square().mean() + fake.square().mean())


def flow_loss(energy: Energy, images: Tensor, generator: Generator) -> Tensor:
    """mean (-∇E(x_t) - (x_1 - x_0))² on the straight way x_t = (1 - t) x_0 + t x_1 from uniform noise to `images`.

    Descending the energy then carries noise to the data in unit time: step_size = 1/n in n Langevin steps. One energy
    serves all times t, which it is not told (Balcerak et al. 2025, the flow regime; Lipman et al. 2023).
    """
    noise = uniform_noise(tuple(images.shape), generator)
    time = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    between = torch.lerp(noise, images, time).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(between).sum(), between, create_graph=True)
    return (gradient + images - noise).square().mean()


# -- matching a compressed energy to its teacher's --------------------------------------------------------------------


def probe_images(energy: Energy, images: Tensor, p: EnergyProbes, generator: Generator) -> Tensor:
    """Where a compressed energy must agree with its teacher's: on data, around data, and on the way of the sampler.

    Args:
        images: (n, c, h, w) real images in [-1, 1], on the generator's device.
    Returns:
        (m, c, h, w): p.images real images, p.noisy with noise of random strength, then of p.chains chains of the
        teacher's their start and four evenly spaced states.
    """
    device = images.device
    order = torch.randperm(len(images), generator=generator, device=device)
    real, noisy = images[order[: p.images]], images[order[: p.noisy]]
    strength = p.noise * torch.rand(len(noisy), 1, 1, 1, generator=generator, device=device)
    noisy = noisy + strength * torch.randn(noisy.shape, generator=generator, device=device)
    kept = {max(1, p.chain_steps * quarter // 4) for quarter in (1, 2, 3, 4)}
    start = uniform_noise((p.chains, *images.shape[1:]), generator)
    chains = langevin_chain(energy, start, p.chain_steps, p.langevin, generator)
    # The start counts: int8 ranges that have not seen uniform noise clip it, and a clipped activation has no slope.
    states = [start, *(state.clone() for step, state in enumerate(chains, 1) if step in kept)]
    return torch.cat([real, noisy.clamp(-1, 1), *states])


def logits_and_gradient(network: nn.Module, head: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (batch, outputs) and input gradients of the energy, both differentiable by the weights."""
    if getattr(network, "explicit", False):  # an int8 graph puts both out
        logits, gradient = network(images)
        return logits, gradient
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = network(images)
        (gradient,) = torch.autograd.grad(HEADS[head](logits).sum(), images, create_graph=create_graph)
    return logits, gradient


class OwnChains:
    """Chains of the network that is being pulled: where its own sampling leads, wrong turns and all.

    Matching on the teacher's way alone says nothing of the places that only the student visits.
    """

    def __init__(self, p: EnergyProbes, shape: tuple[int, int, int], generator: Generator) -> None:
        self.p, self.generator = p, generator
        self.images = uniform_noise((p.student_chains, *shape), generator)

    def step(self, gradients: Tensor) -> None:
        """One Langevin step along the last of these gradients; each chain restarts after p.chain_steps on average."""
        if not len(self.images) or not torch.is_grad_enabled():  # when a loss is only looked at, nothing moves
            return
        p, images = self.p.langevin, self.images
        downhill = gradients.detach()[-len(images) :].clamp(-p.gradient_clamp, p.gradient_clamp)
        noise = torch.randn(images.shape, generator=self.generator, device=images.device)
        moved = (images - p.step_size * downhill + p.noise * noise).clamp_(-1, 1)
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
        self.teacher, self.p = teacher, p
        parts = [energy_gradient(teacher, batch) for batch in images.split(batch_size)]
        self.energies = torch.cat([energies for energies, _ in parts])  # (n,)
        self.gradients = torch.cat([gradients for _, gradients in parts])  # (n, c, h, w)

    def loss(
        self, energies: Tensor, gradients: Tensor, index: Tensor, more: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the student's energies and input gradients at the images with these indices, and then at those of `more`,
        which the teacher has yet to see."""
        wanted, slopes = self.energies[index], self.gradients[index]
        if len(more):
            found = energy_gradient(self.teacher, more)
            wanted, slopes = torch.cat([wanted, found[0]]), torch.cat([slopes, found[1]])
        energy_error = (energies - wanted).square().mean() / self.energies.var()
        score_error = (gradients - slopes).square().mean() / self.gradients.square().mean()
        return self.p.energy_weight * energy_error + self.p.score_weight * score_error, {
            "energy_error": energy_error,
            "score_error": score_error,
        }
