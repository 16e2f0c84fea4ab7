"""Compress one target's source model by one method. DVC stages `prune`, `quantize`, `distill` and `pq` `@<target>`."""

import sys
from importlib import import_module

from lowenergy import data, targets
from lowenergy.base import params
from lowenergy.runtimes.loading import load
from lowenergy.storage import artifact
from lowenergy.training import Run, finished


def main(method: str, target: str) -> None:
    p = params.load()
    section, of_target = getattr(p, method), getattr(p, target)
    source = f"models/{target}/{section.source}.safetensors"
    splits = data.load("data/splits.safetensors")
    run = Run(f"{target}/{method}", p.seed, [section, of_target, splits.train.images, artifact.sha256(source)])
    # Loaded twice: the method changes one, the other stays the teacher that it is pulled towards.
    objective = targets.get(target).objective(load(source), splits, of_target, run)
    compress = import_module(f"lowenergy.compression.{method}").compress
    model = compress(load(source), target, objective, section, run)
    came_from = artifact.read(source)[1]["provenance"]
    provenance = {
        "stage": method,
        "data": splits.source,
        "seed": p.seed,
        "source": {"branch": section.source, "sha256": artifact.sha256(source)},
    }
    if "sampler" in came_from:
        provenance["sampler"] = came_from["sampler"]
    path = f"models/{target}/{method}.safetensors"
    artifact.save(model, path, provenance)
    print(path, *(f"{part} {count:,}" for part, count in artifact.shares(path).items()), "bytes")
    finished(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
