"""Time per Langevin step side by side: ours, torchebm's LangevinDynamics, a plain autograd loop.

    python benchmarks/sampler_peers.py                                     # the 77 k-parameter MNIST network, untrained
    python benchmarks/sampler_peers.py --model pretrained/mnist-ebm-77k.safetensors --batch 64 128 --threads 1 2

The same weights, the same batch, the same constants; all clamp images to [-1, 1]. The plain loop is how the tutorial
behind the published EBM does it: gradients by backward(), parameters frozen meanwhile, float32. torchebm runs as its
manual shows, float32, and again inside our autocast to bfloat16 (its own mixed precision is for CUDA only). Ours is
energies.langevin_chain in both precisions. Runs are interleaved; a figure is the median over them of one chain's time
divided by its steps, with the quartiles.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor, nn
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

from lowenergy import energies, networks
from lowenergy.base.params import Sampler
from lowenergy.runtimes import loading
from lowenergy.storage import artifact

SPEC = networks.Spec("strided", 16, "3x3", "swish", "none", channels=1, image_size=28, outputs=10, head="mean")
CONSTANTS = Sampler(step_size=0.05, noise=0.015, gradient_clamp=5.0)

Sampler = Callable[[Tensor, int], Tensor]  # (images, steps) -> images


def ours(network: nn.Module, precision: str, generator: Generator) -> Sampler:
    fast = network.to(memory_format=torch.channels_last)
    of_images = energies.energy_of(fast, "mean", precision, frozen=True)  # type: ignore[arg-type]

    def run(images: Tensor, steps: int) -> Tensor:
        *_, last = energies.langevin_chain(of_images, images, steps, CONSTANTS, generator)
        return last

    return run


def plain(network: nn.Module) -> Sampler:
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

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__(device=device)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).mean(1)


def torchebm(network: nn.Module, device: torch.device, autocast: bool) -> Sampler:
    # Its noise is noise_scale * sqrt(2 * step_size); ours is given directly.
    scale = CONSTANTS.noise / (2 * CONSTANTS.step_size) ** 0.5
    model = Wrapped(network, device)
    sampler = LangevinDynamics(model, CONSTANTS.step_size, scale, clamp=(-1.0, 1.0), device=device)

    def run(images: Tensor, steps: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return sampler.sample(x=images.clone(), n_steps=steps)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an EBM's file with head mean (default: the untrained network)")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def network() -> nn.Module:
        made = (
            loading.dense_network(artifact.read(args.model)[0]) if args.model else networks.build(SPEC, seed=0).eval()
        )
        return made.to(device)

    table = Table(title=f"ms per Langevin step on {device.type}: median (quartiles); how many times ours takes")
    for column in ("threads", "batch", "sampler", "ms", "ours, bf16", "ours, float32"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batch:
            generator = Generator(device).manual_seed(0)
            samplers = {
                "ours, bf16": ours(network(), "bf16-mixed", generator),
                "ours, float32": ours(network(), "32-true", generator),
                "torchebm": torchebm(network(), device, autocast=False),
                "torchebm, autocast": torchebm(network(), device, autocast=True),
                "plain loop": plain(network()),
            }
            images = energies.uniform_noise((batch, 1, 28, 28), generator)
            times = measure(samplers, images, args.steps, args.rounds)
            for name, (low, median, high) in times.items():
                ratios = [f"{median / times[own][1]:.2f}×" for own in ("ours, bf16", "ours, float32")]
                table.add_row(str(threads), str(batch), name, f"{median:.2f} ({low:.2f} to {high:.2f})", *ratios)
    Console(width=120).print(table)


def measure(samplers: dict[str, Sampler], images: Tensor, steps: int, rounds: int) -> dict[str, tuple[float, ...]]:
    """Quartiles of the milliseconds per step of each sampler."""
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(images, 3)  # warm up
    for _ in range(rounds):
        for name, sampler in samplers.items():
            start = time.perf_counter()
            sampler(images, steps)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    shares = torch.tensor([0.25, 0.5, 0.75])
    return {name: tuple((torch.tensor(s).quantile(shares) / steps * 1e3).tolist()) for name, s in seconds.items()}


if __name__ == "__main__":
    main()
