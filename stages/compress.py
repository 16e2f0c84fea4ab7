"""Compress one target's source model by one method. DVC stages `prune`, `quantize`, `distill` and `pq` `@<target>`."""

from importlib import import_module
from pathlib import Path

from lowenergy import data, targets
from lowenergy.base import params
from lowenergy.base.stage import run as run_stage
from lowenergy.runtimes.loading import load
from lowenergy.storage import artifact
from lowenergy.training import Run, disband, finished


def main(method: str, target: str) -> None:
    p = params.load()
    section, of_target = getattr(p, method), getattr(p, target)
    source = f"models/{target}/{section.source}.safetensors"
    splits = data.load(data.SPLITS)
    inputs = [section, of_target, splits.train.images, artifact.sha256(source), Path(p.networks)]
    run = Run(f"{target}/{method}", p.seed, inputs)
    # Loaded twice: the method changes one, the other stays the teacher that it is pulled towards.
    objective = targets.get(target).objective(load(source, trust=p.trusted), splits, of_target, run)
    compress = import_module(f"lowenergy.compression.{method}").compress
    model = compress(load(source, trust=p.trusted), target, objective, section, run)
    disband(run)
    inherited = {
        key: value for key, value in artifact.read(source, trust=None)[1]["provenance"].items() if key == "sampler"
    }
    provenance = inherited | {
        "stage": method,
        "data": splits.source,
        "seed": p.seed,
        "source": {"branch": section.source, "sha256": artifact.sha256(source)},
    }
    path = f"models/{target}/{method}.safetensors"
    artifact.save(model, path, provenance)
    print(path, *(f"{part} {count:,}" for part, count in artifact.shares(path).items()), "bytes")
    finished(run)


if __name__ == "__main__":
    run_stage(main)
