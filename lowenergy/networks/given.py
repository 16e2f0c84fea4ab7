"""Weights as people have them: a state dict, or a checkpoint that holds one among other things."""

import argparse
import pathlib
import re
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowenergy.base.files import FileError
from lowenergy.networks.foreign import same
from lowenergy.networks.importing import first_line
from lowenergy.networks.network import Network, tied

State = dict[str, Tensor]

# What checkpoints hold beside tensors and plain values and is mere data: making one runs no code from the file.
HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined] # its older name
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]
DEEPEST = 4  # levels of a checkpoint to look into
WRAPPERS = "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."  # which torch puts into names
COUNTER = "n_averaged"  # which torch.optim.swa_utils keeps beside the weights


def take_weights(network: Network, path: str, where: str) -> None:
    """Load weights from a safetensors file, or from a file that torch.save wrote (read without unpickling code).

    From a checkpoint, this takes the only state dict that fits, without the prefixes that wrappers have given to all of
    its names, and prints a line that says so.

    Raises:
        FileError: the file is missing, has another format, or holds no state dict that fits or several.
    """
    origin = f"{where}.weights {path}"
    body = network.module
    content = _read(path, origin)
    dicts = {key: _named_as(state, body) for key, state in _states(content)}
    if not dicts:
        kept = f", but {', '.join(map(str, content))}" if isinstance(content, Mapping) and content else ""
        raise FileError(f"{origin}: holds no state dict{kept}; save module.state_dict()")
    fitting = [key for key, (state, _) in dicts.items() if not _misfits(state, body)]
    others: dict[str, list[str]] = {}
    if not fitting:
        for whole, state in _states(content):
            for key, part, others_of in _parts(whole, state, body):
                fitting.append(key)
                dicts[key], others[key] = part, others_of
    if len(fitting) > 1:
        raise FileError(f"{origin}: {' and '.join(fitting)} would fit; keep one: torch.save(checkpoint[...], ...)")
    known = body.state_dict().keys()
    key = fitting[0] if fitting else max(dicts, key=lambda key: (len(known & dicts[key][0].keys()), len(dicts[key][0])))
    state, prefix = dicts[key]
    _load(body, state, f"{origin}{f', {key},' if key else ''} does not fit {network.spec.name}")
    if key or prefix:
        rest = others.get(key, [*content] if key else [])
        left = ", ".join(str(name) for name in rest if name != key.partition(".")[0])
        said = f"took {key or 'the weights'}{f' without the prefix {prefix}' if prefix else ''}"
        print(f"{origin}: {said}{f', and left {left}' if left else ''}", flush=True)


