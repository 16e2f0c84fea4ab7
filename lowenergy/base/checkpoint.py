"""What a killed stage needs to resume, in a file that only a stage with the same inputs and code takes up again."""

import hashlib
import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowenergy
from lowenergy.base import files

FOLDER = Path(".checkpoints")
SECONDS = 60.0  # at most this much work is lost to a kill


def fingerprint(inputs: Iterable[Any], code: Iterable[str]) -> str:
    """Hash everything that decides the outcome: tensors, files, folders with their contents, values by their repr.

    The version of torch is included.

    Args:
        code: files and folders of lowenergy that take part. Only these: editing the report's page, for example, must
            not invalidate the checkpoints of a training.
    """
    digest = hashlib.sha256()
    package = Path(lowenergy.__path__[0])
    for item in [*inputs, *(package / place for place in code), torch.__version__]:
        known = _of_tensor(item) if isinstance(item, Tensor) else _of_files(item) if isinstance(item, Path) else item
        digest.update(repr(known).encode() + b"\n")
    return digest.hexdigest()


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    digest = hashlib.sha256()
    for part in tensor.detach().flatten().split(2**24):  # the tensor may be larger than memory
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return tensor.dtype, tuple(tensor.shape), digest.hexdigest()


def _of_files(path: Path) -> list[tuple[str, str]]:
    """The name and hash of each file, except byte code."""
    hashes = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and "__pycache__" not in file.parts:
            with file.open("rb") as content:
                hashes.append((str(file.relative_to(path)), hashlib.file_digest(content, "sha256").hexdigest()))
    return hashes


class Checkpoint:
    """One file of tensors and plain values."""

    def __init__(self, path: Path, fingerprint: str, device: torch.device) -> None:
        self.path, self.fingerprint, self.device = path, fingerprint, device
        self.saved = time.monotonic()

    def keep(self, content: Mapping[str, Any]) -> None:
        """Write the content atomically."""
        saved = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, **content}, saved)
        files.write_bytes(self.path, saved.getvalue())
        self.saved = time.monotonic()

    def keep_now_and_then(self, content: Mapping[str, Any]) -> None:
        """Call keep, unless it was called less than SECONDS ago.

        Tensors are copied first, so that a view is saved without the rest of the memory it looks into.
        """
        if time.monotonic() - self.saved > SECONDS:
            self.keep({key: value.clone() if isinstance(value, Tensor) else value for key, value in content.items()})

    def kept(self) -> dict[str, Any] | None:
        """What a killed run with the same inputs and code kept; None if there is none, or it is unreadable."""
        if not self.path.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
            made_from = content["fingerprint"]
        except Exception as error:  # a damaged checkpoint costs time, not the run
            print(f"{self.path} is unreadable ({error}); starting anew", flush=True)
            return None
        if made_from != self.fingerprint:
            print(f"{self.path} belongs to other params, data or code; starting anew", flush=True)
            return None
        return content
