"""Calls that need nothing but a model: load, sample, export."""

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowenergy.base import files
from lowenergy.base.device import fastest
from lowenergy.base.errors import UserError
from lowenergy.base.progress import Progress
from lowenergy.calls.apart import Device, apart
from lowenergy.calls.arguments import above_zero, path_of, seed_of, trusted, whole
from lowenergy.calls.models import Opened, check_module, opened
from lowenergy.energies import sample as chains
from lowenergy.runtimes import loading, sampling
from lowenergy.storage.artifact import Model

if TYPE_CHECKING:
    from lowenergy.calls.making import Made

FORMS = {".onnx": "onnx", ".html": "page", "": "c"}


def load(
    path: str | Path,
    *,
    coded: bool = False,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
) -> nn.Module:
    """The ready network of a model file: images (n, c, h, w) in [-1, 1] -> logits or energies, (n, outputs).

    The network is in evaluation mode, on the CPU, and carries its `spec`. A network quantized to int8 is a prepared
    PT2E graph: its forward pass rounds as int8 does, and its backward pass is straight-through.

    Args:
        coded: keep product-quantized weights coded in memory, which takes as little memory as the file, but more time.
        trust: import paths, modules or files, such as "mynets.py", from which a network may come that is not one of the
            zoo, torchvision or timm. A model file is data: without this, it causes nothing to be imported.
        network: such a network, freshly built, to use instead of importing it; it is not changed.
        limit: bytes of memory that the network may take; without it, a small file of a large network is refused.
    Raises:
        FileError: the file is missing, truncated, tampered with, damaged, too large, or written by a newer version.
        NetworkError: its network comes from none of these, or cannot be built.

    >>> import lowenergy, torch
    >>> network = lowenergy.load(CLASSIFIER)
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    path, trust = path_of("path", path), trusted(trust)
    limit = None if limit is None else whole("limit", limit)
    if network is not None:
        check_module("network", network)
    with apart("cpu"):
        return loading.load(path, coded=coded, trust=trust, network=network, limit=limit)


def sample(
    model: "Made | nn.Module | str | Path",
    *,
    n: int = 64,
    steps: int | None = None,
    step_size: float | None = None,
    seed: int = 0,
    device: Device = None,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
) -> Tensor:
    """Draw images from an energy, compressed or not, by Langevin steps from noise.

    Args:
        model: a file, what a call has made, or a network that lowenergy has built.
        n: how many images to draw.
        steps, step_size: how many Langevin steps each chain takes, and of which size; by default as the file says.
        seed: the same seed draws the same images.
        device: cpu or cuda; by default a GPU if there is one.
        trust, network, limit: see lowenergy.load.
    Returns:
        (n, c, h, w) in [-1, 1], float32, on the CPU.
    Raises:
        FileError: the model has no energy, or does not say how to sample from it.
        UserError: n or steps is not a whole number above 0, step_size is not a number above 0, or the images would not
            fit into memory.

    >>> import lowenergy
    >>> images = lowenergy.sample(ENERGY, n=4, steps=10, seed=0)
    >>> images.shape, bool((images.abs() <= 1).all())
    (torch.Size([4, 1, 8, 8]), True)
    """
    with apart(device):
        source = opened(model, trust=trust, network=network, limit=limit)
        return draw(source, n, steps, step_size, seed)


def draw(source: Opened, n: int, steps: int | None, step_size: float | None, seed: int) -> Tensor:
    """`sample` for a model that is already open, on the device that was asked for."""
    model = source.model
    if model.spec.head is None:
        raise files.FileError(f"{source.origin}: a {model.target} has no energy to sample from; give an EBM or a JEM")
    header = {"provenance": source.provenance}
    step_size = None if step_size is None else above_zero("step_size", step_size)
    constants = sampling.constants_of(header, source.origin, step_size)
    steps = int(source.provenance["sampler"]["chain_steps"]) if steps is None else whole("steps", steps)
    n, seed, device = whole("n", n), seed_of(seed), fastest()
    _check_memory(n, model.spec.input_shape)
    return chains(
        sampling.fastest(model, loading.network_of(model).to(device), images=steps * n),
        model.spec.input_shape,
        n,
        steps=steps,
        constants=constants,
        generator=torch.Generator(device).manual_seed(seed),
        progress=Progress(f"{source.name}: {steps} Langevin steps", steps * n),
    ).cpu()


def _check_memory(n: int, shape: tuple[int, int, int]) -> None:
    """Raise if so many images would not fit into memory.

    Raises:
        UserError: this machine does not have that much memory.
    """
    needed, there = 4 * n * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(f"n={n}: the images take {needed / 2**30:,.0f} GiB of {there / 2**30:.0f}; give fewer")


def export(
    model: "Made | nn.Module | str | Path",
    out: str | Path,
    *,
    to: str | None = None,
    sampler: bool = True,
    step_size: float | None = None,
    ram: int | None = None,
    unpack: bool = False,
    trust: Collection[str] = (),
    network: nn.Module | None = None,
    limit: int | None = None,
) -> None:
    """Write a model for other programs: ONNX, C for a microcontroller, or a web page.

    Args:
        model: a file, what a call has made, or a network that lowenergy has built.
        out: model.onnx, page.html, or a directory for C.
        to: onnx, c or page; by default according to the ending of `out`.
        sampler: for an energy, include the Langevin step; without it, scoring takes half the time.
        step_size: of that step; by default as in training.
        ram: for C or a page, how many bytes working memory and stack may take.
        unpack: for C or a page, write weights as floats: faster, but larger.
        trust, network, limit: see lowenergy.load.
    Raises:
        UserError: an operation cannot be expressed in that form, or what was written would not answer as torch does; no
            trace of it is left.

    >>> import lowenergy
    >>> lowenergy.export(CLASSIFIER, "model-c")
    >>> sorted(path.name for path in pathlib.Path("model-c").iterdir())
    ['Makefile', 'card.json', 'main.c', 'model.c', 'model.h']
    """
    out = path_of("out", out)
    step_size = None if step_size is None else above_zero("step_size", step_size)
    ram = None if ram is None else whole("ram", ram)
    to = FORMS.get(out.suffix) if to is None else to
    if to not in FORMS.values():
        raise UserError(f"{out}: give model.onnx, page.html or a directory, or say to={' or '.join(FORMS.values())}")
    if to == "onnx" and (ram is not None or unpack):
        raise UserError("ram and unpack are for C and pages: onnxruntime plans its own memory")
    with apart("cpu"):
        source = opened(model, trust=trust, network=network, limit=limit)
        header = {"provenance": source.provenance}
        if to != "c":
            check_out(out, model)
        if to == "onnx":
            from lowenergy.runtimes import to_onnx

            to_onnx.export(source.model, header, out, sampler=sampler, step_size=step_size)
        else:
            from lowenergy.runtimes import c

            write = c.export if to == "c" else c.export_page
            write(source.model, header, out, ram=ram, unpack=unpack, step_size=step_size, sampler=sampler)
        if source.model.activations:
            what, off = ("energies" if source.model.spec.head else "logits"), _off_by_outputs(source.model)
            print(
                f"{out}: the outputs of layers are rounded here, too, unlike in `evaluate`: {what} are off by "
                f"{off:.2g} of their spread, on made-up images",
                flush=True,
            )


def _off_by_outputs(model: Model) -> float:
    """How far rounding layers' outputs moves an int8 model's energies or logits, as a fraction of their spread."""
    from lowenergy.energies import HEADS
    from lowenergy.runtimes import int8, to_onnx

    images, _ = to_onnx.looked_at(model.spec.input_shape)
    head = HEADS[model.spec.head] if model.spec.head else (lambda logits: logits)
    with torch.no_grad():
        measured, written = (head(int8.restore(model, outputs=outputs)(images)).double() for outputs in (False, True))
    return float((written - measured).norm() / (measured - measured.mean(0)).norm().clamp_min(1e-12))


def check_out(out: Path, model: "Made | nn.Module | str | Path") -> None:
    """Check that what is to be made of a model can be written, before it is made.

    Raises:
        OSError, FileError: it cannot be written, see files.check_place.
        UserError: `out` is the model's own file.
    """
    files.check_place(out)
    if isinstance(model, str | Path) and out.exists() and out.samefile(model):
        raise UserError(f"{out}: that is the model itself; give another name")
