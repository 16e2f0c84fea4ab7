"""Reading and writing files so that a kill leaves the old one or the new one, never half of one."""

import base64
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from lowenergy.base.errors import UserError

if TYPE_CHECKING:  # torch is imported where tensors are, so that what has none starts at once
    from torch import Tensor

HEADER = "lowenergy"  # the one metadata key: a JSON object, or base 85 of its zstd
LARGEST_HEADER = 2**26  # bytes: what is larger was made to fill memory
_writes = True


class FileError(UserError):
    """A file is missing, truncated or not what it should be; the message names it and what to do."""


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write beside the target, flush to disk, then rename over it.

    Raises:
        OSError: it cannot be written; what was there before still is, and half a file is not left behind.
    """
    write_pieces(path, [content])


def write_pieces(path: str | Path, pieces: Iterable[bytes]) -> None:
    """write_bytes of what need not be in memory at once; an error of whoever makes the pieces leaves no trace either.

    Raises:
        OSError: see write_bytes.
    """
    path = Path(path)
    if not _writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def leave_to_another() -> None:
    """From now on this process writes nothing: of several that share one stage (team.py), the first one does."""
    global _writes
    _writes = False


def write_json(path: str | Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_safetensors(path: str | Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Tensors and a JSON header in one safetensors file, written atomically."""
    write_bytes(path, safetensors_bytes(tensors, header))


def safetensors_bytes(tensors: Mapping[str, "Tensor"], header: Mapping[str, Any], *, small: bool = False) -> bytes:
    """Tensors and a JSON header as the content of a safetensors file; the same input gives the same bytes.

    Args:
        small: the header as base 85 of its zstd: of a model of 10 kB it is a seventh otherwise.
    """
    from safetensors.torch import save

    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    if small:
        text = base64.b85encode(zstandard.ZstdCompressor(level=19).compress(text.encode())).decode()
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return save(contiguous, {HEADER: text})


def read_safetensors(path: str | Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors and the JSON header of a file written by write_safetensors.

    Raises:
        FileError: missing, truncated, or without the header.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {})[HEADER]
            if not text.startswith("{"):
                packed = base64.b85decode(text)
                text = zstandard.ZstdDecompressor().decompress(packed, max_output_size=LARGEST_HEADER).decode()
            header = json.loads(text)
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 not a dict
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; `dvc repro` makes it, `dvc pull` fetches it from a remote") from None
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: truncated or not a safetensors file ({error}); make it again") from None
    except (KeyError, ValueError, zstandard.ZstdError):
        raise FileError(f"{path}: a safetensors file, but not one of lowenergy's: its header is missing") from None
