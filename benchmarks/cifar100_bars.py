"""What each way of compressing costs CIFAR-100's ResNet-18, from one trained teacher, rows side by side.

    python benchmarks/cifar100_bars.py teacher.safetensors --root data/raw --work bars --jobs 4

A row is a chain of methods with the params that differ from `lowenergy profile cifar100`, in a workspace of its own, by
the pipeline's own stages; every model of the chain is measured. Rows that are done are kept in the record and skipped;
killed rows go on. `--only` picks rows by the start of their labels. A GPU takes minutes for a row, two cores an hour.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from record import machine, write
from record import rows as recorded
from ruamel.yaml import YAML
from torch import Tensor, nn

from lowenergy import data, networks, profiles
from lowenergy.base.nested import with_values
from lowenergy.storage import artifact

ROOT = Path(__file__).resolve().parents[1]
Changes = Mapping[str, Any]


def prune(amount: float, epochs: int, **more: Any) -> Changes:
    fit = {"finetune.epochs": epochs, "finetune.batch_size": 128, "finetune.lr": 0.0015, "retrain.epochs": 0}
    channels = {"kind": "structured", "amount_of": "macs", "importance": "taylor", "amount": amount, "scan_images": 0}
    return {f"prune.{key}": value for key, value in (fit | channels | more).items()}


def quantize(bits: int, epochs: int, lr: float, **more: Any) -> Changes:
    fit = {"finetune.epochs": epochs, "finetune.batch_size": 128, "finetune.lr": lr, "weight_bits": bits}
    return {f"quantize.{key}": value for key, value in (fit | more).items()}


def pq(budget: int, epochs: int, **more: Any) -> Changes:
    fit = {"finetune.epochs": epochs, "finetune.batch_size": 128, "finetune.lr": 0.001, "budget_bytes": budget}
    return {f"pq.{key}": value for key, value in (fit | more).items()}


def fewer_macs_and_bits(amount: float) -> tuple[tuple[str, ...], Changes]:
    """Channels first, then four bits of weights and activations, as MicroNet's score counts both."""
    changes = {**prune(amount, 6), **quantize(4, 3, 0.0005, activation_bits=4, calibration_images=250)}
    return ("prune", "quantize"), {**changes, "branches.classifier-quantize.start": "classifier-prune"}


