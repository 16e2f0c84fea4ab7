"""Measure how long a network takes here, and how much memory, by a few real steps of each kind of training."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lowenergy import networks
from lowenergy.base import memory
from lowenergy.base.device import autocast, fastest, has_bfloat16
from lowenergy.base.errors import UserError
from lowenergy.base.precision import Precision
from lowenergy.energies import energy_gradient, energy_of, flow_loss
from lowenergy.networks import Spec

STEPS = 3  # timed, after one that warms up
BATCH = 32


@dataclass(frozen=True)
class Cost:
    """What one network takes for a batch of BATCH images: seconds in a process with its share of the threads, while as
    many others run as stages run at a time."""

    own: float  # a step of its own loss: cross-entropy, or the flow
    matching: float  # a step towards a teacher of the same size
    asked: float  # to compute logits, or for a Langevin step
    memory: int  # bytes that the process held at most


def precision() -> Precision:
    """The precision of training here: bfloat16 if the device has it, which is about twice as fast."""
    return "bf16-mixed" if has_bfloat16(fastest().type) else "32-true"


def measure(specs: Sequence[Spec], threads: int, jobs: int) -> dict[Spec, Cost]:
    """Measure each network in a process of its own, as many at a time as stages will run: they share caches and memory.

    Raises:
        UserError: the system ended a process, most often for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            return dict(zip(specs, pool.map(_measured, specs, [threads] * len(specs)), strict=True))
    except BrokenProcessPool:
        size = max(spec.image_size for spec in specs)
        raise UserError(
            f"a step with images of {size} pixels was ended by the system, for want of memory most often; give --size"
        ) from None


def _measured(spec: Spec, threads: int) -> Cost:
    torch.set_num_threads(threads)
    device = fastest()
    network = networks.build(spec, seed=0).to(device)
    network.to(memory_format=networks.training_format(network))
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand((BATCH, *spec.input_shape), generator=generator, device=device) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def trained(loss: Callable[[], Tensor]) -> float:
        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return _seconds(step)

    if spec.head is None:
        labels = torch.arange(BATCH, device=device) % spec.outputs

        def logits() -> Tensor:
            with autocast(device.type, precision()):
                return network(images)

        own = trained(lambda: F.cross_entropy(logits().float(), labels))
        answered = _seconds(logits)
        matching = own + answered
    else:
        energy = energy_of(network, spec.head, precision())
        own = trained(lambda: flow_loss(energy, images, generator))
        # Matching and sampling use float32, even if training uses less.
        whole = energy_of(network, spec.head, "32-true")
        matching = own if precision() == "32-true" else trained(lambda: flow_loss(whole, images, generator))
        frozen = energy_of(network, spec.head, "32-true", frozen=True)
        answered = _seconds(lambda: energy_gradient(frozen, images))
    return Cost(own, matching, answered, memory.peak())


def _settle() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(step: Callable[[], Any]) -> float:
    step()
    _settle()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    _settle()
    return (time.perf_counter() - started) / STEPS
