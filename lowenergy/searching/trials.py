"""Trials as DVC experiments: queued, run side by side with what they share run once, recorded, measured."""

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowenergy.running import experiments
from lowenergy.running.crew import RunError, Watch
from lowenergy.searching.space import Value


@dataclass(frozen=True)
class Wanted:
    """One trial to run: the chain's last branch is measured."""

    name: str  # of the experiment
    chain: list[str]
    values: Mapping[str, Value]  # of params.yaml


@dataclass(frozen=True)
class Failed:
    why: str


def run(
    repo: Any,
    wanted: Sequence[Wanted],
    target: str,
    *,
    jobs: int | None,
    address: str | None = None,
    watch: Watch | None = None,
    latency: bool = False,
    trust: Collection[str] = (),
) -> dict[str, dict[str, Any] | Failed]:
    """The card of each trial by name, or why there is none.

    Those that were recorded before, or are queued already, are not queued again: a search that was killed goes on.

    Args:
        watch: stops trials that are hopeless, see Crew.
        latency: time each model in turn with its teacher, as share_of_time of the card.
        trust: what networks may come from, see artifact.read.
    """
    names = {trial.name for trial in wanted}
    failed: dict[str, Failed] = {}
    recorded = experiments.revisions(repo, names)
    queued = {experiments.name_of(entry) for entry in experiments.waiting(repo)}
    for trial in wanted:
        if trial.name not in recorded and trial.name not in queued:
            _queue(repo, trial, target)
    with experiments.ours(repo):
        entries = [entry for entry in experiments.waiting(repo) if experiments.name_of(entry) in names]
        if entries:
            pipelines = experiments.run_entries(repo, entries, jobs=jobs, address=address, keep_going=True, watch=watch)
            for pipeline in pipelines:
                if pipeline.failed:
                    name = pipeline.experiment
                    failed[name] = Failed("; ".join(_first_line(why) for why in pipeline.failed.values()))
                    _dvc(repo, "queue", "remove", name)
            if lost := experiments.record(repo, names - failed.keys()):
                raise RunError(experiments.NOT_RECORDED.format(", ".join(lost)))
        recorded = experiments.revisions(repo, names)
        cards: dict[str, dict[str, Any] | Failed] = dict(failed)
        for trial in wanted:
            if trial.name not in failed:
                card = card_of(repo, recorded[trial.name], target, trial.chain[-1])
                if latency:
                    card["share_of_time"] = _share_of_time(repo, recorded[trial.name], target, trial.chain[-1], trust)
                cards[trial.name] = card
        shutil.rmtree(Path(repo.root_dir) / experiments.PLACE, ignore_errors=True)
    return cards


def _first_line(why: str) -> str:
    """What a stage said last: its error; `why` begins with the command."""
    lines = [line for line in why.splitlines() if line.strip()]
    return lines[-1] if lines else "failed"


def _queue(repo: Any, trial: Wanted, target: str) -> None:
    changes = [part for name, value in trial.values.items() for part in ("-S", f"{name}={json.dumps(value)}")]
    _dvc(repo, "exp", "run", "--queue", "--name", trial.name, *changes, f"evaluate@{target}-{trial.chain[-1]}")


def _dvc(repo: Any, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command],
        cwd=repo.root_dir,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RunError(f"`dvc {' '.join(command)}` failed: {_first_line(done.stdout)}")


def begun_with(repo: Any, prefix: str) -> list[str]:
    """Names that begin so, of experiments that there are or that wait."""
    from dvc.repo.experiments.utils import exp_refs

    names = {ref.name for ref in exp_refs(repo.scm)} | set(map(experiments.name_of, experiments.waiting(repo)))
    return sorted(name for name in names if name and name.startswith(prefix))


def card_of(repo: Any, revision: str, target: str, branch: str) -> dict[str, Any]:
    """All figures of one model of an experiment."""
    shown = subprocess.run(
        ["git", "show", f"{revision}:./metrics/{target}/{branch}.card.json"],
        cwd=repo.root_dir,
        capture_output=True,
        check=True,
    )
    card: dict[str, Any] = json.loads(shown.stdout)
    return card


def _share_of_time(repo: Any, revision: str, target: str, branch: str, trust: Collection[str]) -> float:
    from lowenergy.storage import artifact
    from lowenergy.timing import bench

    place = Path(repo.root_dir) / experiments.PLACE / "timing"
    experiments.unpacked(repo, revision, place, place.with_suffix(".checkpoints"))
    model, teacher = (place / "models" / target / f"{name}.safetensors" for name in (branch, "teacher"))
    steps = artifact.read(teacher, trust=trust)[0].spec.head is not None
    return bench.share_of_time(model, teacher, steps=steps, trust=trust)
