"""The replay buffer of persistent contrastive divergence."""

import torch
from torch import Generator, Tensor

from lowenergy.energies.langevin import uniform_noise


class ReplayBuffer:
    """Chains that persist from one update of the weights to the next (Tieleman 2008, Du & Mordatch 2019)."""

    def __init__(self, size: int, shape: tuple[int, int, int], generator: Generator) -> None:
        self.generator = generator
        self.images = uniform_noise((size, *shape), generator)  # (size, c, h, w), one preallocated tensor
        self.ages = torch.zeros(size, dtype=torch.long, device=generator.device)  # Langevin steps since noise

    def draw(self, count: int, fresh_fraction: float) -> tuple[Tensor, Tensor]:
        """Draw `count` chains, with their places; each restarts from noise with probability `fresh_fraction`."""
        device = self.images.device
        # Without repetition: two chains from one place would race to be put back.
        index = torch.randperm(len(self.images), generator=self.generator, device=device)[:count]
        fresh = torch.rand(len(index), generator=self.generator, device=device) < fresh_fraction
        noise = uniform_noise((len(index), *self.images.shape[1:]), self.generator)
        self.ages[index] = self.ages[index].masked_fill(fresh, 0)
        return torch.where(fresh[:, None, None, None], noise, self.images[index]), index

    def put(self, index: Tensor, images: Tensor, steps: int) -> Tensor:
        """Put chains back after `steps` more Langevin steps; return their ages, (len(index),)."""
        self.images[index] = images
        self.ages[index] += steps
        return self.ages[index]

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images, "ages": self.ages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.images.copy_(state["images"])
        self.ages.copy_(state["ages"])
