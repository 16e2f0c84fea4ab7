"""The training loop that all stages share: checkpoints, recovery, curves. The caller says what to minimise.

with running("ebm", seed=0, inputs=[section, splits]) as run:
    fit(network, loss, steps=1000, optimizer=..., run=run)
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from lowenergy.base import checkpoint, curves
from lowenergy.base.errors import UserError
from lowenergy.networks.copies import duplicate
from lowenergy.training.run import Run, keep, kept

PRINT_SECONDS = 5.0
CAUTION = 0.3  # factor of the learning rate after training diverged, or learnt nothing
RETRIES = 2  # how often to try a training again that learns nothing
# A value no smaller than this fraction of what a network without any answer would have shows that nothing is learnt.
NOTHING = 0.98
NOTHING_LEARNT = "learns nothing"
FALLING = 0.1  # fraction of the loss by which it falls from point to point while it is on its way somewhere
FEWEST_STEPS = 100  # fewer say too little of whether anything is learnt

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
    silent: Mapping[str, float] | None = None,
) -> None:
    """Minimise `loss` over the weights of `network` in place; leave it in evaluation mode on the CPU.

    At each of the curve's points the run is either healthy or has diverged: a value is not finite, or `guard` objects.
    A diverged run goes back to the last point that was followed by a healthy one, and on from there at CAUTION times
    the learning rate.

    From a tenth of the steps on, and from FEWEST_STEPS on, each point at which the loss does not fall fast also tells
    whether anything is learnt, see `silent`. If not, the run goes back in the same way, or to its start if nothing was
    ever learnt, up to RETRIES times. If nothing is learnt at the end, it says so in one line and in the model's
    provenance.

    Args:
        schedule: advanced after every step.
        part: names this training in a run that has several: each has its own checkpoint, and a folder of curves unless
            it is `fit`.
        gradient_norm: clip the weights' gradient to this norm.
        weight_average: decay of an exponential moving average of the weights, which becomes the result; 0 for none.
        state: what must survive a kill besides weights, optimizer and generator, such as a replay buffer.
        measure: further values to plot, computed at each of the curve's points.
        points: how many the curves have; each is the mean since the point before.
        guard: says what is wrong with the values of a point; None if nothing is.
        recoveries: how often a diverged run goes back.
        silent: logged values that fall while something is learnt, as a network would have them that gives every image
            the same answer.
    Raises:
        DivergedError: it diverged more often than that; `network` is then as it was at the last healthy point.
    """
    team = run.team
    if not any(weight.requires_grad for weight in network.parameters()):
        run.say("no weight requires a gradient, so none is trained")
        network.eval()
        network.cpu()
        return
    outside = torch.get_rng_state()  # the state of torch's own generator: dropout takes no other
    torch.manual_seed(run.seed)
    network.to(run.device)
    team.agree([*network.parameters(), *network.buffers()])
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule, **(state or {})}
    average = None
    if weight_average:
        average = AveragedModel(duplicate(network), multi_avg_fn=_moving_average(weight_average))
    if average is not None:
        parts["average"] = average
    folder = run.curves if part == "fit" else run.curves / part
    every = max(1, steps // points)
    run.retries = 0
    history: list[tuple[int, dict[str, float]]] = []
    logged: dict[str, list[Tensor]] = {}
    healthy = kept(run, part)
    if healthy is None:
        healthy = _snapshot(run, 0, parts, history)
    else:
        run.say(f"resumed at step {healthy['step']}")
    start = healthy.get("start") or healthy
    step = first = _restore(run, healthy, parts, history)
    _show(run, folder, steps, healthy)
    latest = healthy  # not yet known to be healthy: its last update shows in the next point
    decided = max(steps / 10, FEWEST_STEPS)  # from this step on, whether anything is learnt
    saved = printed = started = time.monotonic()
    while step < steps:
        network.train()
        with team.norms(), _explained(run):
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
        may_be_dead = step >= decided and run.retries < RETRIES and not _falls(point, history)
        if may_be_dead and (wrong := _learns_nothing(point, silent or {}, history)):
            learnt = any(not _learns_nothing(earlier, silent or {}, history) for _, earlier in history)
            healthy = latest = _try_again(run, step, wrong, healthy if learnt else start, parts, history)
            start = start if learnt else healthy
            step = healthy["step"]
            continue
        if measure is not None:
            point |= {key: float(log) for key, log in measure(network.eval()).items()}
        history.append((step, point))
        healthy, latest = latest, _snapshot(run, step, parts, history)
        _show(run, folder, steps, healthy)
        now = time.monotonic()
        if now - printed > PRINT_SECONDS or step == steps:
            left = (now - started) / max(1, step - first) * (steps - step)
            shown = "  ".join(f"{key} {log:.4g}" for key, log in point.items())
            run.say(f"step {step}/{steps}  {shown}  {left:.0f} s left")
            printed = now
        if now - saved > checkpoint.SECONDS and not run.team.rank and run.watched:
            keep(run, part, {**healthy, "start": start} if step < decided else healthy)
            saved = now
    if history and (wrong := _learns_nothing(history[-1][1], silent or {}, history)):
        run.warn(part, NOTHING_LEARNT, wrong)
    if not run.team.rank and run.watched:
        curves.ended(folder)
        _plot(folder, history)
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    network.eval()  # not chained: that of an exported graph returns nothing
    network.cpu()
    torch.set_rng_state(outside)


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Within the `with`, turn what a network's own code cannot do in training into a message to its author.

    Raises:
        UserError: a norm meets a batch of one, or an operation has no second derivative, which energies need.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0]
        if "more than 1 value per channel" in line:
            raise UserError(f"{run.name}: {line}: a norm needs more than one image; give a larger batch_size") from None
        without = ("derivative for", "is not implemented"), ("once_differentiable",), ("double backward",)
        if any(all(word in line for word in words) for words in without):
            raise UserError(f"{run.name}: {line}; an energy is differentiated twice: use other operations") from None
        raise


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


def _learns_nothing(
    point: Mapping[str, float], silent: Mapping[str, float], history: list[tuple[int, dict[str, float]]]
) -> str | None:
    """Name a value that is no better than without any answer, nor a tenth below its first point; None if none is."""
    for key, value in silent.items():
        if key in point and point[key] >= NOTHING * value:
            first = history[0][1].get(key, point[key]) if history else point[key]
            if point[key] > 0.9 * first:
                return f"{key} is {point[key]:.4g}, {value:.4g} without any answer"
    return None


def _falls(point: Mapping[str, float], history: list[tuple[int, dict[str, float]]]) -> bool:
    """True if the loss falls fast: a student whose learning rate still rises learns energies first, then slopes."""
    if not history:
        return False
    before = history[-1][1]["loss"]
    return before - point["loss"] > FALLING * abs(before)


def _dropout_generator(run: Run) -> torch.Generator:
    """Torch's own generator for the run's device, which dropout takes."""
    if run.device.type == "cuda":
        return torch.cuda.default_generators[run.device.index or 0]
    return torch.default_generator


def _snapshot(run: Run, step: int, parts: Mapping[str, Any], history: list[Any]) -> dict[str, Any]:
    """Copy all it takes to go on from here, independent of what happens next."""
    content = {
        "step": step,
        "recoveries": run.recoveries,
        "retries": run.retries,
        "generator": run.generator.get_state(),
        "dropout": _dropout_generator(run).get_state(),
        "history": list(history),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    return copy.deepcopy(content)


def _restore(run: Run, content: Mapping[str, Any], parts: Mapping[str, Any], history: list[Any]) -> int:
    """Go back to a snapshot, and return its step."""
    for name, part in parts.items():
        part.load_state_dict(copy.deepcopy(content["parts"][name]))
    run.generator.set_state(content["generator"].cpu())
    _dropout_generator(run).set_state(content["dropout"].cpu())
    if run.team.rank:  # each process has other rows, and drops other units
        _dropout_generator(run).manual_seed(run.seed + 7919 * run.team.rank + int(content["step"]))
    run.recoveries, run.retries = content["recoveries"], content["retries"]
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
    """Go back to the last healthy snapshot at a lower learning rate, which that snapshot keeps from now on.

    Raises:
        DivergedError: the run has already gone back as often as is allowed.
    """
    _restore(run, healthy, parts, history)
    if run.recoveries == allowed:
        raise DivergedError(
            f"{run.name}: step {step}: {wrong}, for the {allowed + 1}. time; the last healthy state is that of step "
            f"{healthy['step']}. Lower the learning rate"
        )
    run.recoveries += 1
    _slow_down(parts)
    run.say(
        f"step {step}: {wrong}; back to step {healthy['step']}, learning rate times {CAUTION} "
        f"({run.recoveries} of {allowed} recoveries)",
    )
    healthy.update(_snapshot(run, healthy["step"], parts, history))


def _try_again(
    run: Run,
    step: int,
    wrong: str,
    state: dict[str, Any],
    parts: Mapping[str, Any],
    history: list[Any],
) -> dict[str, Any]:
    """Go back to a snapshot from before learning stopped, and return it with a lower learning rate."""
    retries, recoveries = run.retries + 1, run.recoveries
    _restore(run, state, parts, history)
    run.retries, run.recoveries = retries, recoveries
    _slow_down(parts)
    run.say(
        f"step {step}: {NOTHING_LEARNT}: {wrong}; back to step {state['step']}, learning rate times "
        f"{CAUTION} ({retries} of {RETRIES} retries)",
    )
    return _snapshot(run, state["step"], parts, history)


def _slow_down(parts: Mapping[str, Any]) -> None:
    """Multiply the learning rate by CAUTION, wherever the schedule keeps it."""
    schedule, optimizer = parts["schedule"], parts["optimizer"]
    schedule.base_lrs = [CAUTION * lr for lr in schedule.base_lrs]
    for group in optimizer.param_groups:
        for rate in ("lr", "initial_lr", "max_lr", "min_lr"):  # OneCycleLR has all four
            if rate in group:
                group[rate] = CAUTION * group[rate]


def _show(run: Run, folder: Path, steps: int, healthy: Mapping[str, Any]) -> None:
    """Show whoever watches the run, at any time, the points that no divergence will take back."""
    if not run.team.rank and run.watched:
        curves.grow(folder, steps, [(step, point["loss"]) for step, point in healthy["history"]])


def _plot(directory: Path, history: list[tuple[int, dict[str, float]]]) -> None:
    from dvclive import Live  # imported here: a call of the library draws no curves

    # Written in one go, not while training: rows after the last checkpoint of a killed run would stay in the file.
    with Live(str(directory), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for step, point in history:
            live.step = step
            for key, value in point.items():
                live.log_metric(key, value)
