"""What a model takes: bytes of its file, weights and multiply-accumulates of the loaded network."""

from pathlib import Path

from torch import nn

from lowenergy import networks
from lowenergy.storage import artifact


def measure(network: nn.Module, path: str | Path, teacher: str | Path) -> dict[str, float | int]:
    """Return size_bytes, compression_ratio (against the float32 teacher's file) and bits_per_weight; codes_bytes,
    codebooks_bytes and other_bytes of a product-quantized file; parameters, nonzero_parameters and macs (per image, of
    the loaded network run once; zeros multiply too)."""
    size = Path(path).stat().st_size
    parameters = sum(w.numel() for w in network.parameters())
    shares = artifact.bytes_by_part(path)
    split = {f"{part}_bytes": count for part, count in shares.items()} if shares["codes"] else {}
    return {
        "size_bytes": size,
        "compression_ratio": Path(teacher).stat().st_size / size,
        "bits_per_weight": 8 * size / parameters,
        **split,
        "parameters": parameters,
        "nonzero_parameters": int(sum(w.count_nonzero() for w in network.parameters())),
        "macs": networks.macs(network),
    }
