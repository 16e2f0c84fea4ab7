"""Time per Langevin step side by side: ours, torchebm's LangevinDynamics, the loop of the PyTorch Lightning tutorial.

    python benchmarks/sampler_peers.py                                     # the 77 k-parameter MNIST network, untrained
    python benchmarks/sampler_peers.py --model pretrained/mnist-ebm-77k.safetensors --batch 1 64 --threads 1 2

The same weights, the same batch, the same constants; all clamp images to [-1, 1]. The peers run the network as they
would build it, of plain nn.Conv2d, in float32: the tutorial's loop takes gradients by backward(), torchebm runs as its
manual shows. Ours is energies.langevin_chain, with the gradient by autograd (eager) and by onnxruntime, which is what
`lowenergy sample` and `evaluate` choose for long runs. Runs are interleaved; a figure is the median over them of one
chain's time divided by its steps, with the quartiles. The graph's export is not in it and is said beside.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor, nn
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

from lowenergy import energies, networks
from lowenergy.networks.inputconv import InputConv2d
from lowenergy.params import Sampler
from lowenergy.runtimes import loading, sampling
from lowenergy.storage import artifact

SPEC = networks.Spec("strided", 16, "3x3", "swish", "none", channels=1, image_size=28, outputs=10, head="mean")
CONSTANTS = Sampler(step_size=0.05, noise=0.015, gradient_clamp=5.0)

Chain = Callable[[Tensor, int], Tensor]  # (images, steps) -> images


def ours(energy: energies.Energy, generator: Generator) -> Chain:
    def run(images: Tensor, steps: int) -> Tensor:
        *_, last = energies.langevin_chain(energy, images, steps, CONSTANTS, generator)
        return last

    return run


def as_peers_build_it(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, InputConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return network


def tutorial(network: nn.Module) -> Chain:
    def run(images: Tensor, steps: int) -> Tensor:
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        images = images.clone().requires_grad_()
        noise = torch.empty_like(images)
        for _ in range(steps):
            noise.normal_(0, CONSTANTS.noise)
            images.data.add_(noise).clamp_(-1, 1)
            network(images).mean(1).sum().backward()
            assert images.grad is not None
            images.grad.clamp_(-CONSTANTS.gradient_clamp, CONSTANTS.gradient_clamp)
            images.data.add_(images.grad, alpha=-CONSTANTS.step_size).clamp_(-1, 1)
            images.grad.zero_()
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return images.detach()

    return run


class Wrapped(BaseModel):
    """A network as torchebm wants it: images -> energies."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(device=torch.device("cpu"))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).mean(1)


def torchebm(network: nn.Module) -> Chain:
    # Its noise is noise_scale * sqrt(2 * step_size); ours is given directly.
    scale = CONSTANTS.noise / (2 * CONSTANTS.step_size) ** 0.5
    sampler = LangevinDynamics(Wrapped(network), CONSTANTS.step_size, scale, clamp=(-1.0, 1.0), device="cpu")
    return lambda images, steps: sampler.sample(x=images.clone(), n_steps=steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an EBM's file with head mean (default: the untrained network)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    def network() -> networks.Network:
        if args.model:
            return loading.dense_network(artifact.read(args.model)[0])
        return networks.build(SPEC, seed=0).eval()

    table = Table(title="ms per Langevin step: median (quartiles); how many times ours takes")
    for column in ("threads", "batch", "sampler", "ms", "ours, onnxruntime", "ours, eager"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        model, generator = artifact.dense(network(), "ebm"), Generator().manual_seed(0)
        began = time.perf_counter()
        exported = sampling.in_onnxruntime(model, network())
        export = time.perf_counter() - began
        samplers = {
            "ours, onnxruntime": ours(exported, generator),
            "ours, eager": ours(loading.energy_in(model, network()), generator),
            "torchebm": torchebm(as_peers_build_it(network())),
            "tutorial's loop": tutorial(as_peers_build_it(network())),
        }
        for batch in args.batch:
            images = energies.uniform_noise((batch, *model.spec.input_shape), generator)
            times = measure(samplers, images, args.steps, args.rounds)
            for name, (low, median, high) in times.items():
                ratios = {own: median / times[own][1] for own in ("ours, onnxruntime", "ours, eager")}
                shown = (f"{median:.2f} ({low:.2f} to {high:.2f})", *(f"{ratio:.2f}×" for ratio in ratios.values()))
                table.add_row(str(threads), str(batch), name, *shown)
                row = {"threads": threads, "batch": batch, "sampler": name, "ms": round(median, 4)}
                rows.append(row | {"quartiles": [round(low, 4), round(high, 4)], "export_seconds": round(export, 1)})
    Console(width=120).print(table)
    print(record.write("sampler_peers", rows, model=args.model or "strided, width 16, untrained"))


def measure(samplers: dict[str, Chain], images: Tensor, steps: int, rounds: int) -> dict[str, tuple[float, ...]]:
    """Quartiles of the milliseconds per step of each sampler."""
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(images, 3)  # warm up
    for _ in range(rounds):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            sampler(images, steps)
            seconds[name].append(1e3 * (time.perf_counter() - start) / steps)
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    return {name: tuple(torch.tensor(found).quantile(quartiles).tolist()) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
