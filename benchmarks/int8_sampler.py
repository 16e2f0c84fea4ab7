"""Does an int8 energy sample like its float32 teacher? Scores along the chain, FID and Inception Score, three runtimes.

    python benchmarks/int8_sampler.py models/ebm.safetensors models/ebm-quantize.safetensors

Run it where the pipeline has run: it needs models/scorer and models/reference. The chains of all rows start from the
same noise. int8 runs three times: simulated in float as `evaluate` does, by Inductor's int8 kernels, and in onnxruntime
from the exported file. The sampler's constants are those of the model file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from lowenergy import energies
from lowenergy.energies import Energy, ExplicitEnergy
from lowenergy.params import Sampler
from lowenergy.runtimes import int8, loading, to_onnx
from lowenergy.scoring import generation
from lowenergy.storage import artifact

BATCH = 100


def int8_share(model: artifact.Model) -> tuple[float, float]:
    """Share of the multiplications that int8 kernels do, forward and in the gradient."""
    total, rounded = [0, 0], [0, 0]
    for pulled, is_rounded, count in int8.multiplications(int8.restore(model, gradient=True)):
        total[pulled] += count
        rounded[pulled] += count * is_rounded
    return rounded[0] / total[0], rounded[1] / total[1]


def onnx_samples(model: artifact.Model, header: dict, start: Tensor, steps: int, generator: Generator) -> Tensor:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        to_onnx.export(model, header, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
    drawn = []
    for images in start.split(BATCH):
        state = images.numpy()
        for _ in range(steps):
            noise = torch.empty(state.shape).normal_(generator=generator).numpy()
            (state,) = session.run(["next"], {"images": state, "noise": noise})
        drawn.append(torch.from_numpy(np.asarray(state)))
    return torch.cat(drawn)


def torch_samples(of_images: Energy, start: Tensor, steps: int, constants: Sampler, generator: Generator) -> Tensor:
    drawn = []
    for images in start.split(BATCH):
        *_, last = energies.langevin_chain(of_images, images, steps, constants, generator)
        drawn.append(last)
    return torch.cat(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    (exact, _), (model, header) = artifact.read(args.teacher), artifact.read(args.quantized)
    assert model.spec.head is not None and model.activations, "give the float32 energy and the int8 one"
    constants = Sampler(**{k: v for k, v in header["provenance"]["sampler"].items() if k != "chain_steps"})
    console = Console(width=120)

    forward, gradient = int8_share(model)
    console.print(f"multiplications in int8: {forward:.1%} of the energy's, {gradient:.1%} of its gradient's")
    network = loading.network_of(model)
    simulated = loading.energy_in(model, network)
    graph = int8.compiled(int8.restore(model, gradient=True))
    kernels = ExplicitEnergy(lambda images: graph(images)[0], graph, model.spec.head)
    of_teacher = loading.energy_in(exact, loading.network_of(exact))

    generator = Generator().manual_seed(args.seed)
    start = energies.uniform_noise((args.n, *model.spec.input_shape), generator)
    cosines = Table(title="cosine of the int8 and the float32 score along the float32 chain")
    shown = sorted({1, 2, 5, 10, 20, 50, 100, 150, args.steps})
    row = []
    for step, state in enumerate(
        energies.langevin_chain(of_teacher, start[:BATCH], args.steps, constants, generator), 1
    ):
        if step in shown:
            scores = [energies.energy_gradient(of_images, state)[1].flatten(1) for of_images in (kernels, of_teacher)]
            row.append(float(torch.cosine_similarity(scores[0], scores[1]).mean()))
            cosines.add_column(f"step {step}")
    cosines.add_row(*(f"{value:.4f}" for value in row))
    console.print(cosines)

    scorer = loading.dense_network(artifact.read("models/scorer.safetensors")[0])
    table = Table(
        title=f"{args.n} samples after {args.steps} steps, batches of {BATCH}, {torch.get_num_threads()} threads"
    )
    for column in ("sampler", "FID", "IS", "seconds"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    ways = {
        "float32 teacher": lambda g: torch_samples(of_teacher, start, args.steps, constants, g),
        "int8, simulated": lambda g: torch_samples(simulated, start, args.steps, constants, g),
        "int8, Inductor": lambda g: torch_samples(kernels, start, args.steps, constants, g),
        "int8, onnxruntime": lambda g: onnx_samples(model, header, start, args.steps, g),
    }
    for name, draw in ways.items():
        began = time.perf_counter()
        drawn = draw(Generator().manual_seed(args.seed + 1))
        seconds = time.perf_counter() - began
        found = generation.measure(scorer, "models/reference.safetensors", drawn, args.seed)
        table.add_row(name, f"{found['fid']:.3f}", f"{found['inception_score']:.2f}", f"{seconds:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
