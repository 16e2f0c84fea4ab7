"""Bytes on disk against sparsity: a model pruned by magnitude, stored as float32 and as int8, and where storing pays.

python benchmarks/sparse_sizes.py pretrained/mnist-ebm-77k.safetensors
"""

import argparse

import pandas as pd
from record import write

from lowenergy import networks
from lowenergy.compression.prune.pruning import zero_weights
from lowenergy.runtimes import int8
from lowenergy.runtimes.loading import dense_network
from lowenergy.storage import artifact
from lowenergy.storage.artifact import Model
from lowenergy.storage.encodings import Dense, Encoding, Int8, Sparse

SPARSITIES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model, _ = artifact.read(parser.parse_args().model)
    scales = {
        name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(dense_network(model)).items()
    }
    rows = []
    for sparsity in SPARSITIES:
        network = dense_network(model)
        zero_weights(networks.coded_layers(network), sparsity)
        state = artifact.weights(network)
        sparse: dict[str, Encoding] = {k: Sparse(v) if "weight" in k else Dense(v) for k, v in state.items()}
        rounded: dict[str, Encoding] = {
            k: Int8(int8.rounded(v, scale, 8), scale) if (scale := scales.get(k.removesuffix(".weight"))) is not None
            and k.endswith("weight") else Dense(v)
            for k, v in state.items()
        }  # fmt: skip
        sizes = [len(artifact.to_bytes(Model(model.target, network.spec, t), {})) for t in (sparse, rounded)]
        where = {part for e in sparse.values() for part in e.parts()} & {"bitmask", "gaps"}
        rows.append(
            {"sparsity": sparsity, "float32": sizes[0], "int8": sizes[1], "places": " and ".join(sorted(where))}
        )
    print(pd.DataFrame(rows).to_string(index=False))
    dense = len(artifact.to_bytes(artifact.dense(dense_network(model), model.target), {}))
    write("sparse_sizes", rows, dense_bytes=dense)
    print(f"dense float32: {dense:,} bytes")


if __name__ == "__main__":
    main()
