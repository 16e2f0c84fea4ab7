"""The training loop every stage shares: devices, checkpoints, curves. What is minimised comes from outside.

    run = Run("ebm/teacher", seed=0, inputs=[section, splits])
    fit(network, loss, steps=1000, optimizer=..., run=run)

`torchrun --nproc-per-node N -m stages.teacher ebm` trains data-parallel: every process draws its own batches and
chains, gradients are averaged, process 0 writes.
"""

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from dvclive import Live
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from lowenergy import artifact, energy, models, pictures
from lowenergy.data import Batches, Split, to_float
from lowenergy.errors import UserError
from lowenergy.params import EnergyTraining, Finetune, Precision, Retrain

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill
PRINT_SECONDS = 5.0
CAUTION = 0.3  # factor of the learning rate after training diverged

Logs = Mapping[str, Tensor | float]
Loss = Callable[[nn.Module, int], tuple[Tensor, Logs]]  # (network, step) -> what to minimise, what to plot


class DivergedError(UserError):
    """Training left its bounds too often; the message names the stage, the step, and what was out of bounds."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Run:
    """Where one stage's training happens and leaves its traces.

    Args:
        name: target and branch, such as "ebm/teacher"; curves go to plots/curves/<name>.
        inputs: whatever decides the outcome (params sections, data, networks); a checkpoint left by a killed run is
            only taken up again if these and lowenergy's own code are the same.
    """

    def __init__(self, name: str, seed: int, inputs: Sequence[Any], *, root: str | Path = ".") -> None:
        self.name, self.seed = name, seed
        self.curves = Path(root) / "plots" / "curves" / name
        self.curves.mkdir(parents=True, exist_ok=True)  # an output of the stage, even if nothing is trained
        self.checkpoints = Path(root) / ".checkpoints"
        self.fingerprint = _fingerprint([name, seed, *inputs])
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.fabric = Fabric(
            accelerator="auto",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # set by torchrun
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        )
        self.fabric.launch()
        self.device = self.fabric.device
        # Every process draws its own batches and noise.
        self.own_seed = seed + 7919 * self.fabric.global_rank
        self.generator = torch.Generator(self.device).manual_seed(self.own_seed)
        self.recoveries = 0  # how often training diverged and went back

    def autocast(self, precision: Precision) -> torch.autocast:
        """Not Fabric's, which knows one precision for all of a run: matching and retraining each have their own."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    def checkpoint(self, part: str) -> Path:
        return self.checkpoints / f"{self.name}.{part}.pt"


