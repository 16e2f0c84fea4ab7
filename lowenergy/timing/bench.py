"""How long a stored model takes, for each way of running it: `lowenergy bench`.

One run is a forward pass to the logits or, for an energy with `steps`, one Langevin step: the energy's gradient,
clamps, noise. The ways are `eager` (channels_last), `compiled` by Inductor, and `onnxruntime`; steps are also run under
bfloat16 autocast, as profiles sample. int8 models run with Inductor's int8 kernels, and in onnxruntime from the file
that `lowenergy export` writes.

Each way of each model is measured in a process of its own, so that it does not share peak memory or thread pools.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowenergy import energies, networks
from lowenergy.base import device, memory
from lowenergy.base.errors import UserError
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.energies.gradient import gradient_graph
from lowenergy.params import Sampler
from lowenergy.runtimes import int8, loading, to_onnx
from lowenergy.storage import artifact

CONSTANTS = Sampler(step_size=0.05, noise=0.015, gradient_clamp=5.0)  # of a Langevin step; they do not change its time
WARM_UP = 3  # runs that are not counted: the first ones compile and allocate

WAYS = ("eager", "compiled", "onnxruntime", "bf16", "int8 Inductor", "int8 onnxruntime")

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Timing:
    """One line of the table: a model, a way of running it, a number of threads, and a number of images at a time."""

    model: str
    way: str
    threads: int
    batch: int
    ms: float  # median of the runs
    low_ms: float  # and their quartiles
    high_ms: float
    per_second: float  # images, or Langevin steps of one image
    mib: float  # peak memory above what the process took before it loaded the network


@dataclass(frozen=True)
class Failure:
    model: str
    way: str
    why: str


def ways_of(path: Path, *, steps: bool, trust: Collection[str] = ()) -> list[str]:
    """The ways in which a model can be run.

    Raises:
        FileError: the file is not a model.
        UserError: steps were asked for, and the model has no energy.
    """
    model, _ = artifact.read(path, trust=trust)
    if steps and model.spec.head is None:
        raise UserError(f"{path}: a {model.target} has no energy, and takes no Langevin steps; leave out --steps")
    if model.activations:
        return ["int8 Inductor", "int8 onnxruntime"]
    return ["eager", "compiled", "onnxruntime", *(["bf16"] if steps and device.has_bfloat16("cpu") else [])]


def forward(path: Path, way: str, threads: int, trust: Collection[str] = ()) -> Run:
    """Return the run that takes images (n, c, h, w) to logits in this way, or to energies: an energy in onnxruntime."""
    model, header = artifact.read(path, trust=trust)
    if "onnxruntime" in way:
        return _in_onnxruntime(model, header, threads, "logits" if model.spec.head is None else "energy")
    if way == "int8 Inductor":
        return int8.compiled(int8.restore(model))
    network = _laid_out(loading.dense_network(model))
    return int8.frozen(network) if way == "compiled" else torch.inference_mode()(network)


def step(path: Path, way: str, threads: int, trust: Collection[str] = ()) -> Run:
    """Return the run that takes images (n, c, h, w) to the images one Langevin step later in this way."""
    model, header = artifact.read(path, trust=trust)
    if "onnxruntime" in way:
        return _in_onnxruntime(model, header, threads, "next")
    assert model.spec.head is not None
    of_images: Energy
    if way == "int8 Inductor":
        graph = int8.compiled(int8.restore(model, gradient=True))
        of_images = ExplicitEnergy(lambda images: graph(images)[0], graph, model.spec.head)
    elif way == "compiled":
        network = _laid_out(loading.dense_network(model))
        graph = int8.frozen(gradient_graph(network, model.spec.head, model.spec.input_shape))
        of_images = ExplicitEnergy(lambda images: graph(images)[0], graph, model.spec.head)
    else:
        precision = "bf16-mixed" if way == "bf16" else "32-true"
        of_images = loading.energy_in(model, loading.dense_network(model), precision)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return lambda images: next(energies.langevin_chain(of_images, images, 1, CONSTANTS, generator))


def _laid_out(network: networks.Network) -> networks.Network:
    return network.to(memory_format=networks.memory_format(network))


def _in_onnxruntime(model: artifact.Model, header: Any, threads: int, output: str) -> Run:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        to_onnx.export(model, header, Path(folder) / "model.onnx", sampler=output == "next")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)
    random = np.random.default_rng(0)
    needs_noise = len(session.get_inputs()) == 2

    def call(images: Tensor) -> Any:
        inputs = {"images": images.numpy()}
        if needs_noise:
            inputs["noise"] = random.standard_normal(images.shape, dtype="float32")
        return session.run([output], inputs)

    return call


def bench(
    paths: Sequence[Path],
    *,
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] = (1,),
    steps: bool = False,
    rounds: int = 50,
    ways: Collection[str] = (),
    trust: Collection[str] = (),
) -> Iterator[Timing | Failure]:
    """Time models in every way that they can be run; yield each way's results as soon as it has been measured.

    Args:
        batches: numbers of images at a time.
        threads: numbers of threads.
        steps: time Langevin steps instead of forward passes.
        rounds: how many runs are counted, for each way and batch.
        ways: only these; all if empty.
        trust: what networks may come from, see artifact.read.
    Raises:
        FileError: one of the files is not a model. This and the next are raised before anything is measured.
        UserError: steps were asked for, and one of the models has no energy.
    """
    todo = [(path, way) for path in paths for way in ways_of(path, steps=steps, trust=trust) if not ways or way in ways]
    for count in threads:
        for path, way in todo:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                try:
                    yield from alone.submit(_measured, path, way, count, batches, steps, rounds, trust).result()
                except Exception as error:  # from a compiler or runtime that is missing, or cannot do it
                    yield Failure(str(path), way, str(error).splitlines()[0] if str(error) else repr(error))


def _measured(
    path: Path, way: str, threads: int, batches: Sequence[int], steps: bool, rounds: int, trust: Collection[str]
) -> list[Timing]:
    torch.set_num_threads(threads)
    before = memory.peak()
    shape = artifact.read(path, trust=trust)[0].spec.input_shape
    run = (step if steps else forward)(path, way, threads, trust)
    timings = []
    for batch in sorted(batches):  # since the peak of a larger one stays
        images = torch.rand(batch, *shape) * 2 - 1
        times = torch.tensor([_milliseconds(run, images) for _ in range(WARM_UP + rounds)][WARM_UP:])
        low, median, high = times.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        taken = (memory.peak() - before) / 2**20
        timings.append(Timing(str(path), way, threads, batch, median, low, high, 1000 * batch / median, taken))
    return timings


def _milliseconds(run: Run, images: Tensor) -> float:
    started = time.perf_counter()
    run(images)
    return 1e3 * (time.perf_counter() - started)


def share_of_time(
    path: Path,
    teacher: Path,
    *,
    batch: int = 1,
    threads: int = 1,
    steps: bool = False,
    rounds: int = 30,
    trust: Collection[str] = (),
) -> float:
    """The time that onnxruntime takes for a model, as a fraction of what it takes for its teacher.

    The two take turns, so that whatever else the machine does slows both. The result is the median over the rounds.
    """
    runs = []
    for each in (path, teacher):
        way = next(way for way in ways_of(each, steps=steps, trust=trust) if "onnxruntime" in way)
        runs.append((step if steps else forward)(each, way, threads, trust))
    images = torch.rand(batch, *artifact.read(path, trust=trust)[0].spec.input_shape) * 2 - 1
    shares = [_milliseconds(runs[0], images) / _milliseconds(runs[1], images) for _ in range(WARM_UP + rounds)]
    return float(torch.tensor(shares[WARM_UP:]).median())
