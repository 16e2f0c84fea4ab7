"""One file per model: tensors in their compressed encoding, and a JSON header that says how to read them.

A file is plain safetensors. Its header holds the format version, the target, the network's spec, the encoding of each
tensor and where the model came from; docs/format.md is the reference. Parts that zstd makes smaller are stored that
way, except in files of dense float32, which are the yardstick of every compression ratio.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor, nn

from lowenergy import networks
from lowenergy.base.errors import UserError, one_line
from lowenergy.base.files import FileError, read_safetensors, safetensors_bytes, unzstd, write_bytes
from lowenergy.storage import header as schema
from lowenergy.storage.encodings import Dense, Encoding, Part, Range, decoded_shape, from_parts
from lowenergy.storage.header import FORMAT
from lowenergy.storage.limits import TooLargeError, bounded, limit_of, too_large

LOOKED_AT = 3  # images on which a network that was read back is compared with the one that was written
REMEMBERED = 4  # outputs of a network from elsewhere for one image, stored to five digits
ALIKE = 0.002  # of their norm; another activation changes them by hundredths at least, another machine by 1e-5

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "C64": torch.complex64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Model:
    """A compressed network as it is stored."""

    target: str
    spec: networks.Spec
    tensors: Mapping[str, Encoding]  # by the network's own names
    activations: Mapping[str, Range] = field(default_factory=dict)  # of static int8 networks
    tied: Mapping[str, str] = field(default_factory=dict)  # other names of a tensor -> its first name
    original: networks.Network | None = None  # whose tensors these are, unaltered; what is stored must answer like it
    origin: str = ""  # the file that it was read from
    limit: int | None = None  # bytes that its network may take, as the file may be a stranger's
    answers: tuple[float, ...] | None = None  # of a network from elsewhere; None if not computed yet

    def build(self) -> networks.Network:
        """The network, with every tensor decoded to float32.

        Raises:
            FileError: the network cannot be built, the tensors do not fit it, or it is not the one that was stored.
            TooLargeError: it takes more memory than it may.
        """
        network, answers = self._built()
        if self.answers and (off := _apart(answers, self.answers)) > ALIKE:
            raise FileError(
                f"{self.origin or self.spec.name}: with its weights this {self.spec.name} gives other answers than the "
                f"one that was stored ({off:.2g} of their norm off): another was handed over, or its code has changed"
            )
        return network

    def answers_of(self) -> tuple[float, ...]:
        """First outputs of a network from elsewhere, whose code is in no file, for one fixed image; () for others."""
        return self._built()[1] if self.answers is None else self.answers

    def _built(self) -> tuple[networks.Network, tuple[float, ...]]:
        try:
            with bounded(self.limit, self.origin):
                state = {name: encoded.decode() for name, encoded in self.tensors.items()}
                state |= {name: state[first] for name, first in self.tied.items() if name not in state}
                network = networks.build_with(self.spec, state)
                return network, _remembered(network) if self.spec.is_foreign and self.answers != () else ()
        except TooLargeError:
            raise
        except Exception as error:  # a constructor may raise anything over a header, a network over tensors
            name = "" if type(error) is ValueError or isinstance(error, UserError) else f"{type(error).__name__}: "
            where = self.origin or self.spec.name
            raise FileError(f"{where}: its network cannot be built: {name}{one_line(error)}") from None


def dense(network: networks.Network, target: str) -> Model:
    """The model that stores a network as it is, in float32."""
    tensors = {name: Dense(value) for name, value in weights(network).items()}
    return Model(target, network.spec, tensors, tied=network.tied, original=network)


weights = networks.stored_state


def _packed(tensor: Tensor) -> tuple[Tensor, dict[str, Any] | None]:
    """The tensor compressed with zstd and the facts to undo that, or the tensor itself where that is no larger."""
    raw = tensor.detach().cpu().contiguous()
    small = zstandard.ZstdCompressor(level=19).compress(_content(raw).numpy().tobytes())
    dtype = next(name for name, kind in DTYPES.items() if kind == raw.dtype)
    undo = {"dtype": dtype, "shape": list(raw.shape)}
    if len(small) + len(str(undo)) >= raw.numel() * raw.element_size():
        return raw, None
    return torch.frombuffer(bytearray(small), dtype=torch.uint8), undo


def _content(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor of any kind, without a copy."""
    return tensor.view(-1).view(torch.uint8)


