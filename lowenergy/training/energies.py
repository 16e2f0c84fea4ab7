"""Train energies: the teacher by flow and chains, compressed ones towards it, and these again by their own loss."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

from lowenergy.base.precision import Precision
from lowenergy.base.progress import Progress
from lowenergy.data import Batches, Split, Splits, at_a_time, augment, spaced, to_float, write_grid
from lowenergy.energies import (
    HEADS,
    EnergyMatch,
    OwnChains,
    ReplayBuffer,
    contrastive_loss,
    energy_of,
    flow_loss,
    langevin_chain,
    logits_and_gradient,
    probe_images,
    silent_flow,
    uniform_noise,
)
from lowenergy.networks import Network, spec_of, training_format
from lowenergy.params import EnergyKind, EnergyTraining, Retrain, StudentRetrain
from lowenergy.storage import dense, save
from lowenergy.training.graphs import RecordedEnergy
from lowenergy.training.loop import DivergedError, Logs, fit
from lowenergy.training.run import Run

OWN = 128  # images on which a network's own loss judges its weights
# When training counts as diverged, see guard below. Healthy energies stay in the hundreds, healthy chains above half of
# the data's spread; both bounds are far from that, because going back costs time.
LARGEST_ENERGY = 1e5
SMALLEST_SPREAD = 0.05
FROM_NOISE = 64  # chains started anew now and then: those in the buffer may live on where no new one would get to
LOOKED_AFTER = 12  # every so many points of the curves
RECOVERIES = 5

Also = Callable[
    [Tensor, Tensor, float], tuple[Tensor, Logs]
]  # (logits of real images, labels, how much of the training is done) -> a further loss, what to plot


@dataclass(frozen=True)
class _Course:
    """How one training of an energy differs from another."""

    part: str  # of the run
    epochs: int
    rate: Callable[[int, int], float]  # (step, steps) -> factor of the learning rate
    chains_from: float  # fraction of the steps that train on the flow alone
    precision: Precision
    fresh: bool  # the network knows little at the start


def fit_energy(network: Network, data: Split, p: EnergyTraining, run: Run, also: Also | None = None) -> None:
    """Train a new energy in place by flow regression, persistent contrastive divergence, or both.

    When chains take part, each step advances some from the replay buffer by p.chain_steps Langevin steps, then lowers
    the energy of real images against theirs. The file .checkpoints/<name>.chains.png shows what chains look like.

    Args:
        also: (logits of the real images, their labels, the fraction of the training that is done, 1 for a network that
            is only mended) -> a further loss on the same forward pass (JEM's), and what to plot.
    Raises:
        DivergedError: RECOVERIES did not help; if the run is watched, the last healthy network is saved beside the
            checkpoints.
    """

    def each_epoch(step: int, steps: int) -> float:
        return p.lr_decay ** (step * p.epochs // steps)

    _fit(network, data, p, run, also, _Course("fit", p.epochs, each_epoch, p.contrastive_from, p.precision, True))


def mend_energy(
    network: Network, data: Split, p: EnergyTraining, run: Run, retrain: Retrain, also: Also | None = None
) -> None:
    """Train as fit_energy does, but a trained energy that was changed: chains join in at once, the rate falls to 0."""
    _fit(network, data, p, run, also, _Course("retrain", retrain.epochs, _falling(retrain), 0.0, p.precision, False))


def fit_student_energy(
    network: Network, data: Split, p: EnergyTraining, run: Run, retrain: StudentRetrain, also: Also | None = None
) -> None:
    """Train as fit_energy does, but an energy trained towards another, which may know little; the rate falls to 0."""
    late, precision = retrain.contrastive_from, retrain.precision
    _fit(network, data, p, run, also, _Course("retrain", retrain.epochs, _falling(retrain), late, precision, True))


def _falling(retrain: Retrain) -> Callable[[int, int], float]:
    return lambda step, steps: retrain.lr * (1 - step / steps)


def _fit(network: Network, data: Split, p: EnergyTraining, run: Run, also: Also | None, course: _Course) -> None:
    network.to(run.device).to(memory_format=training_format(network))
    data = data.to(run.device)
    head = network.spec.head
    assert head is not None, "an energy needs a head"
    batches = Batches(len(data), p.batch_size, run.seed)
    steps = course.epochs * batches.per_epoch
    chains_from = course.chains_from * steps if p.flow_weight else 0  # until then there is only the flow
    buffer = ReplayBuffer(p.buffer_size, network.spec.input_shape, run.generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=p.lr, betas=(p.beta1, 0.999))
    schedule = LambdaLR(optimizer, lambda step: course.rate(step, steps))
    of_constants = energy_of(network, head, course.precision, frozen=True)
    if course.fresh and run.device.type == "cuda" and run.team.size == 1:  # rounded ones look at their values
        of_constants = RecordedEnergy(of_constants)
    some = to_float(data.take(spaced(len(data), 1000)).images)
    pixel_spread = some.std(0).mean()

    def loss(network: nn.Module, step: int) -> tuple[Tensor, Logs]:
        batch = data.take(batches(step))
        images = augment(to_float(batch.images), p.crop_padding, p.flip, run.generator)
        images = images + p.data_noise * torch.randn(images.shape, generator=run.generator, device=run.device)
        chains, sampled = images[:0], torch.zeros(0, dtype=torch.bool, device=run.device)
        if p.contrastive_weight and step >= chains_from:
            chains, places = buffer.draw(len(batch), p.fresh_fraction)
            *_, own = langevin_chain(of_constants, chains, p.chain_steps, p.sampler, run.generator, run.team)
            chains = run.team.gather(own, len(chains))
            sampled = buffer.put(places, chains, p.chain_steps) >= p.burn_in
        # Before chains join in, an EBM's energies are only watched.
        with run.autocast(course.precision), torch.set_grad_enabled(also is not None or len(chains) > 0):
            logits = network(run.team.own_rows(torch.cat([images, chains]))).float()
        logits = run.team.gather(logits, len(images) + len(chains))
        energies = HEADS[head](logits)
        real, fake = energies[: len(batch)], energies[len(batch) :][sampled]
        value = torch.zeros((), device=run.device)
        logs: dict[str, Tensor | float] = {"energy_real": real.mean()}
        if len(fake) > len(batch) / 4:  # fewer chains, at the start, say nothing
            value = p.contrastive_weight * contrastive_loss(real, fake, p.regularization)
            logs |= {"energy_chains": fake.mean(), "spread": chains[sampled].std(0).mean() / pixel_spread}
        if p.flow_weight:
            with run.autocast(course.precision):
                flow = flow_loss(energy_of(network, head), images, run.generator, run.team, p.flow_rest)
            value, logs = value + p.flow_weight * flow, logs | {"flow": flow}
        if also is not None:
            more, more_logs = also(logits[: len(batch)], batch.labels, step / steps if course.fresh else 1.0)
            value, logs = value + more, logs | dict(more_logs)
        return value, logs

    def show(_: nn.Module) -> Logs:
        if run.watched:
            write_grid(buffer.images[:64].cpu(), run.checkpoint("chains").with_suffix(".png"), columns=16)
        return {}

    def guard(point: Mapping[str, float]) -> str | None:
        for key in ("energy_real", "energy_chains"):
            if abs(point.get(key, 0.0)) > LARGEST_ENERGY:
                return f"{key} {point[key]:.3g} is beyond {LARGEST_ENERGY:g}"
        if point.get("spread", 1.0) < SMALLEST_SPREAD:
            return f"the chains have collapsed: their spread is {point['spread']:.3g} of the data's"
        if "spread" in point and next(points_with_chains) % LOOKED_AFTER == 0 and (spread := anew()) < SMALLEST_SPREAD:
            return f"chains from noise all end alike: their spread is {spread:.3g} of the data's"
        return None

    points_with_chains = itertools.count(1)

    def anew() -> float:
        """The spread of new chains, as long as those that the model's samples take, relative to the data's."""
        apart = torch.Generator(run.device).manual_seed(run.seed)  # the training's random numbers stay as they are
        start = uniform_noise((FROM_NOISE, *network.spec.input_shape), apart)
        *_, ends = langevin_chain(of_constants, start, p.life, p.sampler, apart)
        return float(ends.std(0).mean() / pixel_spread)

    try:
        fit(
            network,
            loss,
            steps=steps,
            optimizer=optimizer,
            schedule=schedule,
            run=run,
            part=course.part,
            gradient_norm=p.gradient_norm,
            weight_average=p.weight_average,
            state={"buffer": buffer},
            measure=show,
            guard=guard,
            recoveries=RECOVERIES,
            silent={"flow": silent_flow(some, p.flow_rest)} if p.flow_weight else {},
        )
    except DivergedError as error:
        # A coded or rounded network cannot be saved yet, and nobody would find the file of an unwatched run.
        if not run.watched or any(map(parametrize.is_parametrized, network.modules())):
            raise
        path = run.checkpoint("last-healthy").with_suffix(".safetensors")
        provenance = {"stage": "teacher", "diverged": True, "sampler": p.recorded_sampler}
        save(dense(network.cpu(), run.kind), path, provenance)
        raise DivergedError(f"{error}; the network is in {path}") from None
    network.to(memory_format=torch.contiguous_format)


class EnergyObjective:
    """Match the teacher's energies and scores on data, around it, along the teacher's chains and the network's own."""

    # Energies of hundreds must be right to fractions, and their slopes even more so.
    precision: Precision = "32-true"

    def __init__(self, teacher: nn.Module, splits: Splits, p: EnergyKind, run: Run, also: Also | None = None) -> None:
        self.teacher, self.splits, self.p, self.also = teacher.to(run.device).eval(), splits, p, also
        self.head, self.team, self.name = spec_of(teacher).head or "mean", run.team, run.name
        self.energy = energy_of(self.teacher, self.head)
        self.generator = torch.Generator(run.device).manual_seed(run.seed)
        self.own = OwnChains(p.matching, p.train.sampler, splits.input_shape, run.generator)
        self.state = {"own": self.own}

    @property
    def silent(self) -> dict[str, float]:
        # Both errors are relative to the teacher's spread, so a network without an answer has 1.
        return {"score_error": 1.0} if self.p.matching.score_weight else {"energy_error": 1.0}

    @cached_property
    def inputs(self) -> Tensor:  # on demand: the chains take longer than much that does not need them
        from lowenergy.runtimes import sampling  # imported here: the teacher's training must not depend on it

        p = self.p.matching
        of_chains = sampling.fastest(
            dense(cast(Network, self.teacher), ""), self.teacher, images=p.chains * p.chain_steps
        )
        progress = Progress(f"{self.name}: the teacher's chains", p.chains * p.chain_steps)
        return probe_images(of_chains, self.splits.train.images, p, self.p.train.sampler, self.generator, progress)

    @cached_property
    def match(self) -> EnergyMatch:
        return EnergyMatch(self.energy, self.inputs, self.p.matching)

    def matched(self, network: nn.Module, index: Tensor) -> tuple[Tensor, Tensor, Logs]:
        """The logits at the inputs with these indices, and how far energies and scores are from the teacher's."""
        own, team = self.own.images, self.team
        images = torch.cat([self.inputs[index], own])
        own_results = logits_and_gradient(network, self.head, team.own_rows(images))
        logits, gradients = (team.gather(part, len(images)) for part in own_results)
        loss, logs = self.match.loss(HEADS[self.head](logits), gradients, index, own)
        self.own.step(gradients)
        return logits[: len(index)], loss, logs

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        _, loss, logs = self.matched(network, index)
        return loss, logs

    def own_loss(self, network: Network, run: Run) -> Tensor:
        """The flow loss (and JEM's), even for an energy trained without flow: it says which weights the slopes need."""
        split = self.splits.train
        some = max(1, at_a_time(split.images, 4 * OWN) // 4)  # a second derivative takes about four times as much
        index = torch.randint(len(split), (some,), generator=run.generator, device=run.device)
        batch = split.take(index).to(run.device)
        images = to_float(batch.images)
        flow = flow_loss(energy_of(network, self.head), images, run.generator, rest=self.p.train.flow_rest)
        return flow if self.also is None else flow + self.also(network(images), batch.labels, 1.0)[0]

    def retrain(self, network: Network, p: Retrain, run: Run) -> None:
        split, own = self.splits.train, self.p.train
        if isinstance(p, StudentRetrain):
            fit_student_energy(network, split, own, run, p, self.also)
        else:
            mend_energy(network, split, own, run, p, self.also)
