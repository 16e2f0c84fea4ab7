"""One stage's training: its device, its seed, and the checkpoints from which a killed run goes on."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lowenergy.base import device, files
from lowenergy.base.checkpoint import FOLDER, Checkpoint, fingerprint
from lowenergy.base.errors import UserError
from lowenergy.base.precision import Precision
from lowenergy.base.team import ALONE, Team

CODE = ("base", "params", "data", "networks", "energies", "storage", "training")  # of lowenergy, part of every training


class Run:
    """One training: where it happens, its random numbers, what it has to say, and where its checkpoints are.

    Args:
        name: the name of the model that it makes; curves go to plots/curves/<name>.
        inputs: all that the stage reads, since it decides the outcome: sections of the params, digest of the
            images, files and folders (as Path), its own code among them. A checkpoint that a killed run left is only
            resumed if these and lowenergy's code for the training are the same.
        kind: the kind of that model, as its file says it; by default its name.
        code: files and folders of lowenergy that the stage imports, besides those of every training.
        root: the folder of plots/ and of the checkpoints.
        watched: whether anybody looks there, or resumes from there; if not, neither curves nor checkpoints are written.
        at: the device; by default the one that was asked for, or else the fastest.
        team: the processes that share the training.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        inputs: Sequence[Any],
        *,
        kind: str = "",
        code: Sequence[str] = (),
        root: str | Path = ".",
        watched: bool = True,
        at: torch.device | None = None,
        team: Team = ALONE,
    ) -> None:
        self.name, self.seed, self.kind, self.watched = name, seed, kind or name, watched
        self.curves = Path(root) / "plots" / "curves" / name
        self.checkpoints = Path(root) / FOLDER
        self.fingerprint = fingerprint([name, seed, *inputs], [*CODE, *code])
        self.device, self.team = at or device.fastest(), team
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.recoveries = 0  # how often training diverged and went back
        self.retries = 0  # how often it learnt nothing and was tried again
        self.provenance: dict[str, Any] = {}  # what the file will say of how the model was made; methods add to it

    def say(self, text: str) -> None:
        """Print for whoever watches; of a team, only the first process has a standard output that leads anywhere."""
        print(f"{self.name}: {text}", flush=True)

    def warn(self, part: str, problem: str, details: str) -> None:
        """Say what is wrong with the result: now, and in the model's file in few words, since they take bytes."""
        self.provenance.setdefault("warnings", []).append(f"{part}: {problem}")
        self.say(f"{part}: {problem}: {details}")

    def autocast(self, precision: Precision) -> torch.autocast:
        """Compute in this precision within the `with`; matching and retraining each have their own."""
        return device.autocast(self.device.type, precision)

    def checkpoint(self, part: str) -> Path:
        return self.checkpoints / f"{self.name}.{part}.pt"


@contextmanager
def running(name: str, seed: int, inputs: Sequence[Any], **more: Any) -> Iterator[Run]:
    """Yield a training, see Run, for which processes are launched, and torch computes the same each time.

    Only the first process prints and writes. If the `with` ends without an error, what was to be written is on disk,
    and the checkpoints are deleted.

    Raises:
        UserError: LOWENERGY_PROCESSES is not a number from 1, or more than there are GPUs.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # filling takes time
    with ExitStack() as stack:
        at, team = _launched()
        if team.rank:
            stack.enter_context(files.left_to_another())
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        run = Run(name, seed, inputs, **more, at=at, team=team)
        run.curves.mkdir(parents=True, exist_ok=True)  # an output of the stage, even if nothing is trained
        yield run
    finished(run)


def _launched() -> tuple[torch.device, Team]:
    """Launch as many processes as LOWENERGY_PROCESSES says (`all`: one for each GPU), or join those of torchrun.

    If a device was asked for, this process works on it alone.

    Raises:
        UserError: LOWENERGY_PROCESSES is not a number from 1, or there are more processes than GPUs.
    """
    if device.asked() is not None:
        return device.fastest(), ALONE
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
        return device.fastest(), ALONE
    from lightning_fabric import Fabric  # which one process can do without

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(accelerator="auto", devices=here, num_nodes=all_of_them // here, strategy="ddp")
    fabric.launch()
    return fabric.device, Team(fabric.global_rank, fabric.world_size)


def keep(run: Run, part: str, content: Mapping[str, Any]) -> None:
    """Put what a killed run needs to go on into its checkpoint `part`, atomically."""
    Checkpoint(run.checkpoint(part), run.fingerprint, run.device).keep(content)


def kept(run: Run, part: str) -> dict[str, Any] | None:
    """What a killed run with the same inputs kept in its checkpoint `part`; None without one."""
    return Checkpoint(run.checkpoint(part), run.fingerprint, run.device).kept()


def disband(run: Run) -> None:
    """End the training: of several processes only the first goes on, to write the result."""
    if run.team.size > 1:
        distributed.destroy_process_group()
    if run.team.rank:
        sys.exit()


def finished(run: Run) -> None:
    """Delete the checkpoints."""
    for path in run.checkpoint("*").parent.glob(run.checkpoint("*").name):
        path.unlink()