HALF = "pretrained/cifar100-resnet18-half-pq.safetensors"  # what the pipeline's prune has left, coded since
FROM_HALF = {"branches.classifier-half": {"target": "classifier", "start": "classifier", "by": "prune"}}
ROWS: dict[str, tuple[tuple[str, ...], Changes]] = {
    "teacher": (("teacher",), {}),
    "half the MACs, of that 4 bits, of that pq": (
        ("prune", "quantize", "pq"),
        {
            **prune(0.5, 12),
            **quantize(4, 4, 0.0005),
            **pq(695_000, 5),
            **{f"branches.classifier-{method}.start": "classifier-prune" for method in ("quantize", "pq")},
        },
    ),
    "a quarter of the MACs": (("prune",), prune(0.75, 12)),
    "2 bits": (("quantize",), quantize(2, 10, 0.001)),
    **{f"pq, 32x, seed {seed}": (("pq",), {"seed": seed, **pq(1_400_000, 5)}) for seed in (0, 1, 2)},
    **{f"pq, 45x, seed {seed}": (("pq",), {"seed": seed, **pq(995_000, 6)}) for seed in (0, 1, 2)},
    "a tenth of the weights": (
        ("prune",),
        prune(0.9, 8, kind="unstructured", amount_of="weights", importance="l1"),
    ),
    "4 bits": (("quantize",), quantize(4, 4, 0.0005)),
    "8 bits": (("quantize",), quantize(8, 1, 0.0001)),
    **{
        f"{bits} bits{how}, calibrated only": (
            ("quantize",),
            quantize(bits, 0, 0.001, allocation=way, calibration_images=125),
        )
        for bits in (4, 3)
        for way, how in (("uniform", ""), ("sensitivity", " on average"))
    },
    "4 bits, rounding learned, calibrated only": (
        ("quantize",),
        quantize(4, 0, 0.001, rounding="learned", calibration_images=125),
    ),
    "4 bits, GPTQ, calibrated only": (
        ("quantize",),
        quantize(4, 0, 0.001, rounding="gptq", calibration_images=125),
    ),
    "4 and 4 bits": (("quantize",), quantize(4, 3, 0.0005, activation_bits=4, calibration_images=250)),
    "half the MACs, 4 and 4 bits": fewer_macs_and_bits(0.5),
    "a quarter of the MACs, 4 and 4 bits": fewer_macs_and_bits(0.75),
    "half the MACs as shipped, 4 and 4 bits": (
        (HALF, "quantize"),
        {
            **FROM_HALF,
            **quantize(4, 2, 0.0005, activation_bits=4, calibration_images=250),
            "branches.classifier-quantize.start": "classifier-half",
        },
    ),
    "half the MACs as shipped, 4 and 4 bits on average": (
        (HALF, "quantize"),
        {
            **FROM_HALF,
            **quantize(4, 3, 0.0005, activation_bits=4, allocation="sensitivity", calibration_images=125),
            "branches.classifier-quantize.start": "classifier-half",
        },
    ),
    "half of the half as shipped, 4 and 4 bits on average": (
        (HALF, "prune", "quantize"),
        {
            **FROM_HALF,
            **prune(0.5, 4),
            **quantize(4, 3, 0.0005, activation_bits=4, allocation="sensitivity", calibration_images=125),
            "branches.classifier-prune.start": "classifier-half",
            "branches.classifier-quantize.start": "classifier-prune",
        },
    ),
    "4 and 4 bits on average": (
        ("quantize",),
        quantize(4, 3, 0.0005, activation_bits=4, allocation="sensitivity", calibration_images=125),
    ),
    "4 and 4 bits, calibrated only": (
        ("quantize",),
        quantize(4, 0, 0.001, activation_bits=4, rounding="learned", calibration_images=125),
    ),
    "4 and 4 bits on average, calibrated only": (
        ("quantize",),
        quantize(4, 0, 0.001, activation_bits=4, allocation="sensitivity", rounding="learned", calibration_images=125),
    ),
    "pq, 64x": (("pq",), pq(695_000, 8, block_conv=18, block_small=9)),
    "codes that move, 64x": (("pq",), pq(695_000, 8, block_conv=18, block_small=9, reassign_every=10)),
    "codes that move, half of the MACs as shipped": (
        (HALF, "pq"),
        {
            **FROM_HALF,
            **pq(695_000, 5, reassign_every=10),
            "branches.classifier-pq.start": "classifier-half",
        },
    ),
    "codes that move, channels in another order, 64x": (
        ("pq",),
        pq(695_000, 8, block_conv=18, block_small=9, reassign_every=10, permute=True),
    ),
    **{
        f"codes that move, 32x, seed {seed}": (("pq",), {"seed": seed, **pq(1_400_000, 5, reassign_every=10)})
        for seed in (0, 1, 2)
    },
}


TEACHER, SAID = "models/classifier.safetensors", "said/classifier.safetensors"
SHIPPED = "models/classifier-half.safetensors"