def _fingerprint(inputs: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Tensor):
            digest.update(item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(item).encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def fit(
    network: nn.Module,
    loss: Loss,
    *,
    steps: int,
    optimizer: Optimizer,
    schedule: LRScheduler,
    run: Run,
    part: str = "fit",
    gradient_norm: float | None = None,
    weight_average: float = 0.0,
    state: Mapping[str, Stateful] | None = None,
    measure: Callable[[nn.Module], Logs] | None = None,
    points: int = 50,
    guard: Callable[[Mapping[str, float]], str | None] = lambda point: None,
    recoveries: int = 0,
) -> None:
    """Minimise `loss` over the weights of `network` in place; leaves it in evaluation mode on the CPU.

    At each of the curve's points the run is found healthy, or has diverged: a value is not finite, or `guard` objects.
    Then it goes back to the last point that was followed by a healthy one, and on from there at CAUTION times the
    learning rate.

    Args:
        schedule: advanced after every step.
        part: of the run, where it fits more than once: each has its own checkpoint, and curves if not the first.
        gradient_norm: clip the weights' gradient to this norm.
        weight_average: decay of an exponential moving average of the weights, which becomes the result; 0 for none.
        state: what must survive a kill besides weights, optimizer and generator, such as a replay buffer.
        measure: further values to plot, computed at each of the curve's points.
        points: of the curves; each is the mean since the point before.
        guard: what is wrong with the values of a point; None for nothing.
        recoveries: go back at most so many times.
    Raises:
        DivergedError: once more than that; `network` is then as it was at the last healthy point.
    """
    fabric = run.fabric
    wrapped, optimizer = fabric.setup(network, optimizer)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule, **(state or {})}
    average = AveragedModel(network, multi_avg_fn=_moving_average(weight_average)) if weight_average else None
    if average is not None:
        parts["average"] = average
    every = max(1, steps // points)
    history: list[tuple[int, dict[str, float]]] = []
    logged: dict[str, list[Tensor]] = {}
    healthy = kept(run, part)
    if healthy is None:
        healthy = _snapshot(run, 0, parts, history)
    else:
        fabric.print(f"{run.name}: resumed at step {healthy['step']}", flush=True)
    step = first = _restore(run, healthy, parts, history)
    latest = healthy  # not yet known to be healthy: its last update shows in the next point
    saved = printed = started = time.monotonic()
    while step < steps:
        wrapped.train()
        value, logs = loss(wrapped, step)
        optimizer.zero_grad()
        fabric.backward(value)
        if gradient_norm is not None:
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=gradient_norm, error_if_nonfinite=False)
            assert norm is not None
            logs = {**logs, "gradient_norm": norm}
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(network)
        for key, log in {"loss": value, **logs}.items():
            logged.setdefault(key, []).append(torch.as_tensor(log, device=run.device).detach().float())
        step += 1
        if step % every and step < steps:
            continue
        point = {key: float(torch.stack(values).mean()) for key, values in logged.items()}
        logged = {}
        if wrong := _not_finite(point, network) or guard(point):
            _recover(run, step, wrong, healthy, parts, history, recoveries)
            step, latest = healthy["step"], healthy
            continue
        if measure is not None:
            point |= {key: float(log) for key, log in measure(network.eval()).items()}
        history.append((step, point))
        healthy, latest = latest, _snapshot(run, step, parts, history)
        now = time.monotonic()
        if now - printed > PRINT_SECONDS or step == steps:
            left = (now - started) / max(1, step - first) * (steps - step)
            shown = "  ".join(f"{key} {log:.4g}" for key, log in point.items())
            fabric.print(f"{run.name}  step {step}/{steps}  {shown}  {left:.0f} s left", flush=True)
            printed = now
        if now - saved > CHECKPOINT_SECONDS and fabric.is_global_zero:
            keep(run, part, healthy)
            saved = now
    if fabric.is_global_zero:
        _plot(run.curves if part == "fit" else run.curves / part, history)
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    network.eval()  # an exported graph's returns nothing
    network.cpu()


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        # A younger average forgets faster: it starts at random weights.
        forget = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, forget)

    return update


def _not_finite(point: Mapping[str, float], network: nn.Module) -> str | None:
    bad = [key for key, value in point.items() if not math.isfinite(value)]
    bad += [name for name, weight in network.named_parameters() if not weight.isfinite().all()][:1]
    return f"{', '.join(bad)} not finite" if bad else None


