"""One file per model: tensors in their compressed encoding, and a JSON header that says how to read them.

A file is plain safetensors. Its header holds the format version, the target, the network's spec, the encoding of each
tensor and where the model came from; docs/format.md is the reference. Parts that shrink under zstd are stored so,
except in files of dense float32, which are the yardstick of every compression ratio.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.files import FileError, read_safetensors, safetensors_bytes, write_bytes
from lowenergy.storage.encodings import Dense, Encoding, from_parts

FORMAT = 1
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Model:
    """A compressed network as it is stored."""

    target: str
    spec: networks.Spec
    tensors: Mapping[str, Encoding]  # by the network's own names
    activations: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # static int8: (scale, zero point)
    body: nn.Module | None = None  # of a network from elsewhere, handed over instead of imported

    def build(self) -> networks.AnyNetwork:
        """The network, with every tensor decoded to float32."""
        state = {name: encoded.decode() for name, encoded in self.tensors.items()}
        return networks.build_with(self.spec, state, copy.deepcopy(self.body))


def dense(network: networks.AnyNetwork, target: str) -> Model:
    """A network stored as it is, float32."""
    return Model(target, network.spec, {name: Dense(value) for name, value in weights(network).items()})


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The state that matters after training: BatchNorm's step counters do not."""
    return {k: v.detach().cpu() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def _packed(tensor: Tensor) -> tuple[Tensor, dict[str, Any] | None]:
    """The tensor under zstd with what it takes to undo it, or the tensor itself where that is smaller."""
    raw = tensor.detach().cpu().contiguous()
    small = zstandard.ZstdCompressor(level=19).compress(raw.numpy().tobytes())
    dtype = next(name for name, kind in DTYPES.items() if kind == raw.dtype)
    undo = {"dtype": dtype, "shape": list(raw.shape)}
    if len(small) + len(str(undo)) >= raw.numel() * raw.element_size():
        return raw, None
    return torch.frombuffer(bytearray(small), dtype=torch.uint8), undo


def _unpacked(tensor: Tensor, undo: dict[str, Any]) -> Tensor:
    kind, shape = DTYPES[undo["dtype"]], undo["shape"]
    size = torch.Size(shape).numel() * kind.itemsize
    raw = zstandard.ZstdDecompressor().decompress(tensor.numpy().tobytes(), max_output_size=size)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes where {size} were expected")
    return torch.frombuffer(bytearray(raw), dtype=kind).view(shape)


def save(model: Model, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write the model atomically; the same model and provenance give the same bytes."""
    write_bytes(path, to_bytes(model, provenance))


def to_bytes(model: Model, provenance: Mapping[str, Any]) -> bytes:
    """The content of the model's file."""
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, Any] = {}
    packed: dict[str, Any] = {}
    plain = all(encoded.kind == "dense" for encoded in model.tensors.values())
    for name, encoded in model.tensors.items():
        if encoded.kind != "dense":
            encodings[name] = [encoded.kind, encoded.facts()]
        for part, tensor in encoded.parts().items():
            key = f"{name}:{part}" if part else name
            tensors[key], undo = (tensor, None) if plain else _packed(tensor)
            if undo:
                packed[key] = undo
    header = {
        "format": FORMAT,
        "target": model.target,
        "spec": model.spec.as_header(),
        "encodings": encodings,
        "packed": packed,
        "activations": model.activations,
        "provenance": provenance,
    }
    header = {key: value for key, value in header.items() if value}
    return safetensors_bytes(tensors, {**header, "sha256": digest(tensors, header)}, small=not plain)


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of all that a file says: its header, but for this digest, and its tensors as stored."""
    found = hashlib.sha256()
    facts = {key: value for key, value in header.items() if key != "sha256"}
    found.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {raw.dtype} {tuple(raw.shape)}".encode())
        found.update(raw.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read(path: str | Path, *, trust: Collection[str] | None = ()) -> tuple[Model, dict[str, Any]]:
    """The stored model and its whole header.

    Args:
        trust: import paths, modules or files that its network may come from, besides the zoo, torchvision and timm;
            None where the network will not be built.
    Raises:
        FileError: missing, truncated, tampered with, or written by a newer version.
        NetworkError: its network is of none of these.
    """
    tensors, header = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise FileError(f"{path}: format {header.get('format')} is not {FORMAT}; update lowenergy or make it again")
    if header.get("sha256") != digest(tensors, header):
        raise FileError(f"{path}: altered since it was written (its SHA-256 does not fit); make it again")
    try:
        packed, kinds = header.get("packed", {}), header.get("encodings", {})
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in kinds}
        for key, tensor in tensors.items():
            name, _, part = key.partition(":")
            parts.setdefault(name, {})[part] = _unpacked(tensor, packed[key]) if key in packed else tensor
        encoded = {name: from_parts(found, *kinds.get(name, ("dense", {}))) for name, found in parts.items()}
        activations = {name: (float(s), int(z)) for name, (s, z) in header.get("activations", {}).items()}
        spec = networks.Spec(**header["spec"])
        model = Model(header["target"], spec, encoded, activations)
    except (KeyError, TypeError, ValueError, RuntimeError, zstandard.ZstdError) as error:
        raise FileError(f"{path}: the content does not fit its header ({error}); make it again") from None
    if trust is not None:
        networks.check_trust(spec, trust, str(path))
    return model, header


def shares(path: str | Path) -> dict[str, int]:
    """What the file's bytes are spent on: codes, codebooks, and all the rest, header included."""
    tensors, _ = read_safetensors(path)
    spent = {"codes": 0, "codebooks": 0}
    for key, tensor in tensors.items():
        kind = {"codes": "codes", "symbols": "codes", "codebook": "codebooks"}.get(key.partition(":")[2])
        if kind:
            spent[kind] += tensor.numel() * tensor.element_size()
    return spent | {"other": Path(path).stat().st_size - sum(spent.values())}


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
