"""FID through Inception beside pytorch-fid and torch-fidelity: the same images and the same random weights.

    pip install --no-deps --target peers pytorch-fid torch-fidelity
    PYTHONPATH=.:peers python benchmarks/inception_fid.py --images 64 --side 32
    PYTHONPATH=.:peers python benchmarks/inception_fid.py --resamples 1000 10000     # seconds of the interval

Each is run as its users run it, on two folders of PNG files. Random weights make small features: what counts is the
difference beside the figure. The peers differ in how they enlarge images, which 299 pixels need not be, and in the
range that pixels are brought to.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F


def images(n: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Each of its own brightness and grain: (n, channels, side, side) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(256, (n, channels, 4, 4), generator=generator).float()
    fine = torch.randint(-40, 40, (n, channels, side, side), generator=generator)
    return (F.interpolate(coarse, (side, side)) + fine).clamp(0, 255).byte()


def random_weights() -> dict[str, Tensor]:
    """A state dict of torchvision's Inception v3, with what feeds its loss, whose features tell images apart."""
    from torchvision.models.inception import Inception3

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = Inception3(num_classes=1000, init_weights=False).state_dict()
    found = {}
    for name, value in shapes.items():
        if name.endswith(("conv.weight", "fc.weight")):
            found[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            found[name] = 0.9 + 0.2 * torch.rand(value.shape, generator=generator)
        elif name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        else:
            found[name] = 0.1 * torch.randn(value.shape, generator=generator)
    return found


def of_fid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the FID weights are: without what feeds the loss, and with eight outputs more."""
    kept = {n: v for n, v in state.items() if not n.startswith("AuxLogits") and not n.endswith("num_batches_tracked")}
    return kept | {n: torch.cat([kept[n], kept[n][:8]]) for n in ("fc.weight", "fc.bias")}


def ours(weights: Path, drawn: Path, real: Path) -> dict[str, Any]:
    import lowenergy

    found = lowenergy.fid(drawn, inception=weights.with_suffix(".safetensors"), real=real, device="cpu")
    return {"fid": found.fid.value, "fid_interval": [found.fid.low, found.fid.high]}


def pytorch_fid(weights: Path, drawn: Path, real: Path) -> dict[str, Any]:
    from pytorch_fid import fid_score, inception

    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights)):
        places = [str(drawn), str(real)]
        found = fid_score.calculate_fid_given_paths(places, batch_size=32, device="cpu", dims=2048, num_workers=0)
    return {"fid": float(found)}


def torch_fidelity(weights: Path, drawn: Path, real: Path) -> dict[str, Any]:
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=str(drawn),
        input2=str(real),
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=32,
        feature_extractor_weights_path=str(weights),
    )
    return {"fid": found["frechet_inception_distance"]}


def resampling(n: int) -> dict[str, Any]:
    """Seconds that one resample takes, of as many real images as drawn ones."""
    from lowenergy.calls import inception

    generator = torch.Generator().manual_seed(0)
    real, drawn = (torch.rand(n, inception.WIDTH, generator=generator) for _ in range(2))
    times = []
    for resamples in (1, 4):
        started = time.process_time()

        def few(statistic: Any, count: int, *, seed: int, resamples: int = resamples) -> list[float]:
            drawing = torch.Generator().manual_seed(seed)
            return [statistic(torch.randint(count, (count,), generator=drawing)) for _ in range(resamples)]

        with patch.object(inception, "resampled", few):
            inception.distances(real, drawn, 0)
        times.append(time.process_time() - started)
    return {"images": n, "resample_cpu_seconds": (times[1] - times[0]) / 3}


def main() -> None:
    from PIL import Image
    from record import rows as recorded
    from record import write
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="drawn ones, and as many real ones (default: 64)")
    parser.add_argument("--side", type=int, nargs="*", default=[], help="pixels of their sides, such as 32 299")
    parser.add_argument("--by", nargs="*", default=["lowenergy", "pytorch-fid", "torch-fidelity"])
    parser.add_argument("--resamples", type=int, nargs="*", default=[], help="images whose interval is timed")
    args = parser.parse_args()
    ways = {"lowenergy": ours, "pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity}
    rows = recorded("inception_fid")
    for n in args.resamples:
        rows.append(resampling(n))
        write("inception_fid", rows, threads=torch.get_num_threads())
        print(rows[-1], flush=True)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        state = of_fid(random_weights())
        torch.save(state, weights)
        save_file(state, weights.with_suffix(".safetensors"))
        for side in args.side:
            places = [Path(folder) / f"{name}-{side}" for name in ("drawn", "real")]
            for seed, place in enumerate(places):
                place.mkdir()
                for i, image in enumerate(images(args.images, side, seed=seed)):
                    pixels = image if seed else image // 2 + 64  # paler
                    Image.fromarray(pixels.movedim(0, 2).numpy()).save(place / f"{i:05}.png")
            for by in args.by:
                started = time.process_time()
                row = {"by": by, "version": version(by), "images": args.images, "side": side}
                row |= ways[by](weights, *places)
                rows.append(row | {"cpu_seconds": round(time.process_time() - started, 1)})
                write("inception_fid", rows, threads=torch.get_num_threads(), seed=0)
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
