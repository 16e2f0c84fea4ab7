"""Blocks and codewords of one size for all layers, beside those that each layer's sensitivity asks for.

    dvc repro && python benchmarks/pq_allocation.py [--target ebm] [--codewords 64]

Codes the teachers of this workspace both ways with the params' finetuning, and measures the files as the pipeline does.
The matching loss is that of the coded network before finetuning and after.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from record import rows as recorded
from record import write

from lowenergy import data, params, targets
from lowenergy.compression import pq
from lowenergy.scoring import report_card
from lowenergy.storage import artifact
from lowenergy.training import Run, mean_loss


def coded(target: str, p: params.Params, splits: data.Splits, folder: Path) -> dict[str, Any]:
    kind, section, teacher = p.teachers[target].kind, p.teachers[target].section, f"models/{target}.safetensors"
    losses = []
    for epochs in (0, p.pq.finetune.epochs):
        once = p.pq.model_copy(update={"finetune": p.pq.finetune.model_copy(update={"epochs": epochs})})
        run = Run(f"{target}-pq", p.seed, [once], root=folder)
        network, of_teacher = (artifact.read(teacher)[0].build() for _ in range(2))
        objective = targets.get(kind).objective(of_teacher, splits, section, run)
        model = pq.compress(network, kind, objective, once, run)
        index = torch.arange(0, len(objective.inputs), 3)
        losses.append(mean_loss(model.build(), objective, index, run))
    path = folder / "pq.safetensors"
    artifact.save(model, path, artifact.read(teacher)[1]["provenance"])
    card = report_card.measure(
        path=str(path),
        teacher=teacher,
        said=f"said/{target}.safetensors",
        scorer="models/scorer.safetensors",
        reference="models/reference.safetensors",
        splits=splits,
        p=section.evaluate,
        seed=p.seed,
        plots=folder / "plots",
    )
    found = {"bytes": card["size_bytes"], "loss": losses[0], "loss_finetuned": losses[1]}
    return found | {key: card[key] for key in ("accuracy", "fid", "validation") if key in card}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+")
    parser.add_argument("--codewords", type=int, nargs="+", default=[64])
    parser.add_argument("--allocation", nargs="+", default=["uniform", "sensitivity"])
    args = parser.parse_args()
    p, splits = params.load(), data.load(data.SPLITS)
    rows = recorded("pq_allocation")
    for target in args.target or p.teachers:
        for codewords in args.codewords:
            for allocation in args.allocation:
                way = {"data": splits.source, "target": target, "codewords": codewords, "allocation": allocation}
                tried = p.pq.model_copy(update={"codewords": codewords, "allocation": allocation})
                with TemporaryDirectory() as folder:
                    found = coded(target, p.model_copy(update={"pq": tried}), splits, Path(folder))
                rows = [row for row in rows if not way.items() <= row.items()] + [way | found]
                print(rows[-1], flush=True)
                write("pq_allocation", rows, seed=p.seed)


if __name__ == "__main__":
    main()