def _read(path: str, origin: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileError(f"{origin}: {'a directory; name the file in it' if Path(path).is_dir() else 'no such file'}")
    try:
        return load_file(path)
    except SafetensorError:
        pass
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and unpicklers raise nearly anything
        if named := re.search(r"GLOBAL (\S+)|Unsupported (?:global|class) (\S+)", str(error)):
            reason = f"it holds a {(named[1] or named[2]).rstrip('.,')}, and making one could run code"
        elif "TorchScript" in str(error):
            reason = "it is TorchScript"
        elif not (head := _first_bytes(path)).startswith((b"PK", b"\x80")):
            reason = f"it begins with {head.decode(errors='replace').splitlines()[0]!r}" if head else "it is empty"
            reason += ", a pointer of Git LFS: `git lfs pull` fetches the file" * (b"git-lfs" in head)
        else:
            reason = first_line(error)[:200]
        raise FileError(
            f"{origin}: neither safetensors nor a state dict to be read safely ({reason}); "
            "save module.state_dict() alone, best with safetensors"
        ) from None


def _first_bytes(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(60)


def _states(given: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield every mapping of names to tensors in a checkpoint, with the keys that lead to it."""
    if not isinstance(given, Mapping) or depth > DEEPEST:
        return
    state = {name: value for name, value in given.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if state:
        yield key, _versioned(state, getattr(given, "_metadata", {}))
    for name, part in given.items():
        yield from _states(part, f"{key}.{name}" if key else str(name), depth + 1)


def _parts(whole: str, state: State, body: nn.Module) -> Iterator[tuple[str, tuple[State, str], list[str]]]:
    """Yield each part that fits, from a state of several networks or of one network and its loss.

    Each comes with its key, what _named_as makes of it, and the names of the others.
    """
    first = next(iter(body.state_dict()), "")
    for prefix in dict.fromkeys(name.removesuffix(first) for name in state if name.endswith(f".{first}")):
        part = {name: value for name, value in state.items() if name.startswith(prefix)}
        named = _named_as(_versioned(part, state._metadata), body)  # type: ignore[attr-defined]
        if not _misfits(named[0], body):
            others = dict.fromkeys(name.partition(".")[0] for name in state.keys() - part.keys())
            yield f"{whole}.{prefix}".strip("."), named, sorted(others)


def _versioned(state: Mapping[str, Tensor], versions: Mapping[str, Any]) -> State:
    """Return the state as load_state_dict reads it, with the versions of the modules that wrote it."""
    made = OrderedDict(state)
    made._metadata = versions  # type: ignore[attr-defined]
    return made


def _named_as(state: State, body: nn.Module) -> tuple[State, str]:
    """Return the state under the names that the network knows, and the prefix that all of them had before."""
    known, versions = body.state_dict().keys(), state._metadata  # type: ignore[attr-defined]
    if COUNTER not in known:
        state = {name: value for name, value in state.items() if name != COUNTER}
    parts = {name: _unwrapped(name).split(".") for name in state}
    columns = zip(*(part[:-1] for part in parts.values()), strict=False)
    common = [column[0] for column in takewhile(lambda column: len({*column}) == 1, columns)]

    def short(level: int) -> dict[str, str]:
        return {name: ".".join(part[level:]) for name, part in parts.items()}

    level = max(range(len(common) + 1), key=lambda level: (len(known & set(short(level).values())), -level))
    inner = "".join(wrapper for wrapper in WRAPPERS if any(wrapper in name for name in state))
    prefix = inner + "".join(f"{part}." for part in common[:level])
    named = {new: state[old] for old, new in short(level).items()}
    cut = ".".join(common[:level])
    versions = {_unwrapped(module).removeprefix(cut).removeprefix("."): of for module, of in versions.items()}
    return _versioned(named, versions), prefix


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _misfits(state: State, body: nn.Module) -> list[str]:
    """List the tensors that only the state or only the network has, or that have another shape in each."""
    wanted = {name: tuple(value.shape) for name, value in body.state_dict().items() if isinstance(value, Tensor)}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    first = tied(body)
    there = {first.get(name, name) for name in shapes}  # one name of a tensor is enough
    optional = {n for n in wanted if n.endswith("num_batches_tracked") or first.get(n, n) in there} - shapes.keys()
    return [
        f"{name}: the network has {wanted.get(name, 'none')}, the file {shapes.get(name, 'none')}"
        for name in dict.fromkeys([*wanted, *shapes])
        if wanted.get(name) != shapes.get(name) and name not in optional
    ]


def _load(body: nn.Module, state: State, problem: str) -> None:
    """Load a state that fits, or that the network itself can convert, as from an older weight norm.

    Raises:
        FileError: it does not fit; the first three misfits are named.
    """
    if not state._metadata:  # type: ignore[attr-defined] # safetensors keeps no versions: use today's
        state = _versioned(state, body.state_dict()._metadata)  # type: ignore[attr-defined]
    own = dict(body.named_parameters())
    if odd := [f"{name} {why}" for name, value in state.items() if (why := _odd(value, own.get(name)))]:
        raise FileError(f"{problem}: {'; '.join(odd[:3])}")
    wrong, first = _misfits(state, body), tied(body)
    try:
        left = body.load_state_dict(state, strict=False)
    except Exception as error:  # usually because shapes differ
        wrong = wrong or [(str(error).strip().splitlines() or [type(error).__name__])[-1].strip()]
    else:
        missing = [name for name in left.missing_keys if not name.endswith("num_batches_tracked")]
        wrong = wrong if missing or left.unexpected_keys else []  # no misfits if older names were converted
    wrong += [
        f"{one} and {other} are one tensor in the network, and two in the file"
        for other, one in first.items()
        if {one, other} <= state.keys() and not same(state[one], state[other])
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FileError(f"{problem}: {'; '.join(wrong[:3])}{more}")


def _odd(value: Tensor, own: Tensor | None) -> str | None:
    """Say why a tensor from a file cannot be the network's; None if nothing speaks against it."""
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_meta:
        return "has no values (it is on the device meta)"
    if value.is_quantized or value.layout != torch.strided:
        return f"is {kind if value.is_quantized else str(value.layout).removeprefix('torch.')}, and not a plain tensor"
    if own is None or not own.is_floating_point() or value.is_floating_point():
        return None
    return f"is {kind}, where numbers like {str(own.dtype).removeprefix('torch.')} are needed"
