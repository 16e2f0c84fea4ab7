"""What each part of product quantization is worth: one row per part, on the classifier teacher of the pipeline.

    lowenergy profile cifar100; dvc repro teacher@classifier
    python benchmarks/pq_ablation.py

In a workspace of profile cifar100. Blocks, codewords and calibration are those of params.yaml; the finetuning is cut
short (--images), the same for all rows that have it. Rows that are in the record already are kept, so that a killed run
goes on.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from record import rows as recorded
from record import write

from lowenergy import data, params, targets
from lowenergy.compression import pq
from lowenergy.runtimes.loading import load, network_of
from lowenergy.scoring import accuracy
from lowenergy.storage import artifact
from lowenergy.training import Run, finished

TEACHER = "models/classifier.safetensors"
PLAIN = {"gram": "none", "output_weights": False, "budget_bytes": None, "layer_finetune.steps": 0}
PLAIN |= {"small_weights": 0, "block_small": 3, "finetune.epochs": 0}
AWARE = PLAIN | {"gram": "covariance", "output_weights": True}
TUNED = AWARE | {"finetune.epochs": 1}
PRICED = TUNED | {"small_weights": 150000}
WIDE = PRICED | {"block_conv": 18, "block_small": 9}
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    ", channels in another order": {"permute": True},
    ", codes chosen anew": {"reassign_every": 10},
    ", both": {"permute": True, "reassign_every": 10},
    ", not finetuned": {"finetune.epochs": 0},
    ", not finetuned, channels in another order": {"finetune.epochs": 0, "permute": True},
}


def rows(budget: int) -> dict[str, dict[str, Any]]:
    return {
        "k-means of the weights": PLAIN,
        "Gram matrix of the layer (published objective)": PLAIN | {"gram": "layer"},
        "Gram matrix by position": PLAIN | {"gram": "position"},
        "covariance by position": PLAIN | {"gram": "covariance"},
        "covariance, output weights": AWARE,
        "covariance, output weights, price of bits": AWARE | {"budget_bytes": budget},
        "published objective + layer finetuning": PLAIN
        | {"gram": "layer", "layer_finetune.steps": 5, "layer_finetune.lr": 0.01},
        "k-means of the weights + global finetuning": PLAIN | {"finetune.epochs": 1},
        "published objective + global finetuning": PLAIN | {"gram": "layer", "finetune.epochs": 1},
        "covariance, output weights + global finetuning": TUNED,
        "... + price of bits, small layers by rows": PRICED | {"budget_bytes": budget},
        "... in half of the bytes": PRICED | {"budget_bytes": budget // 2},
        "... and codes chosen anew every ten steps": PRICED | {"budget_bytes": budget // 2, "reassign_every": 10},
        **{
            f"blocks of two kernels in half of the bytes{how}": WIDE | {"budget_bytes": budget // 2} | changes
            for how, changes in WAYS.items()
        },
    }


def changed(p: pq.Params, changes: dict[str, Any]) -> pq.Params:
    values = OmegaConf.create(p.model_dump())
    for dotted, value in changes.items():
        OmegaConf.update(values, dotted, value)
    return pq.Params.model_validate(OmegaConf.to_container(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6400, help="of the finetuning (default 6400)")
    parser.add_argument("--budget", type=int, default=1330000, help="bytes of the rows with a price of bits")
    args = parser.parse_args()
    p, splits = params.load(), data.load("data/splits.safetensors")
    fewer = replace(splits, train=splits.train.take(torch.arange(args.images)))
    size = Path(TEACHER).stat().st_size
    teacher = artifact.sha256(TEACHER)
    done = [row for row in recorded("pq_ablation") if row["of"] == teacher]

    def measured(path: str | Path) -> float:
        network = network_of(artifact.read(path)[0]).to(memory_format=torch.channels_last)
        bf16 = p.classifier.train.precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = accuracy.predict(network, splits.test.images, 250)
        return accuracy.measure(logits.float(), splits.test.labels)["accuracy"]

    if not done:
        done.append({"of": teacher, "parts": "teacher", "accuracy": measured(TEACHER), "bytes": size, "ratio": 1.0})
    folder = TemporaryDirectory()
    for name, changes in rows(args.budget).items():
        if any(row["parts"] == name for row in done):
            continue
        section = changed(p.pq, changes)
        run = Run("classifier/ablation", p.seed, [name, section], root=folder.name)
        objective = targets.get("classifier").objective(load(TEACHER), fewer, p.classifier, run)
        start = time.perf_counter()
        model = pq.compress(load(TEACHER), "classifier", objective, section, run)
        seconds = round(time.perf_counter() - start)
        path = Path(folder.name) / "coded.safetensors"
        artifact.save(model, path, {})
        count = path.stat().st_size
        done.append(
            {
                "of": teacher,
                "parts": name,
                "accuracy": measured(path),
                "bytes": count,
                "ratio": round(size / count, 2),
                "seconds": seconds,
            }
        )
        finished(run)
        print(done[-1], flush=True)
        write("pq_ablation", done, seed=p.seed, images=args.images)


if __name__ == "__main__":
    main()
