"""One stage's training: its device, its seed, and the checkpoints from which a killed run goes on."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lowenergy.base import device, files
from lowenergy.base.checkpoint import FOLDER, Checkpoint, fingerprint
from lowenergy.base.errors import UserError
from lowenergy.base.params import Precision
from lowenergy.base.team import Team

# Fabric imports the whole of torchmetrics where it is installed, seconds with all that it brings, to learn its version.
_hidden = sys.modules.setdefault("torchmetrics", None) is None  # type: ignore[arg-type]
from lightning_fabric import Fabric  # noqa: E402

if _hidden:
    del sys.modules["torchmetrics"]


class Run:
    """Where one stage's training happens and leaves its traces.

    Args:
        name: target and branch, such as "ebm/teacher"; curves go to plots/curves/<name>.
        inputs: whatever decides the outcome (params sections, data, folders of code); a checkpoint left by a killed
            run is only taken up again if these and lowenergy's own code are the same.
    """

    def __init__(self, name: str, seed: int, inputs: Sequence[Any], *, root: str | Path = ".") -> None:
        self.name, self.seed = name, seed
        self.curves = Path(root) / "plots" / "curves" / name
        self.curves.mkdir(parents=True, exist_ok=True)  # an output of the stage, even if nothing is trained
        self.checkpoints = Path(root) / FOLDER
        self.fingerprint = fingerprint([name, seed, *inputs])
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # filling takes time
        self.fabric = _launched()
        self.device = self.fabric.device
        self.team = Team(self.fabric.global_rank, self.fabric.world_size)
        if self.team.rank:
            files.leave_to_another()
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 for the rest of this process
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.recoveries = 0  # how often training diverged and went back

    @property
    def target(self) -> str:
        return self.name.split("/")[0]

    def autocast(self, precision: Precision) -> torch.autocast:
        """Not Fabric's, which knows one precision for all of a run: matching and retraining each have their own."""
        return device.autocast(self.device.type, precision)

    def checkpoint(self, part: str) -> Path:
        return self.checkpoints / f"{self.name}.{part}.pt"


def _launched() -> Fabric:
    """With as many processes as LOWENERGY_PROCESSES says (`all`: one for each GPU), or those of torchrun.

    Raises:
        UserError: no such number, or more than there are GPUs.
    """
    asked, gpus = os.environ.get("LOWENERGY_PROCESSES", "1"), torch.cuda.device_count()
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    else:
        if asked != "all" and not (asked.isdecimal() and int(asked)):
            raise UserError(f"LOWENERGY_PROCESSES={asked}: give a number from 1, or all for one on each GPU")
        here = all_of_them = max(1, gpus) if asked == "all" else int(asked)
    if here > 1 and 0 < gpus < here:
        raise UserError(f"{here} processes, but {gpus} GPUs; give as many or fewer, or CUDA_VISIBLE_DEVICES= for none")
    if here == all_of_them == 1:
        fabric = Fabric(accelerator="auto", devices=1)
    else:
        fabric = Fabric(accelerator="auto", devices=here, num_nodes=all_of_them // here, strategy="ddp")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric.launch()
    return fabric


def keep(run: Run, part: str, content: Mapping[str, Any]) -> None:
    """Put what a killed run needs to go on into its checkpoint `part`, atomically."""
    Checkpoint(run.checkpoint(part), run.fingerprint, run.device).keep(content)


def kept(run: Run, part: str) -> dict[str, Any] | None:
    """What a killed run with the same inputs kept in its checkpoint `part`; None without one."""
    return Checkpoint(run.checkpoint(part), run.fingerprint, run.device).kept()


def disband(run: Run) -> None:
    """The training is over: of several processes only the first goes on, to write what has come of it."""
    if run.team.size > 1:
        distributed.destroy_process_group()
    if run.team.rank:
        sys.exit()


def finished(run: Run) -> None:
    """Delete the checkpoints: the stage's output is on disk."""
    for path in run.checkpoint("*").parent.glob(run.checkpoint("*").name):
        path.unlink()
