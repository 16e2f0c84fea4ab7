"""Networks that this project did not make, through every branch: accuracy, bytes, multiply-accumulates, seconds.

    .venv/bin/python benchmarks/any_network.py IMAGES --work FOLDER [--only mobilenet_v2 ...]

IMAGES is a folder with a sub-directory of images per class; `--from-cifar100 ROOT` fills it from a torchvision root
(ten classes; 2,000 of their images are used). Each network is trained from scratch for a few minutes, so its accuracy
is no record: what counts is that every branch works, what it loses against its teacher, and which layers stay float.
"""

import argparse
import contextlib
import io
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import rows as recorded
from record import write
from ruamel.yaml import YAML

from lowenergy.base.nested import with_values

if TYPE_CHECKING:
    from lowenergy.base.cards import Card

ROOT = Path(__file__).parents[1]
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"name": "torchvision.models.mobilenet_v2", "arguments": {"num_classes": 10}},
    "resnet18": {"name": "torchvision.models.resnet18", "arguments": {"num_classes": 10}},
    "mobilenet_v3_small": {"name": "torchvision.models.mobilenet_v3_small", "arguments": {"num_classes": 10}},
    "efficientnet_b0": {"name": "torchvision.models.efficientnet_b0", "arguments": {"num_classes": 10}},
    "convnext_tiny": {"name": "torchvision.models.convnext_tiny", "arguments": {"num_classes": 10}},
    "vit_b_16": {
        "name": "torchvision.models.VisionTransformer",
        "arguments": {
            "image_size": 32, "patch_size": 4, "num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256,
            "num_classes": 10,
        },
    },
    "timm resnext26ts": {
        "name": "timm.create_model",
        "arguments": {"model_name": "resnext26ts", "num_classes": 10},
    },
    "own": {"name": "nets/own.py:Net", "arguments": {"classes": 10}},
}  # fmt: skip
OWN = '''
"""A network of one's own: dilated, grouped and depthwise convolutions, a functional activation, no norm at the end."""
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.wide = nn.Conv2d(32, 64, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.depth, self.point = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 128, 1)
        self.last = nn.Linear(128, classes)
    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(F.gelu(self.wide(x)), 2)
        x = x + F.silu(self.grouped(x))
        return self.last(F.silu(self.point(self.depth(x))).mean((2, 3)))
'''
CHANGES = {
    "teachers": {"classifier": {"kind": "classifier"}},
    "branches": {
        f"classifier-{method}": {"target": "classifier", "start": "classifier", "by": method}
        for method in ("prune", "quantize", "distill", "pq")
    },
    "networks": "nets",
    "data.source": "folder",
    "data.image_size": 32,
    "data.channels": 3,
    "data.limit": 2000,
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "classifier.train.epochs": 10,
    "classifier.train.lr": 0.05,
    "classifier.train.crop_padding": 4,
    "classifier.train.flip": True,
    "prune.amount": 0.5,
    "prune.scan_images": 0,
    "prune.finetune.epochs": 3,
    "prune.retrain.epochs": 0,
    "quantize.finetune.epochs": 0,
    "distill.student.name": "resnet8",
    "distill.student.width": 16,
    "distill.student.norm": "batch",
    "distill.student.activation": "relu",
    "distill.train.epochs": 10,
    "distill.retrain.epochs": 0,
    "pq.allocation": "uniform",
    "pq.codewords": 256,
    "pq.block_conv": 9,
    "pq.block_1x1": 2,
    "pq.finetune.epochs": 3,
    "pq.finetune.lr": 0.001,
    "pq.kmeans_steps": 10,
}
ROWS = {  # branch: what differs from CHANGES
    "teacher": {},
    "prune": {},
    "prune channels": {"prune.kind": "structured", "prune.amount": 0.3, "prune.finetune.epochs": 6},
    "quantize": {},
    "pq": {},
    "distill": {},
}


def fill(images: Path, root: str, classes: int = 10) -> None:
    from torchvision.datasets import CIFAR100

    for train in (True, False):
        part = CIFAR100(root, train=train)
        for i, (image, label) in enumerate(part):
            if label < classes:
                place = images / part.classes[label]
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{'train' if train else 'test'}{i}.png")


def params(changes: dict[str, Any], shipped: Path = ROOT / "params.yaml") -> None:
    """Write params.yaml here: the shipped one, dotted keys changed."""
    YAML().dump(with_values(YAML().load(shipped), changes), Path("params.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--from-cifar100", metavar="ROOT")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="of the teacher")
    parser.add_argument("--record", default="any_network")
    args = parser.parse_args()
    if args.from_cifar100 and not args.images.exists():
        fill(args.images, args.from_cifar100)
    images = args.images.resolve()
    rows = []
    for name in args.only:
        place = args.work / name.replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        (place / "nets").mkdir(parents=True)
        (place / "nets" / "own.py").write_text(OWN)
        os.chdir(place)
        rows += network(name, images, args.epochs)
        os.chdir(ROOT)
        again = {row["network"] for row in rows}
        others = [row for row in recorded(args.record) if row["network"] not in again]
        write(
            args.record, others + rows, changes={k: v for k, v in CHANGES.items() if k not in ("teachers", "branches")}
        )


def network(name: str, images: Path, epochs: int | None) -> list[dict[str, Any]]:
    from stages import compress, prepare, recipes, teacher

    common = CHANGES | {"data.folder": str(images), "classifier.architecture": NETWORKS[name]}
    if epochs is not None:
        common["classifier.train.epochs"] = epochs
    rows: list[dict[str, Any]] = []
    for row, changes in ROWS.items():
        params(common | changes)
        recipes.main()
        branch = row.split(" ")[0]
        if branch == "teacher":
            prepare.main()
        started, said = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                teacher.main("classifier") if branch == "teacher" else compress.main(f"classifier-{branch}")
            except Exception as error:
                rows.append({"network": name, "branch": row, "error": f"{type(error).__name__}: {error}"})
                print(rows[-1])
        text = said.getvalue()
        print(text, flush=True)
        if rows and "error" in rows[-1] and rows[-1]["branch"] == row:
            print(rows[-1], flush=True)
            continue
        seconds = time.monotonic() - started
        card = measure(branch)
        kept = [
            line.split(": ", 1)[1] for line in text.splitlines() if "float: " in line or "keeps the channels" in line
        ]
        rows.append(
            {
                "network": name,
                "branch": row,
                **{key: card[key] for key in ("accuracy", "size_bytes", "compression_ratio", "macs")},
                "micronet": card["micronet"]["score"],
                "seconds": round(seconds, 1),
                "left": kept,
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure(branch: str) -> "Card":
    from lowenergy import data
    from lowenergy import params as schema
    from lowenergy.scoring import report_card

    p, name = schema.load(), "classifier" if branch == "teacher" else f"classifier-{branch}"
    return report_card.measure(
        path=f"models/{name}.safetensors",
        teacher="models/classifier.safetensors",
        said="said/classifier.safetensors",
        scorer="",
        reference="",
        splits=data.load(data.SPLITS),
        p=p.classifier.evaluate,
        seed=0,
        plots=Path(f"plots/models/{name}"),
        trust=p.trusted,
    )


if __name__ == "__main__":
    main()
