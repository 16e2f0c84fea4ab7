"""CUDA graphs: the work of a GPU for a Langevin step, recorded once and then launched in one go.

A step of a small network is hundreds of operations, which a GPU carries out faster than a processor can launch them.
"""

import torch
from torch import Tensor

from lowenergy.energies import Energy, ExplicitEnergy, energy_gradient


class RecordedEnergy(ExplicitEnergy):
    """An energy that records its input gradient at the first call with images of a shape, and replays it from then on.

    Args:
        energy: its weights take part as constants and stay where they are in memory; their values may change.
    """

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, Tensor]]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        return self.energy(images)

    def gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The energies and their input gradients; the next call overwrites both."""
        if images.shape not in self.recorded:
            self.recorded[images.shape] = self._record(images.clone())
        graph, given, results = self.recorded[images.shape]
        given.copy_(images)
        graph.replay()
        return results

    def _record(self, given: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, Tensor]]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # in the first calls, libraries choose algorithms and take memory
                energy_gradient(self.energy, given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = energy_gradient(self.energy, given)
        return graph, given, results
