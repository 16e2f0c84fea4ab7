"""The training loop every stage shares: devices, checkpoints, curves. What is minimised comes from outside.

    run = Run("ebm/teacher", seed=0, inputs=[section, splits])
    fit(network, loss, steps=1000, optimizer=..., run=run)

`torchrun --nproc-per-node N -m stages.teacher ebm` trains data-parallel: every process draws its own batches and
chains, gradients are averaged, process 0 writes.
"""

import hashlib
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

from lowenergy import energy, models
from lowenergy.data import Batches, Split, to_float
from lowenergy.errors import UserError
from lowenergy.params import EnergyTraining, Finetune

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill
PRINT_SECONDS = 5.0

Logs = Mapping[str, Tensor | float]
Loss = Callable[[nn.Module, int], tuple[Tensor, Logs]]  # (network, step) -> what to minimise, what to plot


class DivergedError(UserError):
    """The loss is no longer finite; the message names the stage and the step."""


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

    def __init__(
        self, name: str, seed: int, inputs: Sequence[Any], *, precision: str = "32-true", root: str | Path = "."
    ) -> None:
        self.name, self.seed = name, seed
        self.curves = Path(root) / "plots" / "curves" / name
        self.checkpoints = Path(root) / ".checkpoints"
        self.fingerprint = _fingerprint([name, seed, *inputs])
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.fabric = Fabric(
            accelerator="auto",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # set by torchrun
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
            precision=precision,  # type: ignore[arg-type]
        )
        self.fabric.launch()
        self.device = self.fabric.device
        # Every process draws its own batches and noise.
        self.own_seed = seed + 7919 * self.fabric.global_rank
        self.generator = torch.Generator(self.device).manual_seed(self.own_seed)

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
    gradient_norm: float | None = None,
    state: Mapping[str, Stateful] | None = None,
    measure: Callable[[nn.Module], Logs] | None = None,
    points: int = 50,
) -> None:
    """Minimise `loss` over the weights of `network` in place; leaves it in evaluation mode on the CPU.

    Args:
        schedule: advanced after every step.
        gradient_norm: clip the weights' gradient to this norm.
        state: what must survive a kill besides weights, optimizer and generator, such as a replay buffer.
        measure: further values to plot, computed at each of the curve's points.
        points: of the curves; each is the mean since the point before.
    Raises:
        DivergedError: the loss is not finite.
    """
    state = state or {}
    fabric = run.fabric
    wrapped, optimizer = fabric.setup(network, optimizer)
    every = max(1, steps // points)
    history: list[tuple[int, dict[str, float]]] = []
    sums: dict[str, Tensor] = {}
    first = _resume(run, network, optimizer, schedule, state, history)
    saved = printed = started = time.monotonic()
    for step in range(first, steps):
        wrapped.train()
        value, logs = loss(wrapped, step)
        optimizer.zero_grad()
        fabric.backward(value)
        if gradient_norm is not None:
            fabric.clip_gradients(wrapped, optimizer, max_norm=gradient_norm, error_if_nonfinite=False)
        optimizer.step()
        schedule.step()
        for key, log in {"loss": value, **logs}.items():
            sums[key] = sums.get(key, torch.zeros((), device=run.device)) + torch.as_tensor(log).detach()
        if (step + 1) % every and step + 1 < steps:
            continue
        count = (step % every) + 1
        point = {key: float(total) / count for key, total in sums.items()}
        sums = {}
        if not all(map(torch.isfinite, map(torch.tensor, point.values()))):
            raise DivergedError(f"{run.name}: step {step + 1}: {point}: not finite; lower the learning rate")
        if measure is not None:
            point |= {key: float(log) for key, log in measure(network.eval()).items()}
        history.append((step + 1, point))
        now = time.monotonic()
        if now - printed > PRINT_SECONDS or step + 1 == steps:
            left = (now - started) / (step + 1 - first) * (steps - step - 1)
            shown = "  ".join(f"{key} {log:.4g}" for key, log in point.items())
            fabric.print(f"{run.name}  step {step + 1}/{steps}  {shown}  {left:.0f} s left", flush=True)
            printed = now
        if now - saved > CHECKPOINT_SECONDS and fabric.is_global_zero:
            _save(run, step + 1, network, optimizer, schedule, state, history)
            saved = now
    if fabric.is_global_zero:
        _plot(run, history)
    network.eval().cpu()


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


def _save(
    run: Run,
    step: int,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    state: Mapping[str, Stateful],
    history: list[tuple[int, dict[str, float]]],
) -> None:
    content = {
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "generator": run.generator.get_state(),
        "state": {key: item.state_dict() for key, item in state.items()},
        "history": history,
    }
    keep(run, "fit", content)


def _resume(
    run: Run,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    state: Mapping[str, Stateful],
    history: list[tuple[int, dict[str, float]]],
) -> int:
    """Take up the checkpoint of a killed run with the same inputs; the step to go on from, 0 without one."""
    content = kept(run, "fit")
    if content is None:
        return 0
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    run.generator.set_state(content["generator"].cpu())
    for key, item in state.items():
        item.load_state_dict(content["state"][key])
    history.extend((step, point) for step, point in content["history"])
    run.fabric.print(f"{run.name}: resumed at step {content['step']}", flush=True)
    return int(content["step"])


def _plot(run: Run, history: list[tuple[int, dict[str, float]]]) -> None:
    # Written in one go, not while training: rows after the last checkpoint of a killed run would stay in the file.
    with Live(str(run.curves), save_dvc_exp=False, dvcyaml=None, report=None) as live:
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
) -> None:
    """Train an energy in place by persistent contrastive divergence.

    Each step advances chains from the replay buffer by p.chain_steps Langevin steps, then lowers the energy of real
    images against theirs.

    Args:
        also: (logits of the real images, their labels) -> a further loss on the same forward pass (JEM's).
    """
    network.to(run.device)
    data = data.to(run.device)
    head = network.spec.head
    assert head is not None, "an energy needs a head"
    batches = Batches(len(data), p.batch_size, run.own_seed)
    steps = p.epochs * batches.per_epoch
    buffer = energy.ReplayBuffer(p.buffer_size, network.spec.input_shape, run.generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=p.lr, betas=(p.beta1, 0.999))
    schedule = LambdaLR(optimizer, lambda step: p.lr_decay ** (step // batches.per_epoch))

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Logs]:
        batch = data.take(batches(step).to(run.device))
        chains, places = buffer.draw(len(batch), p.fresh_fraction)
        # On the bare network: only input gradients are asked for, so the weights collect none.
        with run.fabric.autocast():
            *_, chains = energy.langevin_chain(
                energy.energy_of(network, head), chains, p.chain_steps, p.langevin, run.generator
            )
        buffer.put(places, chains)
        images = to_float(batch.images)
        images = images + p.data_noise * torch.randn(images.shape, generator=run.generator, device=run.device)
        logits = wrapped(torch.cat([images, chains]))
        real, fake = energy.HEADS[head](logits).chunk(2)
        value = energy.contrastive_loss(real, fake, p.regularization)
        logs: Logs = {"energy_real": real.mean(), "energy_chains": fake.mean()}
        if also is not None:
            more, more_logs = also(logits[: len(batch)], batch.labels)
            value, logs = value + more, {**logs, **more_logs}
        return value, logs

    fit(
        network,
        loss,
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        run=run,
        gradient_norm=p.gradient_norm,
        state={"buffer": buffer},
    )


class Objective(Protocol):
    """What a compressed network is pulled towards; each target has its own."""

    inputs: Tensor  # (n, c, h, w) float32 in [-1, 1]: where the network must behave like its teacher

    def loss(self, network: nn.Module, index: Tensor, run: Run) -> tuple[Tensor, Logs]:
        """How far `network` is from the teacher at the inputs with these indices."""


def finetune(
    network: nn.Module,
    objective: Objective,
    p: Finetune,
    run: Run,
) -> None:
    """Pull the parameters of `network` to the teacher behind `objective`: Adam, one-cycle learning rate."""
    batches = Batches(len(objective.inputs), p.batch_size, run.own_seed)
    steps = p.epochs * batches.per_epoch
    network.to(run.device)
    optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], lr=p.lr)
    schedule = OneCycleLR(optimizer, p.lr, total_steps=steps + 1)

    def loss(wrapped: nn.Module, step: int) -> tuple[Tensor, Logs]:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=p.precision == "bf16-mixed"):
            return objective.loss(wrapped, batches(step).to(run.device), run)

    fit(network, loss, steps=steps, optimizer=optimizer, schedule=schedule, run=run)
