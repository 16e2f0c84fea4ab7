"""Trials as DVC experiments: queued, run side by side (stages that they share, once), recorded and measured."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lowenergy.reporting.revisions import Revision
from lowenergy.running import experiments
from lowenergy.running.crew import RunError, Watch

LOCKED = re.compile("acquire lock|is busy")  # in what DVC says
PATIENCE = 120.0  # seconds

# Branches of params.yaml, each made from the one before; the last is measured.
Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Failed:
    why: str


def run(
    repo: Any,
    wanted: Mapping[str, Entries],
    target: str,
    *,
    jobs: int | None,
    address: str | None = None,
    watch: Watch | None = None,
    latency: bool = False,
    device: int | bool = False,
    trust: Collection[str] = (),
    whole: bool = False,
) -> dict[str, dict[str, Any] | Failed]:
    """Run trials; return each one's card by its experiment's name, or why there is none.

    Trials that are recorded or queued already are not queued again, so that a killed search continues.

    Args:
        watch: stops hopeless trials, see Crew.
        latency: time each model in turn with its teacher, as share_of_time in the card.
        device: find what each model takes as C, as flash and ram in the card; a number: with at most so much RAM.
        trust: what networks may come from, see artifact.read.
        whole: measure all branches, so that the experiment can be applied, for which DVC wants every output.
    Raises:
        RunError: some could not be run, or not recorded, for no fault of theirs; the others are recorded.
    """
    recorded = experiments.revisions(repo, wanted.keys())
    queued = {experiments.name_of(entry) for entry in experiments.waiting(repo)}
    new = [name for name in wanted if name not in recorded and name not in queued]
    if new and not experiments.worker_ended(repo):
        raise RunError("DVC's own worker runs experiments: wait for it, or stop it with `dvc queue stop`")
    for name in new:
        entries = wanted[name]
        _queue(repo, name, entries, list(entries)[0 if whole else -1 :])
    cards: dict[str, dict[str, Any] | Failed] = {}
    with experiments.ours(repo):
        waiting = [entry for entry in experiments.waiting(repo) if experiments.name_of(entry) in wanted]
        if waiting:
            ran = experiments.run_entries(repo, waiting, jobs=jobs, address=address, keep_going=True, watch=watch)
            for pipeline in ran:
                if pipeline.failed:
                    name = pipeline.experiment
                    cards[name] = Failed("; ".join(map(_last_line, pipeline.failed.values())))
                    _dvc(repo, "queue", "remove", name)
            experiments.record(repo, wanted.keys() - cards.keys())
            if unlucky := [pipeline.experiment for pipeline in ran if pipeline.lost]:  # that says nothing of a trial
                why = cast(Failed, cards[unlucky[0]]).why
                raise RunError(f"{', '.join(unlucky)}: {why}; the same command goes on")
        commits = experiments.revisions(repo, wanted.keys() - cards.keys())
        if lost := sorted(wanted.keys() - cards.keys() - commits.keys()):
            raise RunError(experiments.NOT_RECORDED.format(", ".join(lost)))
        for name, commit in commits.items():
            model = list(wanted[name])[-1]
            card = card_of(repo, commit, model)
            if latency or device is not False:
                models = _models(repo, commit)
                own, teacher = (models / f"{each}.safetensors" for each in (model, target))
                card |= {"share_of_time": _share_of_time(own, teacher, trust)} if latency else {}
                card |= _on_device(own, device, trust) if device is not False else {}
            cards[name] = card
        shutil.rmtree(Path(repo.root_dir) / experiments.PLACE, ignore_errors=True)
    return cards


def _last_line(why: str) -> str:
    """The last line that a stage printed, its error; `why` begins with the command."""
    lines = [line for line in why.splitlines() if line.strip()]
    return lines[-1] if lines else "failed"


def _queue(repo: Any, name: str, entries: Entries, measured: list[str]) -> None:
    """Queue an experiment that adds branches to params.yaml; those already there stay as they are."""
    changes = [part for branch, entry in entries.items() for part in ("-S", f"++branches.{branch}={_in_hydra(entry)}")]
    _dvc(repo, "exp", "run", "--queue", "--name", name, *changes, *(f"evaluate@{each}" for each in measured))


def _in_hydra(value: Any) -> str:
    """A value as Hydra reads it: JSON, but with unquoted keys."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_in_hydra(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)


def apply(repo: Any, name: str) -> None:
    """Bring a recorded experiment into the workspace."""
    print(_dvc(repo, "exp", "apply", name).strip(), flush=True)


def _dvc(repo: Any, *command: str) -> str:
    """Run a DVC command and return what it prints.

    While another process holds DVC's lock, try again for up to PATIENCE seconds: DVC's own worker, which records
    experiments, may keep it a while after we stop waiting for that worker.

    Raises:
        RunError: the command fails.
    """
    until = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=repo.root_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not done.returncode:
            return done.stdout
        if not LOCKED.search(done.stdout) or time.monotonic() > until:
            raise RunError(f"`dvc {' '.join(command)}` failed: {_last_line(done.stdout)}")
        time.sleep(1.0)


def begun_with(repo: Any, prefix: str) -> list[str]:
    """The names with this prefix of experiments that exist or are queued."""
    from dvc.repo.experiments.utils import exp_refs

    names = {ref.name for ref in exp_refs(repo.scm)} | set(map(experiments.name_of, experiments.waiting(repo)))
    return sorted(name for name in names if name and name.startswith(prefix))


def card_of(repo: Any, commit: str, model: str) -> dict[str, Any]:
    """All figures of one model of an experiment.

    Raises:
        RunError: the experiment has none.
    """
    card = Revision(commit, repo.root_dir).card(model)
    if card is None:
        raise RunError(f"{commit[:7]} has no figures of {model}; `dvc exp remove` it and search again")
    return dict(card)


def _models(repo: Any, commit: str) -> Path:
    """Unpack an experiment's models; return their folder, which the next experiment's replaces."""
    place = Path(repo.root_dir) / experiments.PLACE / "measured"
    experiments.unpacked(repo, commit, place, place.with_suffix(".checkpoints"))
    return place / "models"


def _on_device(model: Path, limit: int | bool, trust: Collection[str]) -> dict[str, int]:
    """Flash and RAM within the limit; those of the least memory if no plan is that small, or if limit is True."""
    from lowenergy.runtimes.c import forecast
    from lowenergy.storage import artifact

    read, _ = artifact.read(model, trust=trust)
    predicted = forecast.smallest(read) if limit is True else forecast.within(read, int(limit))
    return {"flash": predicted.flash, "ram": predicted.ram}


def _share_of_time(model: Path, teacher: Path, trust: Collection[str]) -> float:
    from lowenergy.storage import artifact
    from lowenergy.timing import bench

    steps = artifact.read(teacher, trust=trust)[0].spec.head is not None
    return bench.share_of_time(model, teacher, steps=steps, trust=trust)
