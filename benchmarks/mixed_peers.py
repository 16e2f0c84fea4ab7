"""Bits by layer: NNCF's mixed precision on CIFAR-100's ResNet-18, beside ours.

    pip install nncf
    python benchmarks/mixed_peers.py teacher.safetensors --splits data/splits.safetensors

NNCF is no dependency of the project. Its `compress_weights` gives the layers that its criterion calls insensitive four
bits, the others eight; it ranks layers by the activations of 128 training images. Bytes are of all tensors that the
compressed network holds, as they are and after zstd, which our files go through as well; accuracy is of the validation
images. Ours are in records/cifar100_mixed_bits.json, by cifar100_bars.py.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import nncf
import torch
import zstandard
from record import write

from lowenergy import data
from lowenergy.runtimes import loading
from lowenergy.scoring import accuracy
from lowenergy.storage import artifact

CALIBRATED = 128  # images, NNCF's default
ZSTD_LEVEL = 19  # that of our files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--splits", type=Path, default=Path("data/splits.safetensors"))
    args = parser.parse_args()
    splits = data.load(args.splits)
    network = loading.network_of(artifact.read(args.teacher)[0]).eval()
    images = data.to_float(splits.train.images[:CALIBRATED])
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    rows: list[dict[str, Any]] = []
    for share in (0.0, 0.5, 1.0):  # of the weights, at four bits
        compressed = copy.deepcopy(network)
        if share:
            compressed = nncf.compress_weights(
                compressed,
                mode=nncf.CompressWeightsMode.INT4_SYM,
                ratio=share,
                all_layers=True,
                dataset=nncf.Dataset(list(images.split(1))),
                subset_size=CALIBRATED,
            )
        coded = {n: v for n, v in compressed.state_dict().items() if n in shapes and v.dtype == torch.uint8}
        stored = b"".join(value.contiguous().numpy().tobytes() for value in compressed.state_dict().values())
        logits = accuracy.predict(compressed, splits.validation.images, 100)
        rows.append(
            {
                "way": f"NNCF {nncf.__version__}, four bits for {share:.0%} of the weights" if share else "float32",
                "validation": {"accuracy": accuracy.measure(logits, splits.validation.labels)["accuracy"]},
                "bytes": len(stored),
                "zstd_bytes": len(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(stored)),
                "layers": len(coded),
                "at_four_bits": sum(v.shape != shapes[n] for n, v in coded.items()),  # two to a byte
            }
        )
        print(rows[-1], flush=True)
    write("mixed_peers", rows, calibrated=CALIBRATED)


if __name__ == "__main__":
    main()
