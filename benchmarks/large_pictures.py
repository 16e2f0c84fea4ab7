"""Pictures of 224 pixels through every branch: memory and seconds of each stage, with a network of torchvision.

    .venv/bin/python benchmarks/large_pictures.py FOLDER_OF_IMAGES --work FOLDER [--network mobilenet_v3_small]

The network has its 1,000 outputs and is both a classifier and an energy; the pictures are dealt out to as many classes,
two of each to train on. Peak memory is that of large_folder.py. How good the models become is not the question, so
trainings are short. Stages that the record has are not run again as long as FOLDER is there.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import record
from large_folder import watched
from ruamel.yaml import YAML

from lowenergy.base.nested import with_values

ROOT = Path(__file__).parents[1]
CLASSES = 1000
SUFFIXES = (".jpg", ".jpeg", ".png")
METHODS = ("prune", "quantize", "distill", "pq")
SHORT = {"epochs": 1, "batch_size": 32}
NOTHING = {"finetune.epochs": 0, "retrain.epochs": 0}
CHANGES: dict[str, Any] = {
    "teachers": {target: {"kind": target} for target in ("classifier", "ebm")},
    "branches": {
        f"{target}-{method}": {"target": target, "start": target, "by": method, "accept_chance": True}
        for target in ("classifier", "ebm")
        for method in METHODS
    },
    "data.source": "folder",
    "data.image_size": 224,
    "data.channels": 3,
    "scorer.architecture": {"name": "resnet8", "width": 16, "stem": "7x7", "norm": "batch", "activation": "relu"},
    **{f"scorer.train.{key}": value for key, value in SHORT.items()},
    **{f"classifier.train.{key}": value for key, value in SHORT.items()},
    **{f"energies.train.{key}": value for key, value in SHORT.items()},
    "ebm.train.epochs": 1,
    "ebm.architecture.head": "logsumexp",
    "energies.train.buffer_size": 512,
    "energies.train.chain_steps": 1,
    "energies.train.fresh_fraction": 0.5,
    "energies.train.burn_in": 1,
    "energies.train.contrastive_from": 0.9,
    "energies.matching.chain_steps": 4,
    "ebm.evaluate.samples": 100,
    "ebm.evaluate.chain_steps": 2,
    **{f"prune.{key}": value for key, value in NOTHING.items()},
    "prune.scan_images": 0,
    "quantize.finetune.epochs": 0,
    "quantize.calibration_images": 100,
    "distill.student": {"name": "resnet8", "width": 16, "stem": "7x7", "norm": "none", "activation": "swish"},
    **{f"distill.train.{key}": value for key, value in SHORT.items()},
    "distill.retrain.epochs": 0,
    "pq.allocation": "uniform",
    "pq.finetune.epochs": 0,
    "pq.kmeans_steps": 5,
    "pq.calibration_images": 64,
}
NAMES = ["classifier", "ebm", *(f"{target}-{method}" for target in ("classifier", "ebm") for method in METHODS)]
STAGES = [
    "prepare",
    "recipes",
    "scorer",
    *(f"teacher {target}" for target in ("classifier", "ebm")),
    *(f"compress {name}" for name in NAMES[2:]),
    *(f"evaluate {name}" for name in NAMES),
]


def folder(place: Path, pictures: list[Path]) -> None:
    """Of each class three pictures, of which `prepare` takes one to validate on, and one to test on."""
    for part, count in (("train", 3), ("test", 1)):
        for label in range(CLASSES):
            (place / part / f"{label:04}").mkdir(parents=True)
            for i in range(count):
                picture = pictures[(label * 4 + i + (part == "test") * 3) % len(pictures)]
                shutil.copy(picture, place / part / f"{label:04}" / f"{i}{picture.suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--network", default="mobilenet_v3_small")
    parser.add_argument("--record", default="large_pictures")
    args = parser.parse_args()
    rows = record.rows(args.record) if args.work.exists() else []
    if not args.work.exists():
        folder(args.work / "images", sorted(path for path in args.images.rglob("*") if path.suffix.lower() in SUFFIXES))
    architecture = {"name": f"torchvision.models.{args.network}", "arguments": {"num_classes": CLASSES}}
    changes = {**CHANGES, "data.folder": "images", "classifier.architecture": architecture}
    values = with_values(YAML().load(ROOT / "params.yaml"), changes)
    values["ebm"]["architecture"] = {**architecture, "head": "logsumexp"}
    YAML().dump(values, args.work / "params.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for stage in [stage for stage in STAGES if stage not in {row["stage"] for row in rows}]:
        name, *arguments = stage.split()
        os.chdir(args.work)
        rows.append(
            {"stage": stage, **watched([sys.executable, "-m", f"stages.{name}", *arguments], environment, None)}
        )
        os.chdir(ROOT)
        print(rows[-1], flush=True)
        record.write(args.record, rows, network=args.network, changes={k: v for k, v in CHANGES.items() if "." in k})


if __name__ == "__main__":
    main()
