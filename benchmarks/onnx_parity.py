"""Every model of the pipeline as ONNX: bytes, largest difference from torch, and its quality measured in onnxruntime.

    dvc repro && python benchmarks/onnx_parity.py
    dvc exp run -S … ; python benchmarks/onnx_parity.py quantize       # only this branch, beside what is in the record

Differences are on the test images: of the logits or the energies in standard deviations, of one Langevin step in pixel
values of [-1, 1]; with onnxruntime's optimisations off, against the same graph in torch. Accuracy and FID are as it
runs, with all optimisations and int8 kernels, next to what metrics/ has of the model in torch. FID is of as many
samples after as many steps as `evaluate` draws, from other noise.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from record import rows as recorded
from record import write
from rich.console import Console
from rich.table import Table

from lowenergy import data, energies, params
from lowenergy.energies import ExplicitEnergy
from lowenergy.params import EnergyEvaluation, Sampler
from lowenergy.runtimes import int8, loading, to_onnx
from lowenergy.scoring import generation
from lowenergy.storage import artifact


def session_of(path: Path, *, optimised: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options)


def difference(model: artifact.Model, header: dict[str, Any], path: Path, images: torch.Tensor) -> str:
    """Largest, between torch and onnxruntime."""
    session = session_of(path, optimised=False)
    network = int8.restore(model, outputs=True) if model.activations else loading.network_of(model)
    if model.spec.head is None:
        with torch.no_grad():
            logits = network(images)
        (found,) = session.run(None, {"images": images.numpy()})
        return f"{float(np.abs(found - logits.numpy()).max() / logits.std()):.1g}"
    of_images = loading.energy_in(model, network)
    if model.activations:
        of_images = ExplicitEnergy(network, int8.restore(model, gradient=True, outputs=True), model.spec.head)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    wanted_energies, gradient = energies.energy_gradient(of_images, images)
    c = Sampler(**{key: v for key, v in header["provenance"]["sampler"].items() if key != "chain_steps"})
    wanted = images - c.step_size * gradient.clamp(-c.gradient_clamp, c.gradient_clamp) + c.noise * noise
    found, moved = session.run(["energy", "next"], {"images": images.numpy(), "noise": noise.numpy()})
    of_energy = np.abs(found - wanted_energies.numpy()).max() / float(wanted_energies.std())
    return f"{of_energy:.1g}, {np.abs(moved - wanted.clamp(-1, 1).numpy()).max():.1g}"


def quality(model: artifact.Model, path: Path, splits: data.Splits, p: Any) -> dict[str, float]:
    """Accuracy of a classifier, FID of an energy, by onnxruntime alone."""
    session = session_of(path, optimised=True)
    if model.spec.head is None:
        (logits,) = session.run(None, {"images": data.to_float(splits.test.images).numpy()})
        return {"accuracy": float((logits.argmax(1) == splits.test.labels.numpy()).mean())}
    assert isinstance(p, EnergyEvaluation)
    random, drawn = np.random.default_rng(0), []
    for start in range(0, p.samples, 250):
        images = random.uniform(-1, 1, (min(250, p.samples - start), *model.spec.input_shape)).astype("float32")
        for _ in range(p.chain_steps):
            noise = random.standard_normal(images.shape, dtype="float32")
            (images,) = session.run(["next"], {"images": images, "noise": noise})
        drawn.append(torch.from_numpy(images))
    scorer = loading.dense_network(artifact.read("models/scorer.safetensors")[0])
    return generation.measure(scorer, "models/reference.safetensors", torch.cat(drawn), 0)


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["target"], row["branch"], row.get("bits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="their names (default: all)")
    models = parser.parse_args().models
    p, splits = params.load(), data.load("data/splits.safetensors")
    images, bits = data.to_float(splits.test.images[:200]), p.quantize.weight_bits
    rows: list[dict[str, Any]] = []
    table = Table(title="ONNX")
    for column in ("model", "stored", "ONNX", "ratio", "difference", "in onnxruntime", "in torch"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for name in models or p.models:
            target, branch = p.target_of(name), name.removeprefix(f"{p.target_of(name)}-")
            stored = Path(f"models/{name}.safetensors")
            model, header = artifact.read(stored)
            to_onnx.export(model, header, path)
            found = quality(model, path, splits, p.teachers[target].evaluate)
            key = "accuracy" if model.spec.head is None else "fid"
            known = json.loads(Path(f"cards/{name}.json").read_text())[key]
            shown = "{:.2%}" if key == "accuracy" else "FID {:.2f}"
            sizes = (stored.stat().st_size, path.stat().st_size)
            apart = difference(model, header, path, images)
            rows.append(
                {"target": target, "branch": "teacher" if name == target else branch}
                | ({"bits": bits} if branch == "quantize" and bits != 8 else {})
                | {"bytes": sizes[0], "onnx_bytes": sizes[1], "difference": apart}
                | {"ratio": sizes[1] / sizes[0], f"{key}_onnxruntime": found[key], f"{key}_torch": known}
            )
            table.add_row(
                name,
                *(f"{size:,}" for size in sizes),
                f"{sizes[1] / sizes[0]:.2f}",
                apart,
                *(shown.format(value) for value in (found[key], known)),
            )
    Console(width=120).print(table)
    before = recorded("onnx_parity") if models else []
    kept = [row for row in before if _name(row) not in map(_name, rows)]
    write("onnx_parity", [*kept, *rows], source=p.data.source, seed=p.seed)


if __name__ == "__main__":
    main()