def _snapshot(run: Run, step: int, parts: Mapping[str, Any], history: list[Any]) -> dict[str, Any]:
    """All it takes to go on from here, independent of what happens next."""
    content = {
        "step": step,
        "recoveries": run.recoveries,
        "generator": run.generator.get_state(),
        "history": list(history),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    return copy.deepcopy(content)


def _restore(run: Run, content: Mapping[str, Any], parts: Mapping[str, Any], history: list[Any]) -> int:
    """Go back to a snapshot; its step."""
    for name, part in parts.items():
        part.load_state_dict(copy.deepcopy(content["parts"][name]))
    run.generator.set_state(content["generator"].cpu())
    run.recoveries = content["recoveries"]
    history[:] = [(step, point) for step, point in content["history"]]
    return int(content["step"])


def _recover(
    run: Run,
    step: int,
    wrong: str,
    healthy: dict[str, Any],
    parts: Mapping[str, Any],
    history: list[Any],
    allowed: int,
) -> None:
    """Go back to the last healthy snapshot at a lower learning rate, which that snapshot keeps from now on."""
    _restore(run, healthy, parts, history)
    if run.recoveries == allowed:
        raise DivergedError(
            f"{run.name}: step {step}: {wrong}, for the {allowed + 1}. time; the last healthy state is that of step "
            f"{healthy['step']}. Lower the learning rate"
        )
    run.recoveries += 1
    schedule, optimizer = parts["schedule"], parts["optimizer"]
    schedule.base_lrs = [CAUTION * lr for lr in schedule.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] *= CAUTION
    run.fabric.print(
        f"{run.name}: step {step}: {wrong}; back to step {healthy['step']}, learning rate times {CAUTION} "
        f"({run.recoveries} of {allowed} recoveries)",
        flush=True,
    )
    healthy.update(_snapshot(run, healthy["step"], parts, history))


def keep(run: Run, part: str, content: Mapping[str, Any]) -> None:
    """Put what a killed run needs to go on into its checkpoint `part`, atomically."""
    path = run.checkpoint(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save({"fingerprint": run.fingerprint, **content}, unfinished)
    unfinished.replace(path)


def kept(run: Run, part: str) -> dict[str, Any] | None:
    """What a killed run with the same inputs kept in its checkpoint `part`; None without one."""
    path = run.checkpoint(part)
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location=run.device, weights_only=True)
    except Exception as error:  # a damaged checkpoint costs time, not the run
        run.fabric.print(f"{run.name}: {path} is unreadable ({error}); starting anew")
        return None
    if content["fingerprint"] != run.fingerprint:
        run.fabric.print(f"{run.name}: {path} belongs to other params, data or code; starting anew")
        return None
    return content


def finished(run: Run) -> None:
    """Delete the checkpoints: the stage's output is on disk."""
    for path in run.checkpoint("*").parent.glob(run.checkpoint("*").name):
        path.unlink()


def _plot(directory: Path, history: list[tuple[int, dict[str, float]]]) -> None:
    # Written in one go, not while training: rows after the last checkpoint of a killed run would stay in the file.
    with Live(str(directory), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for step, point in history:
            live.step = step
            for key, value in point.items():
                live.log_metric(key, value)


def fit_energy(
    network: models.Network,
    data: Split,
    p: EnergyTraining,
    run: Run,
    also: Callable[[Tensor, Tensor], tuple[Tensor, Logs]] | None = None,
    retrain: Retrain | None = None,
) -> None:
    """Train an energy in place by flow regression, persistent contrastive divergence, or both.

    Where chains take part, each step advances some from the replay buffer by p.chain_steps Langevin steps, then lowers
    the energy of real images against theirs. How chains look shows in .checkpoints/<name>.chains.png.

    Args:
        also: (logits of the real images, their labels) -> a further loss on the same forward pass (JEM's).
        retrain: of a trained network that was changed: other epochs, and a rate that falls to 0.
    Raises:
        DivergedError: p.guard's recoveries did not help; the last healthy network is saved beside the checkpoints.
    """
    network.to(run.device).to(memory_format=torch.channels_last)
    data = data.to(run.device)
    head = network.spec.head
    assert head is not None, "an energy needs a head"
    batches = Batches(len(data), p.batch_size, run.own_seed)
    steps = (retrain or p).epochs * batches.per_epoch
    chains_from = (retrain or p).contrastive_from * steps if p.flow_weight else 0  # until then there is only the flow
    precision = (retrain or p).precision
    buffer = energy.ReplayBuffer(p.buffer_size, network.spec.input_shape, run.generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=p.lr, betas=(p.beta1, 0.999))
    schedule = LambdaLR(
        optimizer,
        lambda step: retrain.lr * (1 - step / steps) if retrain else p.lr_decay ** (step // batches.per_epoch),
    )
    of_constants = energy.energy_of(network, head, frozen=True)
    pixel_spread = to_float(data.images[:1000]).std(0).mean()

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Logs]:
        batch = data.take(batches(step).to(run.device))
        images = to_float(batch.images)
        images = images + p.data_noise * torch.randn(images.shape, generator=run.generator, device=run.device)
        chains, sampled = images[:0], torch.zeros(0, dtype=torch.bool, device=run.device)
        if p.contrastive_weight and step >= chains_from:
            chains, places = buffer.draw(len(batch), p.fresh_fraction)
            # On the bare network, here and below: Fabric forbids to differentiate through its wrapper.
            with run.autocast(precision):
                *_, chains = energy.langevin_chain(of_constants, chains, p.chain_steps, p.langevin, run.generator)
            sampled = buffer.put(places, chains, p.chain_steps) >= p.burn_in
        with run.autocast(precision):
            logits = wrapped(torch.cat([images, chains])).float()
        energies = energy.HEADS[head](logits)
        real, fake = energies[: len(batch)], energies[len(batch) :][sampled]
        value = torch.zeros((), device=run.device)
        logs: dict[str, Tensor | float] = {"energy_real": real.mean()}
        if len(fake) > len(batch) / 4:  # fewer, at the start, say nothing
            value = p.contrastive_weight * energy.contrastive_loss(real, fake, p.regularization)
            logs |= {"energy_chains": fake.mean(), "spread": chains[sampled].std(0).mean() / pixel_spread}
        if p.flow_weight:
            with run.autocast(precision):
                flow = energy.flow_loss(energy.energy_of(network, head), images, run.generator)
            value, logs = value + p.flow_weight * flow, logs | {"flow": flow}
        if also is not None:
            more, more_logs = also(logits[: len(batch)], batch.labels)
            value, logs = value + more, logs | dict(more_logs)
        return value, logs

    def show(_: nn.Module) -> Logs:
        pictures.write_grid(buffer.images[:64].cpu(), run.checkpoint("chains").with_suffix(".png"), columns=16)
        return {}

    def guard(point: Mapping[str, float]) -> str | None:
        for key in ("energy_real", "energy_chains"):
            if abs(point.get(key, 0.0)) > p.guard.energy:
                return f"{key} {point[key]:.3g} is beyond {p.guard.energy:g}"
        if point.get("spread", 1.0) < p.guard.spread:
            return f"the chains have collapsed: their spread is {point['spread']:.3g} of the data's"
        return None

    try:
        fit(
            network,
            loss,
            steps=steps,
            optimizer=optimizer,
            schedule=schedule,
            run=run,
            part="retrain" if retrain else "fit",
            gradient_norm=p.gradient_norm,
            weight_average=p.weight_average,
            state={"buffer": buffer},
            measure=show,
            guard=guard,
            recoveries=p.guard.recoveries,
        )
    except DivergedError as error:
        path = run.checkpoint("last-healthy").with_suffix(".safetensors")
        provenance = {"stage": "teacher", "diverged": True, "sampler": p.sampler}
        artifact.save(artifact.dense(network.cpu(), run.name.split("/")[0]), path, provenance)
        raise DivergedError(f"{error}; the network is in {path}") from None
    network.to(memory_format=torch.contiguous_format)


class Objective(Protocol):
    """What a compressed network is pulled towards; each target has its own."""

    @property
    def inputs(self) -> Tensor:
        """(n, c, h, w) float32 in [-1, 1]: where the network must behave like its teacher."""

    state: Mapping[str, Stateful]  # what of it changes while a network is pulled

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        """How far `network` is from the teacher at the inputs with these indices."""

    def own_loss(self, network: models.Network, run: Run) -> Tensor:
        """The target's own loss on a random batch of training images."""

    def retrain(self, network: models.Network, p: Retrain, run: Run) -> None:
        """Train `network` in place by the target's own loss, without the teacher."""


def finetune(
    network: nn.Module,
    objective: Objective,
    p: Finetune,
    run: Run,
    part: str = "fit",
    share: float = 1.0,
) -> None:
    """Pull the parameters of `network` to the teacher behind `objective`: Adam, one-cycle learning rate.

    Args:
        part: see fit.
        share: of the epochs, where they are spent in parts.
    """
    if not p.epochs:
        network.eval()
        return
    batches = Batches(len(objective.inputs), p.batch_size, run.own_seed)
    steps = round(share * p.epochs * batches.per_epoch)
    network.to(run.device)
    optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], lr=p.lr)
    schedule = OneCycleLR(optimizer, p.lr, total_steps=steps + 1)

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Logs]:
        with run.autocast(p.precision):
            return objective.loss(wrapped, batches(step).to(run.device), run)

    fit(
        network,
        loss,
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        run=run,
        part=part,
        state=objective.state,
    )


def mean_loss(network: nn.Module, objective: Objective, index: Tensor, run: Run, batch_size: int = 250) -> float:
    """The objective's loss at the inputs with these indices; the run's random numbers are left as they were."""
    state = run.generator.get_state()
    run.generator.manual_seed(run.seed)  # the same augmentation for every network that is compared
    with torch.no_grad():
        total = sum(len(part) * float(objective.loss(network, part, run)[0]) for part in index.split(batch_size))
    run.generator.set_state(state)
    return total / len(index)


def hold_zeros(network: nn.Module) -> None:
    """Let no gradient reach the weights that pruning removed: what is zero stays zero in all training to come."""
    for parameter in network.parameters():
        kept = parameter.detach() != 0
        if parameter.ndim > 1 and not kept.all():
            parameter.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient.device))
