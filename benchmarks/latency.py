"""Milliseconds and memory of stored models, each way of running them, against the float32 model.

    python benchmarks/latency.py models/classifier/*.safetensors --reference models/classifier/teacher.safetensors
    python benchmarks/latency.py models/ebm/quantize.safetensors --reference models/ebm/teacher.safetensors --steps

One run is one forward pass to the logits or, with --steps, one Langevin step: energy's gradient, clamps, noise. Float
models run eagerly (channels_last), compiled by Inductor, and in onnxruntime; steps also under bfloat16 autocast, as the
profiles sample. int8 models run as Inductor's int8 kernels and in onnxruntime, from the file that `lowenergy export`
writes. Every way of running has a process of its own, one after the other, on random images. A figure is the median of
the runs with its quartiles; a ratio is the time of the faster of the reference's eager and compiled runs (of the same
threads and batch), divided by it. Memory is the process's peak above what it took before the model was loaded.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lowenergy import energies
from lowenergy.base.params import Sampler
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.energies.gradient import gradient_graph
from lowenergy.runtimes import int8, loading, to_onnx
from lowenergy.storage import artifact

WAYS = {False: ("eager", "compiled", "onnxruntime"), True: ("int8 Inductor", "int8 onnxruntime")}
CONSTANTS = Sampler(step_size=0.05, noise=0.015, gradient_clamp=5.0)


def forward(path: Path, way: str, threads: int) -> Callable[[torch.Tensor], Any]:
    """images -> logits, this way."""
    model, header = artifact.read(path)
    if "onnxruntime" in way:
        return in_onnxruntime(model, header, threads, "logits" if model.spec.head is None else "energy")
    if way == "int8 Inductor":
        return int8.compiled(int8.restore(model))
    network = loading.dense_network(model).to(memory_format=torch.channels_last)
    return int8.frozen(network) if way == "compiled" else torch.inference_mode()(network)


def step(path: Path, way: str, threads: int) -> Callable[[torch.Tensor], Any]:
    """images -> images one Langevin step later, this way."""
    model, header = artifact.read(path)
    if "onnxruntime" in way:
        return in_onnxruntime(model, header, threads, "next")
    assert model.spec.head is not None, f"{path} has no energy"
    of_images: Energy
    if way == "int8 Inductor":
        graph = int8.compiled(int8.restore(model, gradient=True))
        of_images = ExplicitEnergy(lambda images: graph(images)[0], graph, model.spec.head)
    elif way == "compiled":
        network = loading.dense_network(model).to(memory_format=torch.channels_last)
        graph = int8.frozen(gradient_graph(network, model.spec.head, model.spec.input_shape))
        of_images = ExplicitEnergy(lambda images: graph(images)[0], graph, model.spec.head)
    else:
        precision = "bf16-mixed" if way == "bf16" else "32-true"
        of_images = loading.energy_of(model, loading.dense_network(model), precision)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return lambda images: next(energies.langevin_chain(of_images, images, 1, CONSTANTS, generator))


def in_onnxruntime(model: artifact.Model, header: Any, threads: int, output: str) -> Callable[[torch.Tensor], Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        to_onnx.export(model, header, Path(folder) / "model.onnx", sampler=output == "next")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)
    random = np.random.default_rng(0)
    needs_noise = len(session.get_inputs()) == 2

    def call(images: torch.Tensor) -> Any:
        inputs = {"images": images.numpy()}
        if needs_noise:
            inputs["noise"] = random.standard_normal(images.shape, dtype="float32")
        return session.run([output], inputs)

    return call


def measure(path: Path, way: str, threads: int, batches: list[int], steps: bool, rounds: int) -> dict[int, Any]:
    """By batch size: quartiles of the milliseconds, and peak memory in MiB."""
    torch.set_num_threads(threads)
    shape = artifact.read(path)[0].spec.input_shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = (step if steps else forward)(path, way, threads)
    found = {}
    for batch in batches:
        images = torch.rand(batch, *shape) * 2 - 1
        times = []
        for _ in range(rounds + 3):
            start = time.perf_counter()
            run(images)
            times.append(1e3 * (time.perf_counter() - start))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found[batch] = (*torch.tensor(times[3:]).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist(), peak)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, required=True, help="the float32 model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", action="store_true", help="Langevin steps instead of forward passes")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    what = "Langevin step" if args.steps else "forward pass"
    table = Table(title=f"ms per {what}: median (quartiles)")
    for column in ("threads", "batch", "model", "way", "ms", "times faster", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    rows = []
    for threads in args.threads:
        cells = {}
        for path in dict.fromkeys([args.reference, *args.models]):
            is_int8 = bool(artifact.read(path)[0].activations)
            for way in (*WAYS[is_int8], *(["bf16"] if args.steps and not is_int8 else [])):
                # A process of its own, so that peak memory and thread pools are this way's alone.
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    task = (path, way, threads, args.batch, args.steps, args.rounds)
                    cells[path, way] = pool.apply(measure, task)
        for batch in args.batch:
            exact = min(cells[args.reference, way][batch][1] for way in ("eager", "compiled"))
            for (path, way), found in cells.items():
                low, median, high, peak = found[batch]
                name = f"{path.parent.name}/{path.stem}"
                shown = (f"{median:.2f} ({low:.2f} to {high:.2f})", f"{exact / median:.2f}×", f"{peak:.0f}")
                table.add_row(str(threads), str(batch), name, way, *shown)
                rows.append({"threads": threads, "batch": batch, "model": name, "way": way, "ms": median, "mib": peak})
    Console(width=140).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