def with_statistics(network: networks.Network, images: Tensor) -> networks.Network:
    """The same network, whose norms have the statistics of these images instead of 0 and 1, so that it can be trained:
    files of coded networks keep norms as scale and shift."""
    seen: dict[nn.Module, list[Tensor]] = {}
    norms: list[Any] = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda norm, x: seen.setdefault(norm, []).append(x[0])) for norm in norms]
    with torch.no_grad():
        network.eval()(images)
        for handle in handles:
            handle.remove()
        for norm in norms:
            variance, mean = torch.var_mean(torch.cat(seen[norm]), (0, 2, 3))
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            norm.bias += factor * (mean - norm.running_mean)
            norm.weight.copy_(factor * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return network


def _link(link: Path, to: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(to)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.end = args, time.monotonic() + args.seconds
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.rows = recorded(args.record)
        self.data = args.work / "splits"
        self._workspace(self.data, {})
        if not (self.data / "data/splits.safetensors").exists():
            self._run(self.data, "stages.prepare")
        _link(self.data / TEACHER, args.teacher)
        if not (self.data / SAID).exists():  # with which branches are compared image by image
            self._run(self.data, "stages.evaluate", "classifier")

    def _workspace(self, place: Path, changes: Changes) -> None:
        """The params of the profile with these changes, and links to everything else."""
        place.mkdir(parents=True, exist_ok=True)
        for name in ("stages", "lowenergy"):
            if not (place / name).is_symlink():
                (place / name).symlink_to(ROOT / name)
        values = with_values(profiles.composed("cifar100"), {**changes, "data.root": str(self.args.root)})
        YAML().dump(values, place / "params.yaml")
        self._run(place, "stages.recipes")

    def _run(self, place: Path, *command: str) -> None:
        with (place / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=place,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "PYTHONWARNINGS": "ignore"},
            )
        try:
            process.wait(max(0.1, self.end - time.monotonic()))
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(place / 'log.txt').read_text()[-1500:]}")

    def row(self, label: str) -> None:
        methods, changes = ROWS[label][0], dict(ROWS[label][1])
        for name in [name for name in changes if name.endswith("finetune.epochs")]:
            changes[name] = math.ceil(self.args.share * changes[name])
        place = self.args.work / label.replace(", ", "-").replace(" ", "_")
        started = time.monotonic()
        if started > self.end:
            return
        self._workspace(place, changes)
        for link, to in (
            (TEACHER, self.args.teacher),
            (SAID, self.data / SAID),
            ("data/splits.safetensors", self.data / "data/splits.safetensors"),
        ):
            _link(place / link, to)
        cards, digests = {}, {}
        if methods[0] == HALF and not (place / SHIPPED).exists():
            images = data.load(place / "data/splits.safetensors").train.images[:500]
            network = with_statistics(artifact.read(ROOT / HALF)[0].build(), data.to_float(images))
            artifact.save(artifact.dense(network, "classifier"), place / SHIPPED, {"stage": "prune", "source": HALF})
        for method in [method for method in methods if method != HALF]:
            name = "classifier" if method == "teacher" else f"classifier-{method}"
            model = place / f"models/{name}.safetensors"
            if not model.exists():
                self._run(place, "stages.compress", name)
            self._run(place, "stages.evaluate", name)
            cards[method] = json.loads((place / f"cards/{name}.json").read_text())
            digests[method] = artifact.sha256(model)
            if self.args.keep and model.stat().st_size < 8_000_000:
                kept = self.args.keep / f"{place.name}-{method}.safetensors"
                shutil.copy(model, kept)
        seconds = round(time.monotonic() - started)
        row = {"label": label, "seconds": seconds, "machine": machine(), "params": changes, "sha256": digests}
        with self.lock:
            self.rows = [*(old for old in self.rows if old["label"] != label), {**row, "cards": cards}]
            write(self.args.record, self.rows, jobs=self.args.jobs, teacher=artifact.sha256(self.args.teacher))
        card = cards[methods[-1]]
        print(f"{label}: {card['accuracy']:.2%}, validation {card['validation']['accuracy']:.2%}, "
              f"{card['size_bytes']:,} bytes, {row['seconds']} s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="models/classifier.safetensors of the profile")
    parser.add_argument("--root", type=Path, default=Path("data/raw"), help="torchvision root with CIFAR-100")
    parser.add_argument("--work", type=Path, required=True, help="folder for the workspaces")
    parser.add_argument("--keep", type=Path, help="folder for small models")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--seconds", type=float, default=1e6, help="stop then")
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs of each row, for a quicker look")
    parser.add_argument("--record", default="cifar100_bars")
    args = parser.parse_args()
    args.teacher, args.root, args.work = args.teacher.resolve(), args.root.resolve(), args.work.resolve()
    bench = Bench(args)
    done = {row["label"] for row in bench.rows}
    labels = [label for label in ROWS if label not in done and label.startswith(tuple(args.only))]
    with ThreadPoolExecutor(args.jobs) as pool:
        for label, future in [(label, pool.submit(bench.row, label)) for label in labels]:
            if error := future.exception():
                print(f"{label}: {error}", flush=True)


if __name__ == "__main__":
    main()
