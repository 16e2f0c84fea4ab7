"""Sampling: Langevin steps down the energy, from uniform noise."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from lowenergy.base import UserError
from lowenergy.base.team import ALONE, Team
from lowenergy.data import at_a_time
from lowenergy.energies.energy import Energy, energy_gradient
from lowenergy.params import Sampler

BATCH = 500  # chains at a time: more take more memory and save no time


def uniform_noise(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform images in [-1, 1], where chains start."""
    return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1


def langevin_step(images: Tensor, gradient: Tensor, noise: Tensor, constants: Sampler) -> Tensor:
    """Where images go next: clamp(x - step_size * clamp(∇E(x), ±gradient_clamp) + noise * N(0, 1), [-1, 1]).

    Args:
        images, gradient, noise: (batch, c, h, w): x, the gradient of the energy at x, and standard normal noise.
    """
    downhill = gradient.clamp(-constants.gradient_clamp, constants.gradient_clamp)
    moved = torch.sub(images, downhill, alpha=constants.step_size)
    return torch.add(moved, noise, alpha=constants.noise).clamp(-1, 1)


def langevin_chain(
    energy: Energy, images: Tensor, steps: int, constants: Sampler, generator: Generator, team: Team = ALONE
) -> Iterator[Tensor]:
    """Yield the `steps` states after `images`, (batch, c, h, w) in [-1, 1], a chain per image; `images` stays as it is.

    Every state is the same tensor, overwritten by the next step: copy what you want to keep.

    Args:
        team: the processes that share the chains; each gets the states of its own chains.
    """
    noise, images = torch.empty_like(images), team.own_rows(images).clone()
    for _ in range(steps):
        _, gradient = energy_gradient(energy, images)
        images.copy_(langevin_step(images, gradient, team.own_rows(noise.normal_(generator=generator)), constants))
        yield images


def sample(
    energy: Energy,
    shape: tuple[int, int, int],
    count: int,
    *,
    steps: int,
    constants: Sampler,
    generator: Generator,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    keep: Callable[[dict[str, Any]], None] = lambda state: None,
    state: Mapping[str, Any] | None = None,
) -> Tensor:
    """Draw images from noise, `batch_size` chains at a time so that memory stays bounded.

    Args:
        batch_size: None for BATCH, or for fewer if images are large.
        keep: called after every step with everything needed to go on from there.
        state: what an earlier call gave to `keep`; the images are then those that it would have drawn.
    Returns:
        (count, *shape) in [-1, 1], on the generator's device.
    Raises:
        UserError: the energy's gradient is NaN where some chains went.
    """
    samples = torch.empty(count, *shape, device=generator.device)
    batch_size = batch_size or at_a_time(torch.empty(1, *shape, device="meta"), BATCH)
    done, step, images = 0, 0, torch.empty(0)
    if state is not None:
        done, step, images = len(state["samples"]), state["step"], state["images"]
        samples[:done] = state["samples"]
        generator.set_state(state["generator"].cpu())
    while done < count:
        if not len(images):
            step, images = 0, uniform_noise((min(batch_size, count - done), *shape), generator)
        for images in langevin_chain(energy, images, steps - step, constants, generator):  # noqa: B020 keep the last
            step += 1
            progress(len(images))
            keep({"samples": samples[:done], "images": images, "step": step, "generator": generator.get_state()})
        if lost := int(images.isnan().flatten(1).any(1).sum()):  # as bytes, NaN would be black
            raise UserError(
                f"{lost} of {len(images)} chains went where the energy's gradient is NaN; give a smaller step_size or "
                "fewer steps, or see which of its operations has no slope there"
            )
        samples[done : done + len(images)] = images
        done, images = done + len(images), images[:0]
    return samples


def steps_in(state: Mapping[str, Any] | None, steps: int) -> int:
    """How many steps of single chains `sample` had made when it kept this state."""
    return len(state["samples"]) * steps + len(state["images"]) * state["step"] if state else 0
