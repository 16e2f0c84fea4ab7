"""The training loop every stage shares: checkpoints, recovery, curves. What is minimised comes from outside.

run = Run("ebm/teacher", seed=0, inputs=[section, splits])
fit(network, loss, steps=1000, optimizer=..., run=run)
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from dvclive import Live
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from lowenergy.base import checkpoint
from lowenergy.base.errors import UserError
from lowenergy.training.run import Run, keep, kept

PRINT_SECONDS = 5.0
CAUTION = 0.3  # factor of the learning rate after training diverged

Logs = Mapping[str, Tensor | float]
Loss = Callable[[nn.Module, int], tuple[Tensor, Logs]]  # (network, step) -> what to minimise, what to plot


class DivergedError(UserError):
    """Training left its bounds too often; the message names the stage, the step, and what was out of bounds."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


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
    fabric, team = run.fabric, run.team
    outside = torch.get_rng_state()  # that of dropout, which takes no generator
    torch.manual_seed(run.seed)
    network.to(run.device)
    team.agree([*network.parameters(), *network.buffers()])
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
        network.train()
        with team.norms():
            value, logs = loss(network, step)
        optimizer.zero_grad()
        value.backward()
        team.sum_gradients(network.parameters())
        if gradient_norm is not None:
            logs = {**logs, "gradient_norm": nn.utils.clip_grad_norm_(network.parameters(), gradient_norm)}
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
        if now - saved > checkpoint.SECONDS and fabric.is_global_zero:
            keep(run, part, healthy)
            saved = now
    if fabric.is_global_zero:
        _plot(run.curves if part == "fit" else run.curves / part, history)
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    network.eval()  # an exported graph's returns nothing
    network.cpu()
    torch.set_rng_state(outside)


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


def _dropout_generator(run: Run) -> torch.Generator:
    """Torch's own, of the device."""
    if run.device.type == "cuda":
        return torch.cuda.default_generators[run.device.index or 0]
    return torch.default_generator


def _snapshot(run: Run, step: int, parts: Mapping[str, Any], history: list[Any]) -> dict[str, Any]:
    """All it takes to go on from here, independent of what happens next."""
    content = {
        "step": step,
        "recoveries": run.recoveries,
        "generator": run.generator.get_state(),
        "dropout": _dropout_generator(run).get_state(),
        "history": list(history),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    return copy.deepcopy(content)


def _restore(run: Run, content: Mapping[str, Any], parts: Mapping[str, Any], history: list[Any]) -> int:
    """Go back to a snapshot; its step."""
    for name, part in parts.items():
        part.load_state_dict(copy.deepcopy(content["parts"][name]))
    run.generator.set_state(content["generator"].cpu())
    _dropout_generator(run).set_state(content["dropout"].cpu())
    if run.team.rank:  # other rows, other units dropped
        _dropout_generator(run).manual_seed(run.seed + 7919 * run.team.rank + int(content["step"]))
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


def _plot(directory: Path, history: list[tuple[int, dict[str, float]]]) -> None:
    # Written in one go, not while training: rows after the last checkpoint of a killed run would stay in the file.
    with Live(str(directory), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for step, point in history:
            live.step = step
            for key, value in point.items():
                live.log_metric(key, value)
