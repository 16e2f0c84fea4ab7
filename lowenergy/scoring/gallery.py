"""Draw what figures do not show: samples, how they come about, what they resemble, and the energies of data, as PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from lowenergy.base import figures, files
from lowenergy.data import at_a_time, to_float, write_grid
from lowenergy.energies import Energy, langevin_chain, uniform_noise
from lowenergy.networks import Network
from lowenergy.params import Sampler

BINS = 50  # of a histogram
CHAINS = 8  # in a strip
STATES = 10  # shown of each chain, start and end included
CHANGED = 24  # at most so many images shown whose answer compression has changed


def write_strip(
    energy: Energy, shape: tuple[int, int, int], steps: int, sampler: Sampler, generator: Generator, path: Path
) -> None:
    """Draw chains from noise to samples: a row per chain, evenly spaced Langevin steps from left to right."""
    start = uniform_noise((CHAINS, *shape), generator)
    kept = {round(i * steps / (STATES - 1)) for i in range(1, STATES)}
    states = [start]
    for step, state in enumerate(langevin_chain(energy, start, steps, sampler, generator), 1):
        if step in kept:
            states.append(state.clone())
    write_grid(torch.stack(states, 1).flatten(0, 1).cpu(), path, columns=len(states))


def write_changed(images: Tensor, own: Tensor, teacher: Tensor, path: Path) -> None:
    """Draw the first CHANGED images (uint8) whose answer differs from the teacher's, in one row; no file if none does.

    Args:
        own, teacher: logits (n, classes).
    """
    changed = (own.argmax(1) != teacher.argmax(1)).nonzero().flatten()[:CHANGED]
    path.unlink(missing_ok=True)
    if len(changed):
        write_grid(to_float(images[changed]), path, columns=len(changed))


def write_neighbours(samples: Tensor, training: Tensor, path: Path, columns: int = 10) -> None:
    """Draw samples and, below each, the training image (uint8) nearest to it in pixels: a copy would show as a pair.

    Args:
        samples: (n, c, h, w) in [-1, 1], n a multiple of `columns`.
    """
    # Squared distances without the samples' norms, which do not change the order; in parts to bound the memory.
    flat = samples.flatten(1)
    nearest, best = torch.zeros(len(samples), dtype=torch.long), torch.full((len(samples),), float("inf"))
    step = at_a_time(training, 10_000)
    for start in range(0, len(training), step):
        part = training[start : start + step].flatten(1).float().div_(127.5).sub_(1)
        distances, index = (part.square().sum(1) - 2 * flat @ part.T).min(1)
        nearest = torch.where(distances < best, index + start, nearest)
        best = torch.minimum(distances, best)
    neighbours = training[nearest].float() / 127.5 - 1
    rows = [row for pair in zip(samples.split(columns), neighbours.split(columns), strict=True) for row in pair]
    write_grid(torch.cat(rows), path, columns)


def write_classes(scorer: Network, samples: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw the share of each class among the samples, by the scorer: a missing bar is a mode that is never drawn."""
    with torch.no_grad():
        predicted = torch.cat([scorer(part).argmax(1) for part in samples.split(1000)])
    shares = torch.bincount(predicted, minlength=len(classes)) / len(samples)
    figure, axes = figures.axes()
    axes.barh(range(len(classes)), shares.tolist(), color="tab:blue")
    axes.axvline(1 / len(classes), color="tab:gray", lw=1, ls="--")
    axes.invert_yaxis()
    if len(classes) <= 20:
        axes.set_yticks(range(len(classes)), [figures.plain(name) for name in classes])
    axes.set(ylabel="class that the scorer sees", xlabel=f"share of {len(samples)} samples")
    _write(figure, path)


def write_energies(energies: Mapping[str, Tensor], path: Path) -> None:
    """Draw histograms of the energies, a line for each kind of images; what the model considers likely is on the left.

    Energies are relative to the test images' median. Kinds differ by orders of magnitude in spread, so the axis is
    linear near zero, within the spread of the test images, and logarithmic further out.
    """
    figure, axes = figures.axes()
    centre = energies["test"].median()
    spread = float((energies["test"] - centre).abs().median().clamp_min(1e-6))
    scaled = {kind: torch.asinh((values - centre) / spread) for kind, values in energies.items()}
    low, high = (float(f(torch.cat(list(scaled.values())))) for f in (torch.min, torch.max))
    places = torch.linspace(low, high + 1e-6, BINS + 1)
    for kind, values in scaled.items():
        counts = torch.histc(values, BINS, low, high + 1e-6)
        middles = (places[:-1] + places[1:]) / 2
        axes.plot(middles.tolist(), (counts / counts.max()).tolist(), lw=1.3, label=kind)
    ticks = _round_values(spread, low, high)
    axes.set_xticks([math.asinh(tick / spread) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set(xlabel="energy above the test images' median", ylabel="images, against the line's peak")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(energies), frameon=False, handlelength=1)
    _write(figure, path)


def _round_values(spread: float, low: float, high: float) -> list[float]:
    """0 and round values to either side, from about `spread` on, not too close on an axis of asinh(value / spread)."""
    steps = [m * 10.0**e for e in range(-6, 9) for m in (1, 3) if m * 10.0**e > 0.7 * spread]
    ticks = [0.0]
    for sign, end in ((1, high), (-1, -low)):
        last = 0.0
        for step in steps:
            place = math.asinh(step / spread)
            if place <= end and place - last > (high - low) / 9:
                ticks.append(sign * step)
                last = place
    return sorted(ticks)


def _write(figure: Any, path: Path) -> None:
    out = io.BytesIO()
    figure.savefig(
        out, format="png", dpi=110, metadata={"Software": None}
    )  # no version, so that the same figures give the same bytes
    files.write_bytes(path, out.getvalue())
