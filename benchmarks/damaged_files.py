"""Model files that are damaged, or made to do harm: each must be read, or refused in one line, in less than 1 GiB.

python benchmarks/damaged_files.py --count 2000

Every mutant is a file of one of the encodings, with one to three changes: bytes flipped, lost and put in; any value of
its header replaced, removed, renamed or nested; tensors of other types, shapes and names; zstd frames that state sizes
of their own. All but the first kind are signed again, so that they pass the checksum. Each is shown, loaded, drawn from
and scored by the command line, and every fifth one exported.
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors.torch import save
from torch import Tensor

import lowenergy
from lowenergy import cli, data, networks, params
from lowenergy.base import files
from lowenergy.base.errors import UserError
from lowenergy.runtimes import int8
from lowenergy.storage import artifact
from lowenergy.storage.encodings import Coded, Constant, Dense, Encoding, Int8, Range, Sparse

MOST_MEMORY = 2**30
MOST_SECONDS = 60
BAD = ("TRACEBACK", "MEMORY", "TIME", "LINES")
USES = ("show", "load", "load coded", "score", "sample", "export")
SHIPPED = ("mnist-ebm-tiny", "mnist-ebm-12k", "mnist-ebm-23k")
PRETRAINED = Path(__file__).parents[1] / "pretrained"
STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 9, 255, 256, 1024, 2**16, 10**9, 2**31, 2**63, 10**30, -(10**9)),
    *(
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "resnet18",
        "torchvision.models.vit_b_16",
        "a:b",
        "\ud800",
    ),
    *("F32", "I8", "pq", "sparse", "constant", "\n\x1b[31m", [], {}, [1], [-1, 2], [10**9, 10**9], [2**20, 2**8]),
    *({"shape": [10**9]}, {"shape": [2**26], "value": 1.0}, ["constant", {"shape": [2**34], "value": 0.5}]),
    *(["sparse", {"shape": [2**30]}], ["int8", {"bits": 3, "shape": [4, 2**30]}], {"a": {"b": {}}}),
)


# -- what is damaged --------------------------------------------------------------------------------------------------


def sound(shipped: bool = True) -> list[bytes]:
    """One small file and more of each encoding, target and form of header."""
    found = [artifact.to_bytes(model, provenance) for model, provenance in _models()]
    if shipped:
        found += [(PRETRAINED / f"{name}.safetensors").read_bytes() for name in SHIPPED]
    return found


def _models() -> Iterator[tuple[artifact.Model, dict[str, Any]]]:
    sampler = {"step_size": 0.05, "noise": 0.015, "gradient_clamp": 5.0, "chain_steps": 2}
    classifier = {"stage": "teacher", "data": "digits", "seed": 0}
    spec = networks.Spec("cnn", 4, "3x3", "swish", "batch", channels=1, image_size=8, outputs=10)
    network = networks.build(spec, seed=0).eval()
    state = artifact.weights(network)
    yield artifact.dense(network, "classifier"), classifier
    ways: list[Callable[[str, Tensor], Encoding]] = [
        lambda name, value: Sparse(value * (value > value.mean())),
        lambda name, value: Constant(0.5, tuple(value.shape)),
        lambda name, value: Dense(value.half()),
        lambda name, value: _integers(value, 8),
        lambda name, value: _integers(value, 5),
        lambda name, value: _integers(value * (value > value.mean()), 8),
        lambda name, value: _integers(value * (value > value.mean()), 3),
        lambda name, value: _codes(value, uneven=False),
        lambda name, value: _codes(value, uneven=True),
    ]
    for way in ways:
        coded = {name: way(name, value) if value.ndim > 1 else Dense(value) for name, value in state.items()}
        yield artifact.Model("classifier", spec, coded), classifier
    energy = networks.Spec("compact", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=1, head="scalar")
    network = networks.build(energy, seed=0).eval()
    provenance = {"stage": "teacher", "data": "digits", "seed": 0, "sampler": sampler}
    yield artifact.dense(network, "ebm"), provenance
    scales = {name: int8.best_scale(layer.weight, 8) for name, layer in networks.coded_layers(network).items()}
    weights = {
        name: _integers(value, 8) if name.removesuffix(".weight") in scales else Dense(value)
        for name, value in artifact.weights(network).items()
    }
    places = [f"{layer}{part}" for layer in scales for part in (":in", ":out", ":gradient:in", ":gradient:out")]
    yield artifact.Model("ebm", energy, weights, dict.fromkeys(places, Range(0.02, 128))), provenance
    elsewhere = networks.Spec(
        "torchvision.models.squeezenet1_1", channels=3, image_size=32, outputs=10, arguments={"num_classes": 10}
    )
    yield artifact.dense(networks.build(elsewhere, seed=0).eval(), "classifier"), classifier


def _integers(value: Tensor, bits: int) -> Encoding:
    if value.ndim < 2:
        return Dense(value)
    scale = int8.best_scale(value, bits)
    return Int8(int8.rounded(value, scale, bits), scale, bits)


def _codes(value: Tensor, *, uneven: bool) -> Encoding:
    blocks = value.flatten().view(-1, 2)
    order = torch.linspace(0, 1, len(blocks)) ** (4 if uneven else 1)
    codes = (order * min(15, len(blocks) - 1)).long()
    return Coded(codes, blocks[: int(codes.max()) + 1].half(), tuple(value.shape))


# -- how --------------------------------------------------------------------------------------------------------------


def mutant(content: bytes, chance: random.Random, place: Path) -> bytes:
    """The file with one to three changes.

    Args:
        place: where to put it while it is taken apart.
    """
    if chance.random() < 0.15:
        for _ in range(chance.randint(1, 3)):
            content = chance.choice(OF_BYTES)(content, chance)
        return content
    place.write_bytes(content)
    tensors, header = files.read_safetensors(place)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice((_header, _header, _header, *OF_TENSORS))(header, tensors, chance)
    return signed(header, tensors, chance)


def signed(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> bytes:
    """The file that says so, its checksum that of what it says."""
    facts = {key: value for key, value in header.items() if key != "sha256"} if isinstance(header, dict) else header
    with contextlib.suppress(Exception):
        facts = {**facts, "sha256": artifact.digest(tensors, facts)}
    text = json.dumps(facts)
    if chance.random() < 0.03:
        nest = "[" * chance.choice((50, 500, 5000, 10**5))
        text = text[:-1] + f', "deep": {nest}{"]" * len(nest)}}}'
    if chance.random() < 0.5:
        packed = zstandard.ZstdCompressor().compress(text.encode())
        if chance.random() < 0.05:
            packed = stating(packed, chance.choice((2**20, 2**32, 2**44)))
        elif chance.random() < 0.03:
            packed = zstandard.ZstdCompressor().compress(b'{"a": [' + b"[]," * 2**25 + b"[]]}")
        text = base64.b85encode(packed).decode()
    return save(tensors, {files.HEADER: text})


def stating(frame: bytes, size: int) -> bytes:
    """A zstd frame that states to hold so many bytes, in eight of its own."""
    rest = frame[zstandard.frame_header_size(frame) :]
    return frame[:4] + bytes([0b11100000]) + size.to_bytes(8, "little") + rest


def _flip(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) or 1)
    return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) or 1)]


def _lose(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) or 1)
    return content[:at] + content[at + chance.randint(1, 100) :]


def _insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) or 1)
    return content[:at] + chance.randbytes(chance.randint(1, 100)) + content[at:]


def _first_bytes(content: bytes, chance: random.Random) -> bytes:
    """Another length of the list of tensors."""
    return chance.choice((0, 1, 2**20, 2**24, 2**40, 2**64 - 1)).to_bytes(8, "little") + content[8:]


def _in_list(content: bytes, chance: random.Random) -> bytes:
    """Another digit, letter or bracket in the list of tensors."""
    at = 8 + chance.randrange(max(1, min(len(content), 2000) - 8))
    return content[:at] + chance.choice(b'0123456789[]{},:"FUI').to_bytes(1, "little") + content[at + 1 :]


OF_BYTES = (_flip, _flip, _cut, _lose, _insert, _first_bytes, _in_list)


def _header(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    """One value of the header, at any depth."""
    whole: Any = header
    while True:
        keys = list(whole) if isinstance(whole, dict) else list(range(len(whole)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(whole[key], dict | list) and whole[key] and chance.random() < 0.85:
            whole = whole[key]
            continue
        break
    what = chance.random()
    if what < 0.65:
        whole[key] = copy.deepcopy(chance.choice(STRANGE))
    elif what < 0.8:
        del whole[key]
    elif what < 0.9:
        whole[key] = [whole[key]] if chance.random() < 0.5 else {"value": whole[key]}
    elif isinstance(whole, dict):
        whole[chance.choice(("", "x", "fc.weight", "fc.weight:codes", "width", "shape", "bits"))] = whole.pop(key)
    else:
        whole.append(copy.deepcopy(chance.choice(STRANGE)))


def _type(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    name = chance.choice(list(tensors)) if tensors else "x"
    kind = chance.choice(
        (torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64)
    )
    tensors[name] = tensors.get(name, torch.ones(3)).to(kind)


def _shape(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    name = chance.choice(list(tensors)) if tensors else "x"
    value = tensors.get(name, torch.ones(3))
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.flatten()[: value.numel() // 2].clone(),
        lambda: value.flatten()[:0].clone(),
        lambda: torch.cat([value.flatten()] * 2),
        lambda: value.new_zeros(0, 2**40),
        lambda: value.reshape(*value.shape, *[1] * chance.randint(1, 70)),
        lambda: value.flatten()[0].clone() if value.numel() else value,
    )
    tensors[name] = chance.choice(ways)()


def _content(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    name = chance.choice(list(tensors)) if tensors else "x"
    value = tensors.get(name, torch.ones(3))
    if value.numel():
        raw = value.contiguous().view(-1).view(torch.uint8)
        raw[chance.randrange(len(raw))] = chance.randrange(256)
        raw[chance.randrange(len(raw)) :] = chance.choice((0, 255, 128))
        tensors[name] = value


def _names(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    if not tensors or chance.random() < 0.3:
        tensors[chance.choice(("x", "", "fc.weight:gaps", "fc.weight:", "a:b:c", "fc..weight", "\n"))] = torch.ones(2)
        return
    name = chance.choice(list(tensors))
    value = tensors.pop(name)
    if chance.random() < 0.7:
        parts = ("", "codes", "symbols", "codebook", "gaps", "bitmask", "values", "scale", "packed", "nothing")
        tensors[f"{name.partition(':')[0]}:{chance.choice(parts)}"] = value


def _frame(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    """A part under zstd: of zeros without end, of a stated size, cut, doubled."""
    name = chance.choice(list(tensors)) if tensors else "x"
    count = chance.choice((1000, 2**20, 2**26, 2**28))
    packed = zstandard.ZstdCompressor().compress(bytes(min(count, 2**26)))
    what = chance.random()
    if what < 0.4:
        packed = stating(packed, chance.choice((0, 2**31, 2**40, 2**62)))
    elif what < 0.6:
        packed = packed[: chance.randrange(len(packed))]
    elif what < 0.7:
        packed = packed * 2
    tensors[name] = torch.frombuffer(bytearray(packed or b"x"), dtype=torch.uint8)
    undo = {"dtype": chance.choice(("F32", "U8", "I8", "F16", "BOOL", "Q4")), "shape": [count]}
    if isinstance(header.setdefault("packed", {}), dict):
        header["packed"][name] = undo


def _bomb(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    """A few bytes that decode to many, where the network has such a tensor or where it has none."""
    name = chance.choice([*(key.partition(":")[0] for key in tensors), "x"])
    count = chance.choice((2**20, 2**26, 2**28, 2**33, 2**40))
    for key in [key for key in tensors if key.partition(":")[0] == name]:
        del tensors[key]
    kind = chance.choice(("constant", "sparse", "int8", "pq"))
    facts: dict[str, Any] = {"shape": [chance.choice((1, 4)), count]}
    if kind == "constant":
        facts["value"] = 1.0
    elif kind == "sparse":
        tensors |= {f"{name}:gaps": torch.tensor([0], dtype=torch.uint8), f"{name}:values": torch.ones(1)}
    elif kind == "int8":
        facts["bits"] = 3
        tensors |= {
            f"{name}:gaps": torch.tensor([0], dtype=torch.uint8),
            f"{name}:scale": torch.ones(facts["shape"][0]),
        }
        tensors[f"{name}:packed"] = torch.zeros(1, dtype=torch.uint8)
    else:
        tensors |= {f"{name}:codes": torch.zeros(4, dtype=torch.uint8), f"{name}:codebook": torch.ones(1, 9).half()}
    if isinstance(header.setdefault("encodings", {}), dict):
        header["encodings"][name] = [kind, facts]


OF_TENSORS = (_type, _shape, _content, _names, _frame, _bomb)


# -- what becomes of them ---------------------------------------------------------------------------------------------


def tried(path: Path, uses: Sequence[str]) -> dict[str, str]:
    """What each use of a file ends in: `ok`, one line, or one of BAD."""
    ways: dict[str, Callable[[], Any]] = {
        "show": lambda: cli.main(["show", str(path)]),
        "load": lambda: _called(lowenergy.load(path)),
        "load coded": lambda: _called(lowenergy.load(path, coded=True)),
        "score": lambda: cli.main(["score", str(path), "--root", "nowhere"]),
        "sample": lambda: cli.main(["sample", str(path), "--n", "1", "--steps", "1", "--out", f"{path}.png"]),
        "export": lambda: cli.main(["export", str(path), "--out", f"{path}.onnx"]),
    }
    return {name: _outcome(ways[name]) for name in uses}


def _called(network: torch.nn.Module) -> None:
    with torch.no_grad():
        network(torch.zeros(2, *networks.spec_of(network).input_shape))


def _outcome(use: Callable[[], Any]) -> str:
    said, started = io.StringIO(), time.process_time()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            use()
        text = said.getvalue().strip()
    except UserError as error:
        text = str(error)
    except BaseException:
        return f"TRACEBACK {traceback.format_exc()}"
    taken = memory("VmHWM") - before
    if taken > MOST_MEMORY or "not enough memory" in text or "MemoryError" in text:
        return f"MEMORY {taken:,} bytes: {text}"
    if time.process_time() - started > MOST_SECONDS:
        return f"TIME {time.process_time() - started:.0f} s: {text}"
    if text.count("\n") or not text.isprintable():
        return f"LINES {text!r}"
    return text or "ok"


def memory(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def _limit_memory(more: int = MOST_MEMORY) -> None:
    """What is allocated and never used counts, too."""
    most = memory("VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a directory for those that end badly")
    args = parser.parse_args()
    from record import write

    torch.set_num_threads(1)
    originals = sound()
    outcomes: dict[str, Counter[str]] = {use: Counter() for use in USES}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        data.save(data.prepare(params.load(PRETRAINED.parent / "params.yaml").data, seed=0), data.SPLITS)
        path = Path(folder) / "m.safetensors"
        for content in originals:
            path.write_bytes(content)
            print(tried(path, USES), flush=True)  # what is sound works; and all is imported
        _limit_memory()
        for number in range(args.count):
            chance = random.Random(args.seed * 10**6 + number)
            content = mutant(chance.choice(originals), chance, path)
            path.write_bytes(content)
            for use, outcome in tried(path, USES if number % 5 == 0 else USES[:-1]).items():
                kind = next((kind for kind in BAD if outcome.startswith(kind)), "ok" if outcome == "ok" else "refused")
                outcomes[use][kind] += 1
                if kind in BAD:
                    print(f"{number} {use}: {outcome}", flush=True)
                    if args.keep:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        (args.keep / f"{number}.safetensors").write_bytes(content)
            if number % 100 == 99:
                print(f"{number + 1} mutants: { ({use: dict(found) for use, found in outcomes.items()}) }", flush=True)
    rows = [
        {"use": use, **{kind.lower(): found[kind] for kind in ("ok", "refused", *BAD)}}
        for use, found in outcomes.items()
    ]
    write("damaged_files", rows, seed=args.seed, mutants=args.count)


if __name__ == "__main__":
    main()