def _stored(tensor: Tensor, undo: Mapping[str, Any] | None) -> Part:
    """The type and shape of a part once it is unpacked."""
    if undo is None:
        return Part(tensor.dtype, tuple(tensor.shape))
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or undo["dtype"] not in DTYPES:
        raise ValueError(f"zstd of {undo['dtype']} in {tensor.ndim} dimensions of {tensor.dtype}")
    return Part(DTYPES[undo["dtype"]], tuple(undo["shape"]))


def _unpacked(tensor: Tensor, part: Part) -> Tensor:
    raw = unzstd(tensor.numpy().tobytes(), part.bytes)
    if len(raw) != part.bytes:
        raise ValueError(f"zstd of {len(raw):,} bytes, where {part.bytes:,} were expected")
    return torch.frombuffer(bytearray(raw), dtype=part.dtype).view(part.shape)


def save(model: Model, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write the model atomically; the same model and provenance give the same bytes.

    What was written is read back before it takes the file's name: it must say the same, and its network must give the
    same outputs, bit for bit.

    Raises:
        FileError: it does not, or a tensor has no form in a file; nothing is written.
    """
    write_bytes(path, to_bytes(model, provenance), lambda written: _read_back(written, model, provenance, str(path)))


def _read_back(written: Path, model: Model, provenance: Mapping[str, Any], path: str) -> None:
    try:
        again, header = _read(written, path, None, None)
    except FileError as error:
        raise FileError(f"{path}: what was written cannot be read again ({error}); nothing is written") from None
    again = replace(again, spec=replace(again.spec, given=model.spec.given), limit=None)
    model = replace(model, origin=path)
    facts = [_said(model, provenance), _said(again, header["provenance"])]
    names = {**model.tensors, **again.tensors}
    wrong = [name for name in names if not _same(model.tensors.get(name), again.tensors.get(name))]
    if wrong or facts[0] != facts[1]:
        raise FileError(f"{path}: {wrong[0] if wrong else 'its header'} cannot be read as it is; nothing is written")
    network = again.build()
    if words := _difference(network, model.build() if model.original is None else model.original):
        raise FileError(
            f"{path}: read again, {model.spec.name} gives {words} than in memory; what it knows beyond its arguments "
            "and its state_dict is in no file. Nothing is written"
        )


def _said(model: Model, provenance: Mapping[str, Any]) -> Any:
    """What a header says about a model, encodings and answers left out, after a round trip through JSON."""
    tied = {name: first for name, first in model.tied.items() if name not in model.tensors}
    return json.loads(json.dumps([model.target, model.spec.as_header(), _ranges(model), tied, provenance]))


def _ranges(model: Model) -> dict[str, list[float]]:
    """Scale, zero point, and the bits if below eight, so that a reader that only knows eight refuses the file."""
    return {name: [*activation][: 2 if activation.bits == 8 else 3] for name, activation in model.activations.items()}


def _same(one: Encoding | None, other: Encoding | None) -> bool:
    """True if both are of the same kind and have the same content, bit for bit."""
    if type(one) is not type(other):
        return False
    for old, new in ((getattr(one, attribute), getattr(other, attribute)) for attribute in vars(one)):
        if isinstance(old, Tensor):
            old, new = old.detach().cpu().contiguous(), new.contiguous()
            if old.dtype != new.dtype or old.shape != new.shape or not torch.equal(_content(old), _content(new)):
                return False
        elif old != new:
            return False
    return True


def _difference(network: nn.Module, original: networks.Network) -> str | None:
    """Say how a newly built network's outputs differ from the original's, if at all; leave the original as it is."""
    device = next((parameter.device for parameter in original.parameters()), torch.device("cpu"))
    training = {module: module.training for module in original.modules()}
    original.cpu().eval()
    try:
        of_original = dict(original.named_parameters())
        for name, new in network.named_parameters():
            old = of_original.get(name, new)
            if new.shape == old.shape and 0 not in old.stride():  # the order in memory is the order of sums
                new.data = torch.empty_strided(old.shape, old.stride(), dtype=new.dtype).copy_(new.data)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(LOOKED_AT, *original.spec.input_shape, generator=generator) * 2 - 1
        one, other = (_answers(each, images) for each in (network, original))
    finally:
        original.to(device)
        for module, was in training.items():
            module.training = was
    if one.shape != other.shape:
        return f"{tuple(one.shape)} outputs, not {tuple(other.shape)}"
    if torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        return None
    return f"other outputs, by up to {float((one - other).abs().max()):.3g},"


def _remembered(network: networks.Network) -> tuple[float, ...]:
    """The first outputs for an image of noise that is the same everywhere; () if they are not finite."""
    shape = network.spec.input_shape
    noise = torch.arange(1, math.prod(shape) + 1) * 2654435761 % 2**32  # Knuth's multiplicative hashing
    outputs = _answers(network.eval(), (noise.double() / 2**31 - 1).float().view(1, *shape)).flatten()[:REMEMBERED]
    return tuple(float(f"{value:.5g}") for value in outputs.tolist()) if outputs.isfinite().all() else ()


def _apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The distance between two answers, as a fraction of the norm of the wanted one."""
    return networks.distance(torch.tensor([found]), torch.tensor([wanted]))


def _answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some networks draw random numbers even in evaluation mode
        answers: Tensor = network(images)
    return answers


def to_bytes(model: Model, provenance: Mapping[str, Any]) -> bytes:
    """The content of the model's file.

    Raises:
        FileError: a tensor, or something in the header, has no form in a file.
    """
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, Any] = {}
    packed: dict[str, Any] = {}
    plain = all(encoded.kind == "dense" for encoded in model.tensors.values())
    for name, encoded in model.tensors.items():
        if encoded.kind != "dense":
            encodings[name] = [encoded.kind, encoded.facts()]
        for part, tensor in encoded.parts().items():
            if tensor.dtype not in DTYPES.values():
                raise FileError(f"{model.spec.name}: {name} is {tensor.dtype}, which no file holds; store another type")
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
        "activations": _ranges(model),
        "tied": {name: first for name, first in model.tied.items() if name not in model.tensors},
        "answers": list(model.answers_of()) if model.spec.is_foreign else [],
        "provenance": provenance,
    }
    header = {key: value for key, value in header.items() if value}
    try:
        return safetensors_bytes(tensors, {**header, "sha256": digest(tensors, header)}, small=not plain)
    except TypeError as error:
        raise FileError(f"{model.spec.name}: its arguments and provenance have no form in a file: {error}") from None


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of all that a file says: its header, except this digest, and its tensors as stored."""
    hasher = hashlib.sha256()
    facts = {key: value for key, value in header.items() if key != "sha256"}
    hasher.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {raw.dtype} {tuple(raw.shape)}".encode())
        hasher.update(_content(raw).numpy().data)
    return hasher.hexdigest()


def read(
    path: str | Path, *, trust: Collection[str] | None = (), limit: int | None = None
) -> tuple[Model, dict[str, Any]]:
    """Read the stored model and its whole header.

    Args:
        trust: import paths, modules or files that its network may come from, besides the zoo, torchvision and timm;
            None to skip this check, where the network will not be built from what the file names.
        limit: bytes that its tensors may decode to and its network may take. None allows what any small network takes,
            and a large one in proportion to its file (limits.py).
    Raises:
        FileError: the file is missing, truncated, tampered with, damaged, or written by a newer version.
        TooLargeError: it would take more than `limit`.
        NetworkError: its network comes from none of the trusted places.
    """
    return _read(Path(path), str(path), trust, limit)


def _read(path: Path, origin: str, trust: Collection[str] | None, limit: int | None) -> tuple[Model, dict[str, Any]]:
    """
    Args:
        origin: the file's name in messages.
    """
    tensors, header = read_safetensors(path)
    if "format" not in header:
        raise FileError(f"{origin}: holds no model; give one of models/ or pretrained/")
    if header["format"] != FORMAT:
        raise FileError(f"{origin}: format {header['format']!r} is not {FORMAT}; update lowenergy or make it again")
    if header.get("sha256") != digest(tensors, header):
        raise FileError(f"{origin}: altered since it was written (its SHA-256 does not fit); make it again")
    limit = limit_of(path.stat().st_size) if limit is None else limit
    try:
        if strange := next((name for name in tensors if not name.isprintable()), None):
            raise ValueError(f"{strange!a} is no name of a tensor")
        schema.check(header)
        model = replace(_decoded(tensors, header, origin, limit), origin=origin, limit=limit)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"{origin}: the content does not fit its header: {one_line(error)}; make it again") from None
    if trust is not None:
        networks.check_trust(model.spec, trust, origin)
    return model, {**header, "provenance": header.get("provenance", {})}


def _decoded(tensors: Mapping[str, Tensor], header: Mapping[str, Any], origin: str, limit: int) -> Model:
    packed, kinds = header.get("packed", {}), header.get("encodings", {})
    stored: dict[str, dict[str, str]] = {name: {} for name in kinds}  # the keys of each tensor's parts
    for key in tensors:
        name, _, part = key.partition(":")
        stored.setdefault(name, {})[part] = key
    if strange := packed.keys() - tensors.keys():
        raise ValueError(f"packed.{strange.pop()} is of no tensor")
    said = {
        name: {part: _stored(tensors[key], packed.get(key)) for part, key in keys.items()}
        for name, keys in stored.items()
    }
    size = 0
    for name, parts in said.items():
        try:
            shape = decoded_shape(parts, *kinds.get(name, ("dense", {})))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
        size += 4 * math.prod(shape) + sum(part.bytes for part in parts.values())
    if size > limit:
        raise too_large(origin, size, limit)
    encoded = {}
    for name, keys in stored.items():
        content = {
            part: _unpacked(tensors[key], said[name][part]) if key in packed else tensors[key]
            for part, key in keys.items()
        }
        encoded[name] = from_parts(content, *kinds.get(name, ("dense", {})))
    activations = {name: Range(float(scale), *rest) for name, (scale, *rest) in header.get("activations", {}).items()}
    tied = header.get("tied", {})
    if strange := {name: first for name, first in tied.items() if first not in encoded or name in encoded}:
        raise ValueError(f"tied.{next(iter(strange))} is {strange[next(iter(strange))]!r}, which is no other tensor")
    spec, answers = networks.Spec(**header["spec"]), tuple(header.get("answers", ()))
    return Model(header["target"], spec, encoded, activations, tied=tied, answers=answers)


def stored_bytes(path: str | Path) -> dict[str, int]:
    """Bytes of each tensor in the file, without tensors that only the header describes."""
    spent: dict[str, int] = {}
    for key, tensor in read_safetensors(path)[0].items():
        name = key.partition(":")[0]
        spent[name] = spent.get(name, 0) + tensor.numel() * tensor.element_size()
    return spent


def bytes_by_part(path: str | Path) -> dict[str, int]:
    """What the file's bytes are spent on: codes, codebooks, and all the rest, header included."""
    tensors, _ = read_safetensors(path)
    spent = {"codes": 0, "codebooks": 0}
    for key, tensor in tensors.items():
        kind = {"codes": "codes", "symbols": "codes", "codebook": "codebooks"}.get(key.partition(":")[2])
        if kind:
            spent[kind] += tensor.numel() * tensor.element_size()
    return spent | {"other": Path(path).stat().st_size - sum(spent.values())}


def sha256(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; `dvc repro` makes it, `dvc pull` fetches it from a remote") from None
