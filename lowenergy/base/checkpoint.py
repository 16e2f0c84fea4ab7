"""What a killed stage needs to go on, in a file that only a stage of the same inputs and code takes up again."""

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowenergy
from lowenergy.base import files

FOLDER = Path(".checkpoints")
SECONDS = 60.0  # at most this much work is lost to a kill


def fingerprint(inputs: Sequence[Any]) -> str:
    """Of whatever decides the outcome (tensors, files or folders of code, what has a repr), and of lowenergy's code."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Tensor):
            for part in item.detach().split(4096):  # it may be larger than memory
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(item, Path):
            for file in sorted(item.rglob("*")) if item.is_dir() else [item]:
                if file.is_file() and file.suffix == ".py":
                    digest.update(file.read_bytes())
        else:
            digest.update(repr(item).encode())
    for source in sorted(Path(lowenergy.__path__[0]).rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """One file of tensors and plain values."""

    def __init__(self, path: Path, fingerprint: str, device: torch.device) -> None:
        self.path, self.fingerprint, self.device = path, fingerprint, device
        self.saved = time.monotonic()

    def keep(self, content: Mapping[str, Any]) -> None:
        """Written atomically."""
        saved = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, **content}, saved)
        files.write_bytes(self.path, saved.getvalue())
        self.saved = time.monotonic()

    def keep_now_and_then(self, content: Mapping[str, Any]) -> None:
        """keep, unless that was less than SECONDS ago; of views what they show, not all that lies beneath."""
        if time.monotonic() - self.saved > SECONDS:
            self.keep({key: value.clone() if isinstance(value, Tensor) else value for key, value in content.items()})

    def kept(self) -> dict[str, Any] | None:
        """What a killed run with the same inputs kept; None without one."""
        if not self.path.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        except Exception as error:  # a damaged checkpoint costs time, not the run
            print(f"{self.path} is unreadable ({error}); starting anew", flush=True)
            return None
        if content["fingerprint"] != self.fingerprint:
            print(f"{self.path} belongs to other params, data or code; starting anew", flush=True)
            return None
        return content
